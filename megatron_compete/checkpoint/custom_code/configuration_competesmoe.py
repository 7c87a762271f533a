"""Configuration of a CompeteSMoE language model."""

from transformers import PretrainedConfig

ACTIVATIONS = ("silu", "relu", "relu2", "gelu")
SCORE_FUNCTIONS = ("softmax", "sigmoid", "sqrtsoftplus")
INHERITED_DEFAULTS = {"tie_word_embeddings": False, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "rope_parameters": None,
    "attention_dropout": 0.0,
    "qkv_bias": False,
    "qk_norm": False,
    "norm": "rmsnorm",
    "norm_eps": 1e-5,
    "hidden_act": "silu",
    "gated_mlp": True,
    "intermediate_size": 128,
    "dense_layers": (),
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 0,
    "shared_expert_gate": False,
    "score_function": "softmax",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "score_correction_bias": False,
    "num_expert_groups": 1,
    "num_chosen_groups": 1,
    "experts_per_group_score": 1,
    "rank_by_logits": False,
    "moe_latent_size": 0,
    "router_in_fp32": False,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "initializer_range": 0.02,
    "use_cache": True,
}
"""Of the fields that are described below."""


class CompeteSMoEConfig(PretrainedConfig):
    """A decoder with a mixture of experts in all layers or some.

    Args:
        vocab_size: token ids.
        hidden_size: width of the residual stream.
        num_hidden_layers: layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; None is as many as query heads.
        head_dim: size of a head; None is hidden_size / num_attention_heads.
        max_position_embeddings: longest sequence in training.
        rope_theta: base of the rotary frequencies.
        partial_rotary_factor: share of a head that is rotated, its first numbers.
        rope_parameters: how the frequencies are stretched ("rope_type" and what belongs to it), in transformers 5's
            form; what it says goes before the two above. transformers 4 calls it rope_scaling.
        attention_dropout: share of attention's weights that are dropped in training.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys are normalised, head by head.
        norm: "rmsnorm", or "layernorm" with weight and bias.
        norm_eps: epsilon of the norms.
        hidden_act: "silu", "relu", "relu2" (its square) or "gelu".
        gated_mlp: whether MLPs compute down(act(gate(x)) * up(x)); else down(act(up(x))).
        intermediate_size: width of the MLP in layers without experts.
        dense_layers: layers without experts, from 0.
        num_experts: routed experts; 0 for a dense model.
        num_experts_per_tok: experts a token goes to.
        moe_intermediate_size: width of a routed expert.
        shared_expert_intermediate_size: width of the shared experts together; 0 without.
        shared_expert_gate: whether a sigmoid gate weights the shared experts.
        score_function: of the router: "softmax", "sigmoid" or "sqrtsoftplus".
        norm_topk_prob: whether the weights of a token's experts are made to sum to 1 (before the scaling).
        routed_scaling_factor: factor of those weights.
        score_correction_bias: whether experts are ranked by score plus a bias of theirs.
        num_expert_groups: groups that experts are divided into; 1 without.
        num_chosen_groups: groups a token's experts come from.
        experts_per_group_score: a group is ranked by the sum of its so many best scores.
        rank_by_logits: whether experts, and so groups of them, are ranked by logits rather than by scores.
        moe_latent_size: width of what routed experts see and answer, between two projections; 0: the hidden states.
        router_in_fp32: whether the router's logits are computed in fp32.
        output_router_logits: whether a forward pass returns the routers' logits, and adds the balancing loss.
        router_aux_loss_coef: weight of the balancing loss.
        initializer_range: standard deviation of new weights.
    """

    model_type = "competesmoe"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(self, **given):
        values = {name: given.pop(name, default) for name, default in DEFAULTS.items()}
        for name, known in (("hidden_act", ACTIVATIONS), ("score_function", SCORE_FUNCTIONS)):
            if values[name] not in known:
                raise ValueError(f"{name} {values[name]} is not one of {', '.join(known)}")
        theta, factor, rope = (values.pop(name) for name in ("rope_theta", "partial_rotary_factor", "rope_parameters"))
        values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
        values["head_dim"] = values["head_dim"] or values["hidden_size"] // values["num_attention_heads"]
        values["dense_layers"] = list(values["dense_layers"])
        for name, value in values.items():
            setattr(self, name, value)
        self._set_rope(theta, factor, rope or given.pop("rope_scaling", None))
        for name, default in INHERITED_DEFAULTS.items():
            given.setdefault(name, default)
        super().__init__(**given)

    def _set_rope(self, theta, factor, given):
        """One dictionary that both versions' frequency functions read: `rope_parameters`, in transformers 4 `rope_scaling`."""
        given = dict(given or {})
        kind = given.pop("type", None)
        defaults = {"rope_type": kind or "default", "rope_theta": theta, "partial_rotary_factor": factor}
        self.rope_parameters = defaults | given
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.partial_rotary_factor = self.rope_parameters["partial_rotary_factor"]
        if not hasattr(PretrainedConfig, "rope_scaling"):  # transformers 4
            self.rope_scaling = given and self.rope_parameters

    def has_experts(self, layer):
        """Whether the layer, from 0, is a mixture of experts."""
        return self.num_experts > 0 and layer not in self.dense_layers

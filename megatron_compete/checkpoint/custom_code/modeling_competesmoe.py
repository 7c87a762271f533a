"""A CompeteSMoE language model (arXiv 2505.13380): a decoder whose layers mix experts.

Competition, in which all experts answer and the best win, shapes the router in pretraining only. What is left is a router
that sends every token to its K best experts and weights their outputs. Everything else is as in transformers' own MoE
classes: attention implementations, caches, gradient checkpointing, recorded outputs, loss. Legend of shapes: B sequences,
S tokens of one pass, H hidden size, N heads, D head size, T = B * S tokens, E experts, K experts a token.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_competesmoe import CompeteSMoEConfig

try:  # current versions of transformers 5
    from transformers.utils.generic import merge_with_config_defaults
    from transformers.utils.output_capturing import OutputRecorder, capture_outputs

    def records_outputs(forward):
        """output_hidden_states, output_attentions, output_router_logits and return_dict, and defaults of the configuration."""
        return merge_with_config_defaults(capture_outputs(forward))

except ImportError:  # transformers 4 has one decorator for both
    from transformers.utils.generic import OutputRecorder  # type: ignore[attr-defined,no-redef]
    from transformers.utils.generic import check_model_inputs as records_outputs

MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters
"""They differ among versions: transformers 4 wants `input_embeds` and `cache_position`, 5 `inputs_embeds`."""


class CompeteSMoERMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def make_norm(config, size):
    """The configuration's norm over `size` numbers."""
    if config.norm == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps)
    return CompeteSMoERMSNorm(size, config.norm_eps)


class CompeteSMoERotaryEmbedding(nn.Module):
    """Cosine and sine of position * frequency; transformers finds the buffers and the function by these names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_init_fn = self.compute_default_rope_parameters
        if self.rope_type != "default":
            self.rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = self.rope_init_fn(config, None)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config, device=None, **kwargs):
        """Frequencies theta^(-2i / rotated) and the factor 1."""
        rope = config.rope_parameters
        rotated = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
        return 1.0 / rope["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x, position_ids):
        """Args: position_ids [B, S]. Returns: cosine and sine [B, S, rotated], in x's dtype."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float32)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def rotate(x, cos, sin):
    """Rotate the first numbers of every head, first half against second; the rest passes. x: [B, N, S, D]."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cos + torch.cat((-second, first), dim=-1) * sin, rest), dim=-1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, for `attn_implementation="eager"` and its weights [B, N, S, keys]."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CompeteSMoEAttention(nn.Module):
    """Causal attention in which groups of query heads share a key and a value head."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, hidden, rotation, attention_mask, past_key_values=None, cache_position=None, **kwargs):
        heads = (*hidden.shape[:2], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden).view(heads)).transpose(1, 2)  # [B, N, S, D]
        key = self.k_norm(self.k_proj(hidden).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden).view(heads).transpose(1, 2)
        cos, sin = (table.unsqueeze(1) for table in rotation)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past_key_values is not None:
            # A static cache of transformers 4 asks where to write; 5 counts itself.
            key, value = past_key_values.update(key, value, self.layer_idx, {"cache_position": cache_position})
        # set_attn_implementation works where transformers finds one of these two calls in the source: 5 the first, 4 the other.
        attend = eager_attention_forward
        if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        elif self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.attention_dropout if self.training else 0.0
        answer, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(answer.flatten(2)), weights


class CompeteSMoEMLP(nn.Module):
    """Two matrices with an activation between, or three with a gate."""

    def __init__(self, config, width, outer=None):
        super().__init__()
        outer = outer or config.hidden_size
        if config.gated_mlp:
            self.gate_proj = nn.Linear(outer, width, bias=False)
        self.up_proj = nn.Linear(outer, width, bias=False)
        self.down_proj = nn.Linear(width, outer, bias=False)
        self.gated = config.gated_mlp
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x):
        if self.gated:
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.activation(self.up_proj(x)))


class CompeteSMoERouter(nn.Module):
    """Chooses the K experts of each token, and their weights."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        if config.score_correction_bias:
            # transformers 4 keeps parameters in fp32 beside a model in bf16, and no buffers.
            self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)

    def forward(self, x):
        """Args: x [T, H]. Returns: logits [T, E], weights [T, K], experts [T, K]."""
        config = self.config
        if config.router_in_fp32:
            logits = F.linear(x.float(), self.weight.float())
        else:
            logits = F.linear(x, self.weight)
        scores = self.scores(logits)
        experts = self.choose(logits)
        weights = scores.gather(1, experts)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, (weights * config.routed_scaling_factor).to(logits.dtype), experts

    def scores(self, logits):
        """Scores [T, E] of logits [T, E], in fp32."""
        logits = logits.float()
        if self.config.score_function == "softmax":
            return logits.softmax(-1)
        if self.config.score_function == "sigmoid":
            return logits.sigmoid()
        return F.softplus(logits).sqrt()

    def choose(self, logits):
        """The K experts [T, K] of each token by its logits [T, E]."""
        ranking = logits.float() if self.config.rank_by_logits else self.scores(logits)
        if self.config.score_correction_bias:
            ranking = ranking + self.e_score_correction_bias.float()
        return self._within_groups(ranking).topk(self.config.num_experts_per_tok, dim=-1).indices

    def _within_groups(self, ranking):
        """Experts outside of the best groups rank last."""
        config = self.config
        if config.num_expert_groups == 1:
            return ranking
        by_group = ranking.unflatten(1, (config.num_expert_groups, -1))  # [T, groups, E / groups]
        of_group = by_group.topk(config.experts_per_group_score, dim=-1).values.sum(-1)
        chosen = torch.zeros_like(of_group).scatter(1, of_group.topk(config.num_chosen_groups, dim=-1).indices, 1)
        return by_group.masked_fill(chosen[..., None] == 0, float("-inf")).flatten(1)


class CompeteSMoEExperts(nn.ModuleList):
    """The routed experts; called as the fused experts of transformers' own mixtures are."""

    def forward(self, hidden, experts, weights):
        """Args: hidden [T, H], experts [T, K], weights [T, K]. Returns: each token's weighted sum of outputs [T, H]."""
        mixed = torch.zeros_like(hidden)
        # In training also those that no token chose: every parameter has a gradient on every rank, which DDP and ZeRO need.
        for number in range(len(self)) if self.training else experts.unique().tolist():
            token, rank = (experts == number).nonzero(as_tuple=True)
            answer = self[number](hidden[token]) * weights[token, rank, None]
            mixed.index_add_(0, token, answer.to(mixed.dtype))
        return mixed


class CompeteSMoEBlock(nn.Module):
    """The mixture: each token through its K experts, and through the shared ones where there are some."""

    def __init__(self, config):
        super().__init__()
        self.gate = CompeteSMoERouter(config)
        self.experts = CompeteSMoEExperts(
            CompeteSMoEMLP(config, config.moe_intermediate_size, config.moe_latent_size)
            for _ in range(config.num_experts)
        )
        if config.moe_latent_size:
            self.fc1_latent_proj = nn.Linear(config.hidden_size, config.moe_latent_size, bias=False)
            self.fc2_latent_proj = nn.Linear(config.moe_latent_size, config.hidden_size, bias=False)
        self.is_latent = config.moe_latent_size > 0
        if config.shared_expert_intermediate_size:
            self.shared_expert = CompeteSMoEMLP(config, config.shared_expert_intermediate_size)
            if config.shared_expert_gate:
                self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)
        self.has_shared = config.shared_expert_intermediate_size > 0
        self.gates_shared = self.has_shared and config.shared_expert_gate

    def forward(self, hidden):
        tokens = hidden.flatten(0, 1)  # [T, H]
        _, weights, experts = self.gate(tokens)
        mixed = self.experts(self.fc1_latent_proj(tokens) if self.is_latent else tokens, experts, weights)
        if self.is_latent:
            mixed = self.fc2_latent_proj(mixed)
        if self.has_shared:
            shared = self.shared_expert(tokens)
            if self.gates_shared:
                shared = shared * self.shared_expert_gate(tokens).sigmoid()
            mixed = mixed + shared
        return mixed.view_as(hidden)


class CompeteSMoELayer(GradientCheckpointingLayer):
    """Attention and MLP or mixture, each behind a norm and beside a residual path."""

    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.self_attn = CompeteSMoEAttention(config, layer)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)
        experts = config.has_experts(layer)
        self.mlp = CompeteSMoEBlock(config) if experts else CompeteSMoEMLP(config, config.intermediate_size)

    def forward(self, hidden, rotation, attention_mask=None, past_key_values=None, **kwargs):
        attended, _ = self.self_attn(
            self.input_layernorm(hidden), rotation, attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class CompeteSMoEPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, place, run and record the modules."""

    config_class = CompeteSMoEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CompeteSMoELayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False  # which experts a token takes is a matter of its numbers
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(CompeteSMoERouter, index=0),
        "hidden_states": CompeteSMoELayer,
        "attentions": CompeteSMoEAttention,
    }

    def __init__(self, config):
        super().__init__(config)
        if config.score_correction_bias:  # transformers 4 refuses names that the model does not have
            self._keep_in_fp32_modules_strict = {"e_score_correction_bias"}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, CompeteSMoERouter):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if self.config.score_correction_bias:
                nn.init.zeros_(module.get_parameter("e_score_correction_bias"))


class CompeteSMoEModel(CompeteSMoEPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(CompeteSMoELayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config, config.hidden_size)
        self.rotary_emb = CompeteSMoERotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @records_outputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, S, H]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        places = kwargs.pop("cache_position", None)  # given by transformers 4's generate alone
        if places is None:
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            places = torch.arange(hidden.shape[1], device=hidden.device) + before
        if position_ids is None:
            position_ids = places[None]
        known = {
            "config": self.config,
            "inputs_embeds": hidden,
            "input_embeds": hidden,
            "attention_mask": attention_mask,
            "cache_position": places,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        mask = create_causal_mask(**{name: value for name, value in known.items() if name in MASK_ARGUMENTS})
        rotation = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                rotation,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                cache_position=places,
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class CompeteSMoEForCausalLM(CompeteSMoEPreTrainedModel, GenerationMixin):
    """The decoder with a head over the vocabulary."""

    # transformers 5 reads source and target, transformers 4 the names alone.
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = CompeteSMoEModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_router_logits=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, S, vocabulary], and with `labels` [B, S] (-100 is ignored) the mean next-token loss.

        With `num_items_in_batch`, which Trainer gives, the loss is the sum over that number: what a step of several
        micro-batches adds up to is then their mean.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if output_router_logits and outputs.router_logits:
            gates = [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, CompeteSMoEBlock)]
            aux_loss = load_balancing_loss(gates, outputs.router_logits, attention_mask)
            if loss is not None:
                share = share_of_batch(labels, kwargs.get("num_items_in_batch"))
                loss = loss + self.config.router_aux_loss_coef * (share * aux_loss).to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


def load_balancing_loss(gates, router_logits, attention_mask=None):
    """E * sum_e (share of tokens that chose e) * (mean score of e), over the tokens of all layers (arXiv 2101.03961).

    Args:
        gates: routers of the layers with experts.
        router_logits: logits [T, E] of each.
        attention_mask: [B, S or more], 0 for padding, which does not count; None counts all.
    """
    device, experts = router_logits[0].device, router_logits[0].shape[-1]
    chosen, score, rows = (torch.zeros(size, device=device) for size in (experts, experts, ()))
    for gate, logits in zip(gates, router_logits, strict=True):
        scores = gate.scores(logits)
        choice = F.one_hot(gate.choose(logits), experts).sum(1)  # [T, E]
        counted = torch.ones(len(logits), device=logits.device)
        if attention_mask is not None:
            passed = len(logits) // len(attention_mask)  # with a cache the mask is longer than this pass
            counted = attention_mask[:, -passed:].flatten().to(counted)
        chosen = chosen + (choice * counted[:, None]).sum(0).to(device)
        score = score + (scores / scores.sum(-1, keepdim=True) * counted[:, None]).sum(0).to(device)
        rows = rows + counted.sum().to(device)
    return experts * (chosen / rows * score / rows).sum()


def share_of_batch(labels, items):
    """Share of a step's tokens that are in this micro-batch: the step adds its micro-batches' losses up.

    Args:
        labels: [B, S] of the micro-batch.
        items: labelled tokens of the whole step; None where this is all of it.
    """
    return 1.0 if items is None else float((labels[:, 1:] != -100).sum() / items)

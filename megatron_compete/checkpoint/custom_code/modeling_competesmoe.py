"""A CompeteSMoE language model (arXiv 2505.13380) at inference: a decoder whose layers mix experts.

Competition, in which all experts answer and the best win, shapes the router in training only. What is left is a router
that sends every token to its K best experts and weights their outputs. Legend of shapes: B sequences, S tokens of one
pass, P tokens before it (in the cache), H hidden size, N heads, D head size, T = B * S tokens, E experts, K experts a
token.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_competesmoe import CompeteSMoEConfig

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
}


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


def rotary_tables(config, positions, dtype):
    """Cosine and sine [B, 1, S, rotated] of the angles position * theta^(-2i / rotated)."""
    rotated = int(config.head_dim * config.partial_rotary_factor)
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=positions.device) / rotated
    angles = positions[:, None, :, None].float() * config.rope_theta**-exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    """Rotate the first numbers of every head, first half against second; the rest passes. x: [B, N, S, D]."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cos + torch.cat((-second, first), dim=-1) * sin, rest), dim=-1)


def causal_mask(attention_mask, positions_in_pass, total):
    """Which of `total` keys each query sees: [B or 1, 1, S, P + S], True where it does.

    Args:
        attention_mask: [B, P + S], 0 for padding, or None.
        positions_in_pass: place [S] of each query among the keys.
    """
    seen = torch.arange(total, device=positions_in_pass.device) <= positions_in_pass[:, None]
    seen = seen[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :total].bool()
        # A padding token sees itself, so that its softmax is defined; nobody sees it.
        itself = torch.arange(total, device=seen.device) == positions_in_pass[:, None]
        seen = seen | itself
    return seen


class CompeteSMoEAttention(nn.Module):
    """Causal attention in which groups of query heads share a key and a value head."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.layer = layer
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, hidden, cos, sin, mask, cache):
        heads = (*hidden.shape[:2], -1, self.config.head_dim)
        query = self.q_norm(self.q_proj(hidden).view(heads)).transpose(1, 2)  # [B, N, S, D]
        key = self.k_norm(self.k_proj(hidden).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden).view(heads).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        shared_by = self.config.num_attention_heads // self.config.num_key_value_heads
        key, value = key.repeat_interleave(shared_by, dim=1), value.repeat_interleave(shared_by, dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class CompeteSMoEMLP(nn.Module):
    """Two matrices with an activation between, or three with a gate."""

    def __init__(self, config, width):
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.gated = config.gated_mlp
        self.activation = ACTIVATIONS[config.hidden_act]

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
            self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)

    def forward(self, x):
        """Args: x [T, H]. Returns: weights [T, K], experts [T, K]."""
        config = self.config
        if config.router_in_fp32:
            logits = F.linear(x.float(), self.weight.float())
        else:
            logits = F.linear(x, self.weight)
        scores = self._scores(logits.float())  # [T, E]
        ranking = scores
        if config.score_correction_bias:
            ranking = scores + self.e_score_correction_bias.float()
        experts = self._within_groups(ranking).topk(config.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return (weights * config.routed_scaling_factor).to(logits.dtype), experts

    def _scores(self, logits):
        if self.config.score_function == "softmax":
            return logits.softmax(-1)
        if self.config.score_function == "sigmoid":
            return logits.sigmoid()
        return F.softplus(logits).sqrt()

    def _within_groups(self, ranking):
        """Experts outside of the best groups rank last."""
        config = self.config
        if config.num_expert_groups == 1:
            return ranking
        by_group = ranking.unflatten(1, (config.num_expert_groups, -1))  # [T, groups, E / groups]
        of_group = by_group.topk(config.experts_per_group_score, dim=-1).values.sum(-1)
        chosen = torch.zeros_like(of_group).scatter(1, of_group.topk(config.num_chosen_groups, dim=-1).indices, 1)
        return by_group.masked_fill(chosen[..., None] == 0, float("-inf")).flatten(1)


class CompeteSMoEBlock(nn.Module):
    """The mixture: each token through its K experts, and through the shared ones where there are some."""

    def __init__(self, config):
        super().__init__()
        self.gate = CompeteSMoERouter(config)
        self.experts = nn.ModuleList(
            CompeteSMoEMLP(config, config.moe_intermediate_size) for _ in range(config.num_experts)
        )
        if config.shared_expert_intermediate_size:
            self.shared_expert = CompeteSMoEMLP(config, config.shared_expert_intermediate_size)
            if config.shared_expert_gate:
                self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)
        self.has_shared = config.shared_expert_intermediate_size > 0
        self.gates_shared = self.has_shared and config.shared_expert_gate

    def forward(self, hidden):
        tokens = hidden.flatten(0, 1)  # [T, H]
        weights, experts = self.gate(tokens)
        mixed = torch.zeros_like(tokens)
        for number in experts.unique().tolist():
            token, rank = (experts == number).nonzero(as_tuple=True)
            answer = self.experts[number](tokens[token]) * weights[token, rank, None]
            mixed.index_add_(0, token, answer.to(mixed.dtype))
        if self.has_shared:
            shared = self.shared_expert(tokens)
            if self.gates_shared:
                shared = shared * self.shared_expert_gate(tokens).sigmoid()
            mixed = mixed + shared
        return mixed.view_as(hidden)


class CompeteSMoELayer(nn.Module):
    """Attention and MLP or mixture, each behind a norm and beside a residual path."""

    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.self_attn = CompeteSMoEAttention(config, layer)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)
        experts = config.has_experts(layer)
        self.mlp = CompeteSMoEBlock(config) if experts else CompeteSMoEMLP(config, config.intermediate_size)

    def forward(self, hidden, cos, sin, mask, cache):
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, mask, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class CompeteSMoEPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load and place the weights."""

    config_class = CompeteSMoEConfig
    base_model_prefix = "model"
    _no_split_modules = ["CompeteSMoELayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        if config.score_correction_bias:  # transformers 4 refuses names that the model does not have
            self._keep_in_fp32_modules_strict = {"e_score_correction_bias"}

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding | CompeteSMoERouter):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class CompeteSMoEModel(CompeteSMoEPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(CompeteSMoELayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

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
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, S, H]
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(before, before + hidden.shape[1], device=hidden.device)
        if position_ids is None:
            position_ids = places[None]
        cos, sin = rotary_tables(self.config, position_ids, hidden.dtype)
        mask = causal_mask(attention_mask, places, before + hidden.shape[1])
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, mask, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values if use_cache else None
        )


class CompeteSMoEForCausalLM(CompeteSMoEPreTrainedModel, GenerationMixin):
    """The decoder with a head over the vocabulary."""

    # transformers 5 reads source and target, transformers 4 the names alone.
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = CompeteSMoEModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, S, vocabulary], and with `labels` [B, S] (-100 is ignored) the mean next-token loss."""
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            predicted, wanted = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
            loss = F.cross_entropy(predicted, wanted.to(predicted.device), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

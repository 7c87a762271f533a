"""Tiny models of the own architecture, and a stock one that computes the same."""

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from megatron_compete.checkpoint.custom_code.configuration_competesmoe import CompeteSMoEConfig
from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoEForCausalLM

VOCAB, LAYERS, HEADS, EXPERTS, HIDDEN = 64, 3, 4, 6, 32
SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZES = SHARED | {"num_experts": EXPERTS, "moe_intermediate_size": 16, "intermediate_size": 24}

AUTHORS = {"norm": "layernorm", "hidden_act": "relu", "gated_mlp": False, "partial_rotary_factor": 0.5}
SIGMOID = {
    "score_function": "sigmoid", "score_correction_bias": True, "num_expert_groups": 2, "num_chosen_groups": 1,
    "experts_per_group_score": 2, "router_in_fp32": True, "routed_scaling_factor": 2.5, "qk_norm": True, "qkv_bias": True,
    "shared_expert_intermediate_size": 12, "shared_expert_gate": True, "dense_layers": [0],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "authors": AUTHORS, "sigmoid": SIGMOID}


def build(attention: str = "sdpa", **changes: Any) -> CompeteSMoEForCausalLM:
    """A model with random weights, the same at every call, in evaluation."""
    config = CompeteSMoEConfig(**SIZES | changes)
    config._attn_implementation = attention
    torch.manual_seed(1)
    model = CompeteSMoEForCausalLM(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn(tensor.shape) * 0.2)
    return model.eval()


def mixtral_of(model: CompeteSMoEForCausalLM) -> MixtralForCausalLM:
    """transformers' own class with the weights of a plain model."""
    stock = MixtralForCausalLM(MixtralConfig(**SHARED, num_local_experts=EXPERTS, intermediate_size=16, rope_theta=1e4))
    weights = model.state_dict()
    for layer in range(LAYERS):
        mlp = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([weights.pop(f"{mlp}{expert}.{one}_proj.weight") for expert in range(EXPERTS)])
            for one in ("gate", "up", "down")
        )
        weights |= {f"{mlp}gate_up_proj": torch.cat((gate, up), dim=1), f"{mlp}down_proj": down}
    stock.load_state_dict(weights)
    return stock.eval()


def tokens(rows: int = 3, length: int = 12) -> torch.Tensor:
    """Token ids [rows, length], none of them padding."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by trained parameter; one that has none is an error."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}

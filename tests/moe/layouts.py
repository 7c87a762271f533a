"""One MoE layer on any layout of ranks, with given weights; what the layout tests compare."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe.reference import Weights

SEQUENCE, BATCH, HIDDEN, FFN, EXPERTS, WINNERS = 6, 2, 16, 24, 8, 3


@dataclass(frozen=True)
class Layout:
    """Parallel sizes; data parallel size is what remains."""

    world: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1
    dispatcher: str = "alltoall"

    @property
    def microbatches(self) -> int:
        """Microbatches that the ranks hold together: tensor parallel ranks share one."""
        return self.world // self.tp

    def __str__(self) -> str:
        return f"world{self.world}-tp{self.tp}-ep{self.ep}-etp{self.etp}-{self.dispatcher}"


def transformer_config(layout: Layout, **overrides: Any) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings: dict[str, Any] = dict(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=4, ffn_hidden_size=FFN, moe_ffn_hidden_size=FFN,
        num_moe_experts=EXPERTS, moe_router_topk=WINNERS, moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0,
        moe_token_dispatcher_type=layout.dispatcher, add_bias_linear=False, gated_linear_unit=True,
        activation_func=F.silu, bias_activation_fusion=False, use_cpu_initialization=True,
        gradient_accumulation_fusion=False, tensor_model_parallel_size=layout.tp, sequence_parallel=layout.tp > 1,
        expert_model_parallel_size=layout.ep, expert_tensor_parallel_size=layout.etp,
    )  # fmt: skip
    return TransformerConfig(**(settings | overrides))


def initialize(layout: Layout) -> None:
    """torch.distributed and Megatron's groups."""
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
    )


def build_layer(layout: Layout, weights: Weights, config: CompeteConfig, **overrides: Any) -> Any:
    """A `CompeteMoELayer` that holds this rank's share of `weights`."""
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.moe.competition import Competition
    from megatron_compete.moe.layer import CompeteMoELayer

    transformer = transformer_config(layout, **overrides)
    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    competition = Competition(config, (1,), current_step=lambda: 0)
    layer = CompeteMoELayer(
        transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection(), competition=competition
    )
    layer.set_layer_number(1)
    load(layer, weights)
    return layer.train()


def _shard(whole: Tensor, rank: int, size: int, dim: int) -> Tensor:
    return whole.chunk(size, dim)[rank]


def load(layer: Any, weights: Weights) -> None:
    """Copy this rank's shards; gate and up of fc1 are sharded apart, as Megatron does."""
    rank, size = layer.token_dispatcher.tp_rank, layer.token_dispatcher.tp_size
    layer.router.weight.data.copy_(weights.router)
    for index, expert in zip(layer.local_expert_indices, layer.experts.local_experts):
        gate, up = weights.fc1[index].chunk(2)
        expert.linear_fc1.weight.data.copy_(torch.cat([_shard(gate, rank, size, 0), _shard(up, rank, size, 0)]))
        expert.linear_fc2.weight.data.copy_(_shard(weights.fc2[index], rank, size, 1))


def gradients(layer: Any) -> dict[str, Any]:
    """This rank's gradients, with the place they have in the whole."""
    return {
        "experts": list(layer.local_expert_indices),
        "shard": layer.token_dispatcher.tp_rank,
        "router": layer.router.weight.grad,
        "fc1": [expert.linear_fc1.weight.grad for expert in layer.experts.local_experts],
        "fc2": [expert.linear_fc2.weight.grad for expert in layer.experts.local_experts],
    }


def assemble(per_rank: list[dict[str, Any]], layout: Layout) -> Weights:
    """Gradients of the whole layer: the sum over ranks that hold the same weights, shards put together."""
    total = Weights(
        router=sum(rank["router"] for rank in per_rank),
        fc1=torch.zeros(EXPERTS, 2 * FFN, HIDDEN),
        fc2=torch.zeros(EXPERTS, HIDDEN, FFN),
    )
    for rank in per_rank:
        for index, fc1, fc2 in zip(rank["experts"], rank["fc1"], rank["fc2"]):
            if fc1 is None:
                continue
            gate, up = total.fc1[index].chunk(2)
            for part, grad in zip((gate, up), fc1.chunk(2)):
                _shard(part, rank["shard"], layout.etp, 0).add_(grad)
            _shard(total.fc2[index], rank["shard"], layout.etp, 1).add_(fc2)
    return total

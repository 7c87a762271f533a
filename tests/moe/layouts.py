"""One MoE layer on any layout of ranks, with given weights; what the layout tests compare."""

import itertools
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe.reference import SEQUENCES, Weights

SEQUENCE, BATCH, HIDDEN, FFN, EXPERTS, WINNERS = 8, SEQUENCES, 16, 24, 8, 3
SHARED_FFN = 12
"""Hidden size of the shared expert, in the tests that have one."""


@dataclass(frozen=True)
class Layout:
    """Parallel sizes; data parallel size is what remains."""

    world: int = 1
    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    dispatcher: str = "alltoall"
    per_token: bool = False
    """Whether gradients are divided by the tokens of the global batch at the end (--calculate-per-token-loss)."""

    @property
    def dp(self) -> int:
        """Data parallel size: tensor and context parallel ranks share a microbatch."""
        return self.world // (self.tp * self.cp)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Data, context and tensor parallel rank; tensor parallel ranks run fastest in Megatron's order."""
        rest, tensor = divmod(rank, self.tp)
        return (*divmod(rest, self.cp), tensor)

    def __str__(self) -> str:
        sizes = "-".join(f"{name}{getattr(self, name)}" for name in ("tp", "cp", "ep", "etp"))
        return f"world{self.world}-{sizes}-{self.dispatcher}" + ("-per_token" if self.per_token else "")


def all_layouts(world: int) -> Iterator[Layout]:
    """Every layout of one pipeline stage over `world` ranks (a power of two)."""
    sizes = [size for size in (1, 2, 4, 8) if size <= world]
    for tp, cp, ep, etp in itertools.product(sizes, repeat=4):
        if tp * cp <= world and ep * etp <= world:
            yield Layout(world=world, tp=tp, cp=cp, ep=ep, etp=etp)


def rest_is_slow(layouts: Iterable[Layout], kept: Container[Layout]) -> list[Any]:
    """All of them as a test's parameters; those that are not `kept` are left to `make test-slow`."""
    return [layout if layout in kept else pytest.param(layout, marks=pytest.mark.slow) for layout in layouts]


def transformer_config(layout: Layout, **overrides: Any) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings: dict[str, Any] = dict(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=4, ffn_hidden_size=FFN, moe_ffn_hidden_size=FFN,
        num_moe_experts=EXPERTS, moe_router_topk=WINNERS, moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0,
        moe_token_dispatcher_type=layout.dispatcher, add_bias_linear=False, gated_linear_unit=True,
        activation_func=F.silu, bias_activation_fusion=False, use_cpu_initialization=True,
        gradient_accumulation_fusion=False, tensor_model_parallel_size=layout.tp, sequence_parallel=layout.tp > 1,
        context_parallel_size=layout.cp, expert_model_parallel_size=layout.ep, expert_tensor_parallel_size=layout.etp,
        calculate_per_token_loss=layout.per_token,
    )  # fmt: skip
    return TransformerConfig(**(settings | overrides))


def initialize(layout: Layout) -> None:
    """torch.distributed and Megatron's groups."""
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
    )


def build_layer(
    layout: Layout,
    weights: Weights,
    config: CompeteConfig,
    current_step: Callable[[], int] = lambda: 0,
    **overrides: Any,
) -> Any:
    """A `CompeteMoELayer` that holds this rank's share of `weights`."""
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.moe.competition import Competition
    from megatron_compete.moe.layer import CompeteMoELayer

    transformer = transformer_config(layout, **overrides)
    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    competition = Competition(config, (1,), current_step=current_step)
    layer = CompeteMoELayer(
        transformer, spec.keywords["submodules"], pg_collection=get_default_pg_collection(), competition=competition
    )
    layer.set_layer_number(1)
    load(layer, weights)
    return layer.train()


@dataclass(frozen=True)
class Shard:
    """Which part of the weights a rank holds."""

    experts: tuple[int, ...]
    etp_rank: int
    etp: int
    tp_rank: int
    tp: int

    @classmethod
    def of(cls, layer: Any) -> "Shard":
        dispatcher = layer.token_dispatcher
        return cls(
            tuple(layer.local_expert_indices), dispatcher.tp_rank, dispatcher.tp_size,
            layer.attn_tp_group.rank(), layer.attn_tp_group.size(),
        )  # fmt: skip

    def share(self, whole: Weights) -> dict[str, Tensor]:
        """This rank's part of `whole`, named as in `parameters`."""
        part = {"router": whole.router}
        for local, index in enumerate(self.experts):
            fc1, fc2 = whole.fc1[index], whole.fc2[index]
            part |= _sharded(f"expert{local}", fc1, fc2, self.etp_rank, self.etp)
        if whole.shared_fc1 is not None and whole.shared_fc2 is not None:
            part |= _sharded("shared", whole.shared_fc1, whole.shared_fc2, self.tp_rank, self.tp)
        if whole.latent_down is not None and whole.latent_up is not None:
            part |= {"latent_down": whole.latent_down, "latent_up": whole.latent_up}
        return part


def _sharded(name: str, fc1: Tensor, fc2: Tensor, rank: int, size: int) -> dict[str, Tensor]:
    """A tensor parallel rank's shard of an MLP; gate and up of fc1 are sharded apart, as Megatron does."""
    gate, up = (half.chunk(size)[rank] for half in fc1.chunk(2))
    return {f"{name}.fc1": torch.cat([gate, up]), f"{name}.fc2": fc2.chunk(size, dim=1)[rank]}


def parameters(layer: Any) -> dict[str, torch.nn.Parameter]:
    """The layer's parameters under the names of `Shard.share`."""
    mlps = {f"expert{local}": expert for local, expert in enumerate(layer.experts.local_experts)}
    if layer.shared_experts is not None:
        mlps["shared"] = layer.shared_experts
    named = {"router": layer.router.weight}
    for name, mlp in mlps.items():
        named |= {f"{name}.fc1": mlp.linear_fc1.weight, f"{name}.fc2": mlp.linear_fc2.weight}
    if layer.config.moe_latent_size:
        named |= {"latent_down": layer.fc1_latent_proj.weight, "latent_up": layer.fc2_latent_proj.weight}
    return named


def load(layer: Any, weights: Weights) -> None:
    """Copy this rank's share of `weights`."""
    share = Shard.of(layer).share(weights)
    for name, parameter in parameters(layer).items():
        parameter.data.copy_(share[name])

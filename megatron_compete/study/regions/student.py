"""The student: one MoE layer of Megatron-Core, routed by any router of this package, or by the truth.

T inputs of a step are one sequence of T positions, so that a sample of positions is one of inputs. H their size, E experts.
"""

import argparse
import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.enums import ModelType
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.metrics import LogIntervals
from megatron_compete.moe.specs import Exchange, competing, routing_by, unchanged
from megatron_compete.study.regions.arguments import ORACLE
from megatron_compete.study.regions.growth import ROUTER, Weights, grown, read_weights
from megatron_compete.trainers import ModelCompetition

NEVER = LogIntervals(scalars=None, console=1 << 62)
"""Nobody reads the competition's metrics here."""


class OracleRouter(TopKRouter):
    """Sends each input to the expert of its region, at weight 1. It learns nothing."""

    regions_T: Tensor
    """Regions of the inputs that come next."""

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `TopKRouter.routing`: logits [S, B, E], which count for nothing, to weights and map [T, E]."""
        routing_map_TE = F.one_hot(self.regions_T, logits.shape[-1]).bool()
        return routing_map_TE.to(logits.dtype), routing_map_TE


class Student(MegatronModule):
    """The layer as a model of Megatron-Core's."""

    def __init__(self, config: TransformerConfig, layer: Any) -> None:
        super().__init__(config)
        self.layer = layer
        self.model_type = ModelType.encoder_or_decoder

    def set_input_tensor(self, tensor: object) -> None:
        """Of pipelines; this model has one stage."""

    def forward(self, inputs_TH: Tensor, regions_T: Tensor) -> Tensor:
        """Outputs [T, H]. The regions are for the oracle alone."""
        if isinstance(self.layer.router, OracleRouter):
            self.layer.router.regions_T = regions_T
        output, _ = self.layer(inputs_TH.unsqueeze(1))
        return output.squeeze(1)

    @torch.no_grad()
    def weights(self) -> Weights:
        """All weights, experts stacked."""
        experts = self.layer.experts.local_experts
        of_experts = {name: torch.stack([getattr(one, f"linear_{name}").weight for one in experts]) for name in ("fc1", "fc2")}  # fmt: skip
        return {ROUTER: self.layer.router.weight.clone(), **of_experts}

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Take these weights."""
        self.layer.router.weight.copy_(weights[ROUTER])
        for index, expert in enumerate(self.layer.experts.local_experts):
            expert.linear_fc1.weight.copy_(weights["fc1"][index])
            expert.linear_fc2.weight.copy_(weights["fc2"][index])


def _one_rank(model: Any, *args: Any, **keywords: Any) -> None:
    """In place of `finalize_model_grads`: there is nothing to reduce. Baselines end their steps after it."""


def transformer_config(args: argparse.Namespace) -> TransformerConfig:
    """Megatron-Core's settings of the one layer.

    Raises:
        CompeteError: Megatron-Core refuses them.
    """
    try:
        return _transformer_config(args)
    except (AssertionError, ValueError) as error:
        raise CompeteError(f"Megatron-Core refuses these arguments: {error}") from None


def _transformer_config(args: argparse.Namespace) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1, hidden_size=args.hidden_size, num_attention_heads=1, ffn_hidden_size=args.moe_ffn_hidden_size,
        moe_ffn_hidden_size=args.moe_ffn_hidden_size, num_moe_experts=args.num_experts,
        moe_router_topk=args.moe_router_topk, moe_router_pre_softmax=args.moe_router_pre_softmax,
        moe_router_load_balancing_type="aux_loss" if args.moe_aux_loss_coeff else "none",
        moe_aux_loss_coeff=args.moe_aux_loss_coeff, moe_token_dispatcher_type="alltoall", add_bias_linear=False,
        gated_linear_unit=False, activation_func=F.relu, bias_activation_fusion=False, transformer_impl="local",
        gradient_accumulation_fusion=False, use_cpu_initialization=not torch.cuda.is_available(),
        finalize_model_grads_func=_one_rank,
    )  # fmt: skip


def build_student(args: argparse.Namespace, current_step: Callable[[], int]) -> tuple[Student, ModelCompetition | None]:
    """The student with its initial weights, and its competition where it has one.

    Raises:
        CompeteError: a setting that excludes the router, or an --initial that does not fit.
    """
    config = transformer_config(args)
    builder = get_moe_module_spec(use_te=False, num_experts=args.num_experts, moe_grouped_gemm=False)
    competition = None
    exchange: Exchange = unchanged
    if args.router == "compete":
        competition = ModelCompetition(CompeteConfig.from_arguments(args), config, current_step, NEVER)
        exchange = competing(config, competition)
    elif args.router == ORACLE:
        exchange = _by_oracle
    elif args.router != "topk":
        exchange = routing_by(config, args.router, BaselineConfig.from_arguments(args))
    layer = exchange(builder)(config, layer_number=1, pg_collection=_groups())
    layer.set_layer_number(1)
    student = Student(config, layer)
    student.load(initial_weights(args, student.weights()))
    if torch.cuda.is_available():
        student.cuda()
    return student, competition


def _by_oracle(moe: functools.partial) -> functools.partial:
    submodules = dataclasses.replace(moe.keywords["submodules"], router=OracleRouter)
    return functools.partial(moe.func, *moe.args, **(moe.keywords | {"submodules": submodules}))


def _groups() -> ProcessGroupCollection:
    return get_default_pg_collection()


def initial_weights(args: argparse.Namespace, like: Weights) -> Weights:
    """Weights by the seed alone, the same under every router; from --initial where it is given.

    Args:
        like: weights of the same shapes.
    """
    fresh = {
        name: args.init_method_std * torch.randn(one.shape, generator=_stream(args.seed, name))
        for name, one in like.items()
    }
    if args.initial is None:
        return fresh
    noise = _stream(args.seed, "noise of copies")
    return grown(read_weights(args.initial), fresh, args.grow_experts, args.grow_router, args.grow_noise, noise)


def _stream(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))

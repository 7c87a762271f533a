"""The end of a training step: variable routers get what was observed on all ranks, and change their state.

It runs where Megatron updates its own expert bias, after the last microbatch's backward pass, by the hook that Megatron
keeps for it (`TransformerConfig.finalize_model_grads_func`). Evaluation does not come by.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.baselines.metrics import install_variable_metrics
from megatron_compete.moe.baselines.variable import VariableRouter

Finalize = Callable[..., None]


def install_router_step(config: TransformerConfig, router: type) -> None:
    """Let the routers of this model end each of its training steps, and have their experts per token logged.

    Needed on every pipeline stage, dense ones too.

    Args:
        router: the model's kind of router; any but a `VariableRouter` has no state and needs nothing.
    """
    if not issubclass(router, VariableRouter):
        return
    install_variable_metrics()
    upstream = config.finalize_model_grads_func or finalize_model_grads
    if not _is_ours(upstream):
        config.finalize_model_grads_func = functools.partial(_finalize, upstream, router.num_of_model)


def _is_ours(function: Finalize) -> bool:
    """A stage of several model chunks asks once for each."""
    return isinstance(function, functools.partial) and function.func is _finalize


def _finalize(upstream: Finalize, num_of_model: int, model: list[torch.nn.Module], *args: Any, **kwargs: Any) -> None:
    upstream(model, *args, **kwargs)
    groups = kwargs.get("pg_collection")
    pipeline = groups.pp if groups is not None else parallel_state.get_pipeline_model_parallel_group()
    end_step(model, num_of_model, pipeline)


@torch.no_grad()
def end_step(model: list[torch.nn.Module], num_of_model: int, pipeline: torch.distributed.ProcessGroup) -> None:
    """Sum the observations of all routers in training over their ranks, in one all-reduce, and end their step.

    Args:
        model: this rank's chunks of the model.
        num_of_model: the routers' `num_of_model`; if any, one more all-reduce adds up layers and pipeline stages.
        pipeline: the group of the stages.
    """
    routers = [m for chunk in model for m in chunk.modules() if isinstance(m, VariableRouter) and m.training]
    sums = [_observed(router) for router in routers]
    if routers:
        packed = torch.cat(sums)
        torch.distributed.all_reduce(packed, group=routers[0].tp_dp_cp_group)
        sums = list(packed.split([len(part) for part in sums]))
    if num_of_model:
        device = next(model[0].parameters()).device
        of_model = sum(sums, start=torch.zeros(num_of_model, dtype=torch.float64, device=device))
        torch.distributed.all_reduce(of_model, group=pipeline)
        sums = [of_model] * len(routers)
    for router, part in zip(routers, sums):
        router.end_step(part)
        router.observed = None


def _observed(router: VariableRouter) -> Tensor:
    if router.observed is not None:
        return router.observed
    return torch.zeros(router.num_observed, dtype=torch.float64, device=router.weight.device)

"""Optimizer state from a run with expert parallelism into one without, and the other way round.

Megatron has one optimizer for all parameters at EP = 1, and at EP > 1 a chain of two: one for the experts, one for the
rest. The tensors of a checkpoint do not know of this (with Megatron's plain optimizers, and with
--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable, they are saved by their parameters' names). The
settings beside them do: learning rate, weight decay and step of each parameter group lie in a dictionary for each
optimizer of the chain. `ChainedOptimizer.load_state_dict` then finds its own entries and the checkpoint's side by side,
and stops with "Expected 2 entries in state dict, but got 4". What is put around it here hands every optimizer of the
running chain the settings of its parameter groups, whichever optimizer had them when they were saved.

Without Apex and Transformer Engine, as on a CPU, the distributed optimizer cannot load any state: it asks its own for
the step before there was one; torch's Adam keeps the step among the tensors, where a checkpoint does not have it; and
one step that all parameters share is counted up by each of them. `_allocating`, `_without_step` and `_own_steps` see to
these.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer, param_group_identifier_keys

from megatron_compete.common.errors import CompeteError
from megatron_compete.upstream import wrap_symbol

State = dict[Any, Any]
Group = dict[str, Any]

IDENTITY = tuple(name for name in param_group_identifier_keys if name != "is_expert_parallel")
"""What makes a parameter group the same group in another layout."""


@contextlib.contextmanager
def any_expert_layout() -> Iterator[None]:
    """Within it, optimizers load the state of another expert parallel layout."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(wrap_symbol("megatron.core.optimizer:ChainedOptimizer.load_state_dict", _load_regrouped))
        if not HAVE_APEX_OR_TE:
            stack.enter_context(
                wrap_symbol("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict", _allocating)
            )
            stack.enter_context(
                wrap_symbol(
                    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict", _own_steps
                )
            )
            stack.enter_context(
                wrap_symbol(
                    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer._set_main_param_and_optimizer_states",
                    _without_step,
                )
            )
        yield


def _load_regrouped(upstream: Callable[..., None], self: ChainedOptimizer, state_dict: State) -> None:
    upstream(self, regroup(state_dict, self.chained_optimizers))


def _allocating(upstream: Callable[..., State], self: DistributedOptimizer) -> State:
    if not self.optimizer.state:
        self.init_state_fn(self.optimizer, self.config)
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(0.0)
    return upstream(self)


def _without_step(
    upstream: Callable[..., None], self: DistributedOptimizer, model_param: torch.nn.Parameter, tensors: State
) -> None:
    upstream(self, model_param, {"step": None, **tensors})  # what is no tensor is left as it is


def _own_steps(upstream: Callable[..., None], self: DistributedOptimizer, state_dict: State) -> None:
    upstream(self, state_dict)
    for state in self.optimizer.state.values():
        state["step"] = state["step"].clone()


def regroup(state_dict: State, optimizers: Sequence[MegatronOptimizer]) -> State:
    """The state that `optimizers` expect, from what Megatron merged of a checkpoint and their own.

    Args:
        state_dict: loaded tensors where `optimizers` want them (by number if there are several), and the checkpoint's
            settings where they were saved.
    Raises:
        CompeteError: the checkpoint's optimizer has no such parameter group.
    """
    chained = {key: value for key, value in state_dict.items() if isinstance(key, int)}
    single = {key: value for key, value in state_dict.items() if not isinstance(key, int)}
    if not chained or not single:
        return state_dict  # saved as it is loaded
    if len(optimizers) == 1:
        return _with_settings(single, [chained[number] for number in sorted(chained)], optimizers[0])
    return {number: _with_settings(chained[number], [single], one) for number, one in enumerate(optimizers)}


def _with_settings(state: State, saved: list[State], optimizer: MegatronOptimizer) -> State:
    """`state` of one optimizer with the settings in `saved`, the states of all optimizers that saved."""
    whole = {**saved[0], **state}
    saved_inner = [_inner(one) for one in saved]
    inner = dict(_inner(state))
    inner["param_groups"] = _groups(inner.get("param_groups"), saved_inner, optimizer)
    steps = {one["state"]["common_step"] for one in saved_inner if "common_step" in one.get("state", {})}
    if steps:
        inner["state"] = {**inner.get("state", {}), "common_step": max(steps)}
    if "optimizer" in whole:
        return {**whole, "optimizer": {**saved_inner[0], **inner}}
    return {**whole, **inner}


def _inner(state: State) -> State:
    """The torch optimizer's part: mixed precision optimizers hold it under a name, the plain one is it."""
    inner: State = state.get("optimizer", {} if "param_state" in state or "fp32_from_fp16_params" in state else state)
    return inner


def _groups(own: list[Group] | None, saved: list[State], optimizer: MegatronOptimizer) -> list[Group]:
    """For each parameter group of `optimizer` the saved settings, with the parameters it has here."""
    by_identity = {_identity(group): group for one in saved for group in one["param_groups"]}
    groups = []
    for number, current in enumerate(optimizer.param_groups):
        if _identity(current) not in by_identity:
            raise CompeteError(
                f"the checkpoint's optimizer has no parameter group like {dict(zip(IDENTITY, _identity(current)))}: "
                "give the arguments it was trained with, or start without its state, --no-load-optim"
            )
        group = {**by_identity[_identity(current)], "is_expert_parallel": current.get("is_expert_parallel", False)}
        if own is not None:
            group["params"] = own[number]["params"]
        groups.append(group)
    return groups


def _identity(group: Group) -> tuple[Any, ...]:
    return tuple(group.get(name, group.get(f"pre_{name}")) for name in IDENTITY)

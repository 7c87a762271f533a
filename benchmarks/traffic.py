"""Bytes that a rank hands to collectives for other ranks.

Counted where every collective of torch.distributed arrives, whatever its name in Python and whoever bound that name
when: at the dispatcher's `c10d` operators (torch's own CommDebugMode looks at the same place).
"""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SentBytes(TorchDispatchMode):
    """Counts, inside `with SentBytes() as sent:`, the bytes this rank sends to others; read `sent.total`.

    What stays on the rank is not counted, and the algorithm is taken to be the one that sends least: an all-gather
    sends its input to each other rank, an all-to-all everything but the rank's own split, a reduce-scatter everything
    but the rank's own part, an all-reduce a reduce-scatter and an all-gather of the result. Backward passes count
    where `backward()` is called inside.

    Raises:
        NotImplementedError: a collective without a rule here; nothing is left out without a word.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_collective: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Bytes sent, over all collectives."""
        return sum(self.by_collective.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            if name not in RULES:
                raise NotImplementedError(f"no rule for the bytes that {func} sends: add one to {__name__}.RULES")
            call = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
            group = dist.ProcessGroup.unbox(call["process_group"])
            self.by_collective[name] = self.by_collective.get(name, 0) + RULES[name](call, group)
        return func(*args, **kwargs)


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor))


def _all_gather(call: dict[str, Any], group: dist.ProcessGroup) -> int:
    return _bytes(call.get("input_tensor", call.get("input_tensors"))) * (group.size() - 1)


def _reduce_scatter(call: dict[str, Any], group: dist.ProcessGroup) -> int:
    return _bytes(call.get("input_tensor", call.get("input_tensors"))) * (group.size() - 1) // group.size()


def _all_reduce(call: dict[str, Any], group: dist.ProcessGroup) -> int:
    return 2 * _bytes(call["tensors"]) * (group.size() - 1) // group.size()


def _all_to_all(call: dict[str, Any], group: dist.ProcessGroup) -> int:
    sent: Tensor = call["input"]
    splits = call["input_split_sizes"]
    if not splits:
        return sent.nbytes * (group.size() - 1) // group.size()
    row = sent.nbytes // sent.shape[0] if sent.shape[0] else 0
    return row * (sum(splits) - splits[group.rank()])


def _broadcast(call: dict[str, Any], group: dist.ProcessGroup) -> int:
    return _bytes(call["tensors"]) * (group.size() - 1) if group.rank() == call["root_rank"] else 0


def _nothing(call: dict[str, Any], group: dist.ProcessGroup) -> int:
    return 0


RULES: dict[str, Callable[[dict[str, Any], dist.ProcessGroup], int]] = {
    "_allgather_base_": _all_gather,
    "allgather_": _all_gather,
    "_reduce_scatter_base_": _reduce_scatter,
    "reduce_scatter_": _reduce_scatter,
    "allreduce_": _all_reduce,
    "alltoall_base_": _all_to_all,
    "broadcast_": _broadcast,
    "barrier": _nothing,
}
"""What each `c10d` operator sends to other ranks, in bytes, from its arguments by name."""


def count(step: Callable[[], Any]) -> tuple[Any, int]:
    """`step()` and the bytes that this rank sent during it."""
    with SentBytes() as sent:
        result = step()
    return result, sent.total

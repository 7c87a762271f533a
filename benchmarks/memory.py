"""Peak memory of a stretch of code, above what was there before."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory:
    """`with PeakMemory() as memory:`, then `memory.peak`: the most bytes alive at once, above the state before.

    On CUDA that is the caching allocator's counter. torch's CPU allocator has none, so there `LiveStorages` counts
    the bytes of all tensors that came into being inside and are still alive.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._storages = LiveStorages()

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._storages.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated() - self._before
        else:
            self._storages.__exit__(*exception)
            self.peak = self._storages.peak


class LiveStorages(TorchDispatchMode):
    """Follows every storage that an operator returns, in forward and backward, until it is freed.

    Exact for tensors: views share a storage and count once, and torch keeps a storage's Python object for as long as
    the storage itself lives, so the finalizer runs when the memory is given back, whoever held it last (a variable,
    the autograd graph). Not seen: scratch memory that an operator takes and returns within its own call, and what a
    communication backend copies for itself. A test compares the peak with the record that torch's profiler keeps of
    the CPU allocator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.current = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in inputs and storage._cdata not in self.live:
                self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        self.live[storage._cdata] = storage.nbytes()
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, storage._cdata).atexit = False

    def _forget(self, address: int) -> None:
        self.current -= self.live.pop(address)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]

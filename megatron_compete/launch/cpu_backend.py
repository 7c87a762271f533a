"""Megatron's trainer on a host without CUDA.

`megatron.training` calls `torch.cuda` in about a hundred places; nearly all of them (streams, events, memory counters,
"the current device") have an obvious answer on a CPU. `activate()` puts those answers in place, one small function per
replaced symbol (`megatron_compete/upstream/table.py` says why), and `deactivate()` takes them back. Modules and kernels
that only packages for CUDA have are beside it, in `cpu_modules.py` and `cpu_kernels.py`. Nothing is installed while a
CUDA device is visible. Everything runs over gloo, in the caller's thread.
"""

import contextlib
import os
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.overrides import TorchFunctionMode

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.cpu_linear import DuplicatedLinear
from megatron_compete.upstream import replace_symbol, wrap_symbol

CPU = torch.device("cpu")

ARGUMENTS: dict[str, object] = {
    "distributed_backend": "gloo",
    "transformer_impl": "local",
    "use_cpu_initialization": True,
    "masked_softmax_fusion": False,
    "bias_gelu_fusion": False,
    "bias_swiglu_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
    "no_persist_layer_norm": True,
    "attention_backend": None,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "cross_entropy_loss_fusion": False,
}
"""Values that Megatron's arguments must have on a CPU: every one switches off a CUDA kernel or picks gloo."""


def is_needed() -> bool:
    """Whether this host has no CUDA device, so that only the stand-in can train."""
    return not torch.cuda.is_available()


class NullStream:
    """A stream of a device that does everything at once, in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def wait_stream(self, stream: object) -> None: ...
    def wait_event(self, event: object) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: "HostEvent | None" = None) -> "HostEvent":
        event = event or HostEvent()
        event.record()
        return event


class HostEvent:
    """A point in time on the host; `elapsed_time` is in milliseconds, as with CUDA events."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter()

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream: object = None) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "HostEvent") -> float:
        return (end.seconds - self.seconds) * 1e3


def _names_cuda(device: object) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


class CudaToCpu(TorchFunctionMode):
    """Sends tensors that ask for a CUDA device to the CPU.

    Megatron writes `device="cuda"` and `.cuda()` in many places. `Tensor.type()` is answered as on CUDA because
    `megatron.core.optimizer.clip_grads` asserts on that string.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)  # memory that a device may read at any time
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Answer of calls that only matter on a device with its own queue or allocator."""


def _zero(*args: Any, **kwargs: Any) -> int:
    """Memory counters: the host's memory is not torch's to count."""
    return 0


def _share_storage(discarded: torch.Tensor, recomputed: torch.Tensor) -> None:
    """What was discarded holds values again, in all its views; on a device upstream compiles this in C++."""
    storage, source = discarded.untyped_storage(), recomputed.untyped_storage()
    storage.resize_(source.nbytes())
    storage.copy_(source)


def _causal_mask(length: int) -> torch.Tensor:
    """True where a query [rows] must not see a key [columns]; a recomputed pass runs where no mode sends tensors to the CPU."""
    return torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)


@contextlib.contextmanager
def _stream_context(stream: object) -> Iterator[None]:
    yield


def answers() -> dict[str, Any]:
    """What CUDA is asked for, and what a CPU answers."""
    stream = NullStream()
    host = types.SimpleNamespace(
        name="cpu", major=0, minor=0, total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        multi_processor_count=os.cpu_count() or 1,
    )  # fmt: skip
    return {
        "torch.cuda:current_device": lambda: CPU,
        "torch.cuda:device_count": lambda: 1,  # initialize_megatron sets up model parallelism only where this is > 0
        "torch.cuda:set_device": _nothing,
        "torch.cuda:Stream": NullStream,
        "torch.cuda:Event": HostEvent,
        "torch.cuda:current_stream": lambda *a, **k: stream,
        "torch.cuda:default_stream": lambda *a, **k: stream,
        "torch.cuda:set_stream": _nothing,
        "torch.cuda:stream": _stream_context,
        "torch.cuda:synchronize": _nothing,
        "torch.cuda:empty_cache": _nothing,
        "torch.cuda:memory_stats": lambda *a, **k: defaultdict(int),
        "torch.cuda:memory_allocated": _zero,
        "torch.cuda:max_memory_allocated": _zero,
        "torch.cuda:memory_reserved": _zero,
        "torch.cuda:max_memory_reserved": _zero,
        "torch.cuda:device_memory_used": _zero,
        "torch.cuda:get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "torch.cuda:set_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "torch.cuda:manual_seed": torch.default_generator.manual_seed,
        "torch.cuda:get_device_capability": lambda *a, **k: (0, 0),
        "torch.cuda:get_device_properties": lambda *a, **k: host,
        "torch.cuda:is_current_stream_capturing": lambda: False,
        "torch.cuda.nvtx:range_push": _nothing,
        "torch.cuda.nvtx:range_pop": _nothing,
        "torch:Tensor.record_stream": _nothing,
        "torch.nn:Module.cuda": lambda module, device=None: module,
        "megatron.core.tensor_parallel.random:_get_cuda_rng_state": lambda *a, **k: torch.get_rng_state(),
        "megatron.core.tensor_parallel.random:_set_cuda_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "megatron.core.tensor_parallel.random:_get_share_storage": lambda: _share_storage,
        "megatron.core.fusions.fused_softmax:get_default_causal_mask": _causal_mask,
        "megatron.core.datasets.utils:compile_helpers": _nothing,
        "megatron.core.transformer.moe.moe_layer:HAVE_TE": True,
        "megatron.core.transformer.moe.moe_layer:TELinear": DuplicatedLinear,
    }


def _all_to_all_with_lists(
    upstream: Callable[..., Any], output: Any, input: Any, output_split_sizes: Any = None, input_split_sizes: Any = None, **kwargs: Any
) -> Any:  # fmt: skip
    """all_to_all_single takes its splits as a sequence; Megatron's dispatcher makes one of tensors that are on CUDA alone."""

    def as_list(splits: Any) -> Any:
        return splits.tolist() if hasattr(splits, "tolist") else splits

    return upstream(output, input, as_list(output_split_sizes), as_list(input_split_sizes), **kwargs)


def _all_gather_of_unequal(
    upstream: Callable[..., Any], tensor_list: Any, tensor: Any, group: Any = None, **kwargs: Any
) -> Any:
    """gloo gathers equal tensors only; Megatron's dispatcher gathers each rank's tokens over expert tensor ranks."""
    rows = [part.shape[0] for part in tensor_list if part.dim() > 0]
    if len(set(rows)) <= 1:
        return upstream(tensor_list, tensor, group=group, **kwargs)
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    received = [torch.empty_like(padded) for _ in tensor_list]
    upstream(received, padded, group=group)
    for part, whole in zip(tensor_list, received):
        part.copy_(whole[: part.shape[0]])
    return None


def _without_cuda(upstream: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """ "Megatron requires CUDA" is asserted unless this says otherwise."""
    return upstream(*args, **{"allow_no_cuda": True, **kwargs})


def _checkpoint_outside_of_fp8(upstream: Callable[..., Any], self: Any, fp8: Any = None) -> None:
    """Megatron asks Transformer Engine for the state of FP8 unless told None, which it tells only some checkpoints."""
    upstream(self, fp8=None)


WRAPPED: dict[str, Callable[..., Any]] = {
    "torch.distributed:all_to_all_single": _all_to_all_with_lists,
    "torch.distributed:all_gather": _all_gather_of_unequal,
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__": _checkpoint_outside_of_fp8,
    "megatron.training.training:initialize_megatron": _without_cuda,
}
"""What CPUs do as well, once they are asked in another way."""

_active = contextlib.ExitStack()
_is_active = False


def is_active() -> bool:
    """Whether the stand-in is in place in this process."""
    return _is_active


def activate() -> None:
    """Put the stand-in in place in this process; again is harmless.

    Raises:
        CompeteError: a CUDA device is visible; the stand-in would hide it.
    """
    global _is_active
    if _is_active:
        return
    if not is_needed():
        raise CompeteError("the CPU stand-in is for hosts without CUDA, and this one has it: train on the device")
    import megatron.core.datasets.helpers_cpp  # noqa: F401  the compiled helpers that make compiling needless

    _is_active = True
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # asked for with tensor parallelism; means nothing here
    # Compiling Megatron's small fused functions for a CPU costs 40 s at start-up and gains nothing.
    torch.compiler.set_stance("force_eager")
    _active.callback(torch.compiler.set_stance, "default")
    from megatron_compete.launch import cpu_kernels, cpu_modules  # they import Megatron

    for symbol, answer in (answers() | cpu_kernels.REPLACED | cpu_modules.REPLACED).items():
        _active.enter_context(replace_symbol(symbol, answer))
    for symbol, around in (WRAPPED | cpu_modules.WRAPPED).items():
        _active.enter_context(wrap_symbol(symbol, around))
    _active.enter_context(CudaToCpu())
    if int(os.environ.get("RANK", "0")) == 0:
        print("megatron-compete: no CUDA device, training on CPU over gloo", flush=True)


def deactivate() -> None:
    """Take everything back that `activate` put in place."""
    global _is_active
    _active.close()
    _is_active = False

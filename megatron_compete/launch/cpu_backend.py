"""Megatron's trainer on a host without CUDA.

`megatron.training` calls `torch.cuda` in about a hundred places; nearly all of them (streams, events, memory counters,
"the current device") have an obvious answer on a CPU. `activate()` installs those answers, one small function per
stand-in with the place that needs it, and `deactivate()` takes them back. Nothing is installed while a CUDA device is
visible. Everything runs over gloo, in the caller's thread.
"""

import contextlib
import copy
import functools
import logging
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

logger = logging.getLogger(__name__)

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
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if func is torch.Tensor.record_stream:
            return None
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


@contextlib.contextmanager
def _stream_context(stream: object) -> Iterator[None]:
    yield


def _torch_cuda_stand_ins() -> dict[str, Any]:
    """What `torch.cuda.NAME` answers on a CPU."""
    stream = NullStream()
    host = types.SimpleNamespace(
        name="cpu", major=0, minor=0, total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        multi_processor_count=os.cpu_count() or 1,
    )  # fmt: skip
    return {
        "current_device": lambda: CPU,
        "device_count": lambda: 1,  # initialize_megatron sets up model parallelism only where this is > 0
        "set_device": _nothing,
        "Stream": NullStream,
        "Event": HostEvent,
        "current_stream": lambda *a, **k: stream,
        "default_stream": lambda *a, **k: stream,
        "set_stream": _nothing,
        "stream": _stream_context,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "memory_stats": lambda *a, **k: defaultdict(int),
        "memory_allocated": _zero,
        "max_memory_allocated": _zero,
        "memory_reserved": _zero,
        "max_memory_reserved": _zero,
        "device_memory_used": _zero,
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "set_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": _nothing,
        "get_device_capability": lambda *a, **k: (0, 0),
        "get_device_properties": lambda *a, **k: host,
        "is_current_stream_capturing": lambda: False,
    }


def _all_to_all_with_lists(all_to_all: Callable[..., Any]) -> Callable[..., Any]:
    """gloo's all_to_all_single wants its splits as lists; Megatron's dispatcher hands over numpy arrays."""

    def as_list(splits: Any) -> Any:
        return splits.tolist() if hasattr(splits, "tolist") else splits

    @functools.wraps(all_to_all)
    def call(output, input, output_split_sizes=None, input_split_sizes=None, **kwargs):
        return all_to_all(output, input, as_list(output_split_sizes), as_list(input_split_sizes), **kwargs)

    return call


def _all_gather_of_unequal(all_gather: Callable[..., Any]) -> Callable[..., Any]:
    """gloo gathers equal tensors only; Megatron's dispatcher gathers each rank's tokens over expert tensor ranks."""

    @functools.wraps(all_gather)
    def call(tensor_list, tensor, group=None, **kwargs):
        rows = [part.shape[0] for part in tensor_list if part.dim() > 0]
        if len(set(rows)) <= 1:
            return all_gather(tensor_list, tensor, group=group, **kwargs)
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        received = [torch.empty_like(padded) for _ in tensor_list]
        all_gather(received, padded, group=group)
        for part, whole in zip(tensor_list, received):
            part.copy_(whole[: part.shape[0]])
        return None

    return call


def _reduce_scatter_of_unequal(reduce_scatter: Callable[..., Any]) -> Callable[..., Any]:
    """The transpose of `_all_gather_of_unequal`: gloo reduces and scatters equal parts only."""

    @functools.wraps(reduce_scatter)
    def call(output, input_list, *args, group=None, **kwargs):
        rows = [part.shape[0] for part in input_list]
        if len(set(rows)) <= 1:
            return reduce_scatter(output, input_list, *args, group=group, **kwargs)
        whole = torch.cat(input_list)
        torch.distributed.all_reduce(whole, group=group)
        output.copy_(whole.split(rows)[torch.distributed.get_rank(group)])
        return None

    return call


def _norm_with_sequence_parallel(build: Callable[..., Any]) -> Callable[..., Any]:
    """Megatron's torch norm refuses sequence parallelism; all it lacks is the mark on its weights.

    `finalize_model_grads` sums the gradients of parameters marked `sequence_parallel` over the tensor parallel ranks.
    """

    def call(cls: type, config: Any, *args: Any, **kwargs: Any) -> Any:
        plain = copy.copy(config)
        plain.sequence_parallel = False
        norm = build(cls, plain, *args, **kwargs)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm

    return call


_undo: list[Callable[[], None]] = []


def _replace(owner: Any, name: str, stand_in: Any) -> None:
    missing = object()
    original = owner.__dict__.get(name, missing)
    setattr(owner, name, stand_in)
    _undo.append(lambda: delattr(owner, name) if original is missing else setattr(owner, name, original))


def _stand_in_for_torch() -> None:
    for name, stand_in in _torch_cuda_stand_ins().items():
        _replace(torch.cuda, name, stand_in)
    _replace(torch.cuda.nvtx, "range_push", _nothing)
    _replace(torch.cuda.nvtx, "range_pop", _nothing)
    _replace(torch.nn.Module, "cuda", lambda module, device=None: module)
    all_to_all = torch.distributed.all_to_all_single
    _replace(torch.distributed, "all_to_all_single", _all_to_all_with_lists(all_to_all))
    _replace(torch.distributed, "all_gather", _all_gather_of_unequal(torch.distributed.all_gather))
    _replace(torch.distributed, "reduce_scatter", _reduce_scatter_of_unequal(torch.distributed.reduce_scatter))
    mode = CudaToCpu()
    mode.__enter__()
    _undo.append(lambda: mode.__exit__(None, None, None))


def _stand_in_for_megatron() -> None:
    import megatron.core.datasets.helpers_cpp  # noqa: F401  the compiled helpers that make compiling needless
    import megatron.core.datasets.utils as dataset_utils
    import megatron.core.tensor_parallel.random as rng
    import megatron.core.transformer.torch_norm as torch_norm
    import megatron.training.initialize as initialize
    import megatron.training.training as training

    _replace(rng, "_get_cuda_rng_state", lambda *a, **k: torch.get_rng_state())
    _replace(rng, "_set_cuda_rng_state", lambda state, *a, **k: torch.set_rng_state(state))
    # The wheel holds the compiled dataset helpers but not the Makefile that compile_helpers() would run.
    _replace(dataset_utils, "compile_helpers", _nothing)
    build = torch_norm.WrappedTorchNorm.__new__
    _replace(torch_norm.WrappedTorchNorm, "__new__", staticmethod(_norm_with_sequence_parallel(build)))
    # "Megatron requires CUDA" is asserted unless this says otherwise.
    initialize_on_cpu = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)
    _replace(training, "initialize_megatron", initialize_on_cpu)


def is_active() -> bool:
    """Whether the stand-in is installed in this process."""
    return bool(_undo)


def activate() -> None:
    """Install the stand-in in this process; again is harmless.

    Raises:
        CompeteError: a CUDA device is visible; the stand-in would hide it.
    """
    if is_active():
        return
    if not is_needed():
        raise CompeteError("the CPU stand-in is for hosts without CUDA, and this one has it: train on the device")
    # Compiling Megatron's small fused functions for a CPU costs 40 s at start-up and gains nothing.
    torch.compiler.set_stance("force_eager")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # asked for with tensor parallelism; means nothing here
    _undo.append(lambda: torch.compiler.set_stance("default"))
    _stand_in_for_torch()
    _stand_in_for_megatron()
    if int(os.environ.get("RANK", "0")) == 0:
        print("megatron-compete: no CUDA device, training on CPU over gloo", flush=True)


def deactivate() -> None:
    """Take everything back that `activate` installed."""
    while _undo:
        _undo.pop()()

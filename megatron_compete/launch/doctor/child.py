"""What runs in a probe's process: imports one package and says what it can do, as one JSON object on stdout.

Facts are read from where Megatron itself keeps them, so that the report says what Megatron will do and not what we
think of it.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]

FP8_CHECKS = {
    "delayed": "is_fp8_available",
    "tensorwise": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}
"""Recipe of --fp8-recipe -> Transformer Engine's own check (transformer_engine/pytorch/quantization.py)."""

APEX_EXTENSIONS = ("amp_C", "fused_layer_norm_cuda", "fused_weight_gradient_mlp_cuda", "fast_layer_norm")
"""Compiled parts of apex that Megatron looks for; apex imports without them."""

MEGATRON_FACTS = {
    "have_te": ("megatron.core.extensions.transformer_engine", "HAVE_TE"),
    "adam": ("megatron.core.optimizer", "Adam"),
    "multi_tensor": ("megatron.core.optimizer.clip_grads", "multi_tensor_applier"),
    "layer_norm_kernel": ("megatron.core.fusions.fused_layer_norm", "HAVE_FUSED_LAYER_NORM"),
    "weight_gradient": ("megatron.core.tensor_parallel.layers", "_grad_accum_fusion_available"),
    "grouped_linear": ("megatron.core.extensions.transformer_engine", "TEColumnParallelGroupedLinear"),
    "permute": ("megatron.core.extensions.transformer_engine", "fused_permute"),
    "router": ("megatron.core.extensions.transformer_engine", "fused_topk_with_score_function"),
    "rope": ("megatron.core.models.common.embeddings.rope_utils", "fused_apply_rotary_pos_emb"),
    "deep_ep": ("megatron.core.transformer.moe.fused_a2a", "HAVE_DEEP_EP"),
    "hybrid_ep": ("megatron.core.transformer.moe.fused_a2a", "HAVE_HYBRIDEP"),
}
"""Fact -> where Megatron decides it while it is imported."""

SOFTMAX_KERNEL = "scaled_upper_triang_masked_softmax_cuda"
"""Imported by Megatron's causal softmax when it runs (megatron/core/fusions/fused_softmax.py)."""


def torch_facts() -> Facts:
    """Version, builds, and every device with the result of a product on it."""
    import torch

    facts: Facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "nccl": None,
        "computes": _product_is_right("cpu"),
        "driver_cuda": 0,
        "cuda_error": "",
        "devices": [],
    }
    if not torch.version.cuda:
        return facts
    facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
    facts["driver_cuda"] = _driver_cuda()
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        facts["cuda_error"] = _first_line(error)
        return facts
    facts["devices"] = [_device(index) for index in range(torch.cuda.device_count())]
    facts["peers"] = _peers(torch.cuda.device_count())
    facts["nvlinks"] = _nvlinks()
    return facts


def _driver_cuda() -> int:
    """Newest CUDA that the driver serves, as 1000 * major + 10 * minor; 0 without a driver (cuDriverGetVersion)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _product_is_right(device: str) -> str:
    """Empty if a matrix product on the device gives what it should, else what went wrong."""
    import torch

    try:
        product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        return "" if bool((product == 64).all()) else "a matrix product came out wrong"
    except RuntimeError as error:
        return _first_line(error)


def _device(index: int) -> Facts:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "error": _product_is_right(f"cuda:{index}"),
    }


def _peers(devices: int) -> list[bool]:
    """Whether each ordered pair of devices reaches the other's memory."""
    import torch

    return [torch.cuda.can_device_access_peer(a, b) for a in range(devices) for b in range(devices) if a != b]


def _nvlinks() -> list[int] | None:
    """Active NVLinks of each GPU; None without NVML's bindings (nvidia-ml-py)."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # NVML has dozens of errors; none of them says anything about torch
        return None
    return [_active_nvlinks(handle) for handle in handles]


def _active_nvlinks(handle: Any) -> int:
    import pynvml

    active = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += pynvml.nvmlDeviceGetNvLinkState(handle, link)
        except pynvml.NVMLError:  # this GPU has fewer
            break
    return active


def megatron_facts() -> Facts:
    """Megatron's version and the implementations that it chose while it was imported."""
    import warnings

    warnings.simplefilter("ignore")  # what it falls back from is in the facts
    import megatron.core

    # The local part is the revision of whatever repository the working directory is in.
    facts: Facts = {"version": megatron.core.__version__.partition("+")[0]}
    for fact, (module, attribute) in MEGATRON_FACTS.items():
        facts[fact] = _origin(getattr(importlib.import_module(module), attribute, None))
    facts["softmax"] = importlib.util.find_spec(SOFTMAX_KERNEL) is not None
    return facts


def _origin(value: Any) -> str | bool:
    """Flags as they are; of a class or function the package it comes from, empty for none."""
    if isinstance(value, bool) or value is None:
        return bool(value)
    return getattr(value, "__module__", type(value).__module__).split(".")[0]


def trainer_facts() -> Facts:
    """The trainer's own entry imports."""
    import warnings

    warnings.simplefilter("ignore")
    importlib.import_module("megatron_compete.training.pretrain")

    return {}


def transformer_engine_facts() -> Facts:
    """Version, and for each FP8 recipe why it cannot be used here (empty: it can)."""
    import transformer_engine
    import transformer_engine.pytorch as te

    facts: Facts = {"version": transformer_engine.__version__, "recipes": {}}
    for recipe, check in FP8_CHECKS.items():
        try:
            available, reason = getattr(te, check)(return_reason=True)
        except AttributeError:
            available, reason = False, f"{check} is not in this version"
        except RuntimeError as error:  # no driver
            available, reason = False, _first_line(error)
        facts["recipes"][recipe] = "" if available else _first_line(reason) or "not supported"
    return facts


def apex_facts() -> Facts:
    """Which of the compiled extensions that Megatron looks for are there."""
    import apex

    extensions = {name: importlib.util.find_spec(name) is not None for name in APEX_EXTENSIONS}
    return {"file": apex.__file__, "extensions": extensions}


def deep_ep_facts() -> Facts:
    """Which buffers of DeepEP there are."""
    import deep_ep

    return {"buffer": hasattr(deep_ep, "Buffer"), "hybrid": hasattr(deep_ep, "HybridEPBuffer")}


def mpi4py_facts() -> Facts:
    """The MPI library behind mpi4py. MPI itself is not initialised: that could wait for other ranks."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    return {"version": mpi4py.__version__, "library": " ".join(MPI.Get_library_version().strip("\0").split())}


PROBES: dict[str, tuple[str, Callable[[], Facts]]] = {
    "torch": ("torch", torch_facts),
    "megatron": ("megatron", megatron_facts),
    "trainer": ("megatron", trainer_facts),
    "transformer_engine": ("transformer_engine", transformer_engine_facts),
    "apex": ("apex", apex_facts),
    "deep_ep": ("deep_ep", deep_ep_facts),
    "mpi4py": ("mpi4py", mpi4py_facts),
}
"""Probe -> the package without which it is `missing`, and what it asks."""


def answer(name: str) -> dict[str, Any]:
    """The fields of a `Probed`."""
    package, ask = PROBES[name]
    if importlib.util.find_spec(package) is None:
        return {"state": "missing"}
    try:
        return {"state": "there", "facts": ask()}
    except (Exception, SystemExit) as error:
        return {"state": "broken", "why": f"{type(error).__name__}: {_first_line(error)}"}


def _first_line(error: object) -> str:
    """The first sentence of a message; what follows is often a page of advice."""
    lines = str(error).strip().splitlines()
    return re.split(r"(?<=\.)\s", lines[0].strip())[0] if lines else ""


def main() -> None:
    """Answer on the stdout that this process was given; whatever imports print goes to stderr."""
    report = os.dup(1)
    os.dup2(2, 1)
    os.write(report, json.dumps(answer(sys.argv[1])).encode())
    os._exit(0)  # an exit handler of a half-initialised library must not spoil the answer


if __name__ == "__main__":
    main()

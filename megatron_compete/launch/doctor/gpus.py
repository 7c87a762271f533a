"""Findings about CUDA devices and the links between them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megatron_compete.launch.doctor.finding import Finding
from megatron_compete.launch.doctor.probe import Probed

GROUP = "GPUs"

GIB = 2**30

KERNEL_DRIVER = Path("/proc/driver/nvidia/version")


def gpu_findings(torch: Probed) -> Iterator[Finding]:
    """Driver, devices, NCCL and links; none where torch does not import."""
    if torch.state != "there":
        return
    facts = torch.facts
    if not facts["cuda"]:
        yield Finding(GROUP, "CUDA", "missing", "torch has no CUDA", "install a CUDA build of torch", ("gpu",))
        return
    yield _driver(facts["cuda"], facts["driver_cuda"], facts["cuda_error"])
    nccl = facts["nccl"]
    yield Finding(GROUP, "NCCL", "ok" if nccl else "missing", nccl or "not in this build of torch", serves=("gpu",))
    if facts["devices"]:
        yield _devices(facts["devices"])
    if len(facts["devices"]) > 1:
        yield _links(facts.get("peers") or [], facts.get("nvlinks"))


def _driver(built_for: str, driver_cuda: int, error: str) -> Finding:
    kernel = _kernel_driver()
    serves = f"driver {kernel + ' ' if kernel else ''}serves CUDA {driver_cuda // 1000}.{driver_cuda % 1000 // 10}"
    if not error:
        return Finding(GROUP, "CUDA", "ok", f"{serves}, torch was built for {built_for}", serves=("gpu",))
    if not driver_cuda and not kernel:
        advice = "training runs on CPU over gloo here. In a container: --gpus all (docker), --nv (apptainer)"
        return Finding(GROUP, "CUDA", "missing", "no NVIDIA driver", advice, ("gpu",))
    advice = "a driver older than torch's CUDA, CUDA_VISIBLE_DEVICES empty, or no GPU handed into the container"
    value = f"{serves if driver_cuda else f'driver {kernel}, libcuda is missing'}; torch: {error}"
    return Finding(GROUP, "CUDA", "problem", value, advice, ("gpu",))


def _kernel_driver() -> str:
    """Version of the loaded kernel driver; empty without one."""
    try:
        words = KERNEL_DRIVER.read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdecimal() and word.count(".") >= 1), "")


def _devices(devices: list[dict]) -> Finding:
    kinds = Counter(
        f"{device['name']}, {device['memory_bytes'] / GIB:.0f} GiB, capability {device['capability']}"
        for device in devices
    )
    value = "; ".join(f"{number} x {kind}" for kind, number in kinds.items())
    errors = [f"GPU {index}: {device['error']}" for index, device in enumerate(devices) if device["error"]]
    if errors:
        advice = (
            "see nvidia-smi and the kernel's log (Xid); exclude the node, or hide the device with CUDA_VISIBLE_DEVICES"
        )
        return Finding(GROUP, "devices", "problem", f"{value}; {'; '.join(errors)}", advice, ("gpu",))
    if len(kinds) > 1:
        return Finding(GROUP, "devices", "note", value, "unequal GPUs: a step is as slow as the slowest", ("gpu",))
    return Finding(GROUP, "devices", "ok", value, serves=("gpu",))


def _links(peers: list[bool], nvlinks: list[int] | None) -> Finding:
    reached = f"{sum(peers)} of {len(peers)} ordered pairs reach each other's memory"
    if nvlinks and all(nvlinks):
        number = str(nvlinks[0]) if len(set(nvlinks)) == 1 else f"{min(nvlinks)} to {max(nvlinks)}"
        reached = f"{number} NVLinks a GPU; {reached}"
    elif nvlinks is not None:
        reached = f"no NVLink on {sum(not links for links in nvlinks)} of {len(nvlinks)} GPUs; {reached}"
    if all(peers):
        return Finding(GROUP, "links", "ok", reached)
    return Finding(GROUP, "links", "note", reached, "keep tensor and expert parallel groups within what is linked")

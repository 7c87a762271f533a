#!/usr/bin/env python3
"""What a benchmark ran on, as JSON: device, driver, versions, fused kernels, packages that are missing.

python benchmarks/environment.py [--json FILE] [--seconds 120]
"""

import argparse
import importlib
import importlib.util
import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PACKAGES = ("torch", "triton", "megatron-core", "transformer-engine", "transformer-engine-torch", "numpy", "pytest")
NEEDED = (
    "torch", "triton", "megatron", "transformer_engine", "yaml", "rich", "tensorboard", "psutil", "sentencepiece",
    "transformers", "pytest", "pytest_timeout", "hypothesis", "einops", "onnxscript",
)  # fmt: skip
"""Modules that the parts of `gpu_suite.sh` import; the last two are Transformer Engine's."""
DEVICE_FIELDS = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.sm,temperature.gpu"


def environment(seconds: float) -> dict[str, Any]:
    """All of it; what cannot be found out is None or an error's text.

    Args:
        seconds: for all of it; the doctor, which imports every package anew, gets what is left of them.
    """
    deadline = time.monotonic() + seconds
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "missing_modules": [name for name in NEEDED if importlib.util.find_spec(name) is None],
        "device": _device(),
        "nvidia_smi": _nvidia_smi(),
        "transformer_engine": _imports("transformer_engine.pytorch"),
        "megatron": _imports("megatron.core"),
        "doctor": _doctor(deadline - time.monotonic()),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports(module: str) -> str:
    """`ok`, or why the module does not import."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken wheel fails in many ways, and each is worth reading
        return f"{type(error).__name__}: {error}"
    return "ok"


def _device() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name, "count": torch.cuda.device_count(), "capability": list(torch.cuda.get_device_capability()),
        "memory_bytes": properties.total_memory, "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }  # fmt: skip


def _nvidia_smi() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={DEVICE_FIELDS}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _doctor(seconds: float) -> dict[str, Any] | str:
    """`megatron-compete doctor`'s report, which says what Megatron's fused kernels are, or why there is none."""
    command = [sys.executable, "-m", "megatron_compete", "doctor", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds))
        report: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        return f"{type(error).__name__}: {error}"
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there in place of printing it")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all of it (default 120)")
    arguments = parser.parse_args()
    text = json.dumps(environment(arguments.seconds), indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()

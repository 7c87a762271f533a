"""All findings about this environment, in the order of the report."""

import os
from collections.abc import Iterator
from pathlib import Path

from megatron_compete.launch.doctor import fusions, gpus, network, slurm, software, system
from megatron_compete.launch.doctor.child import PROBES
from megatron_compete.launch.doctor.finding import Finding
from megatron_compete.launch.doctor.probe import Probed, probe_all


def examine(folder: Path, timeout_seconds: float) -> Iterator[Finding]:
    """All findings about this environment, for runs written to `folder`."""
    probed = probe_all(tuple(PROBES), timeout_seconds)
    yield from _software(probed)
    yield from fusions.fusion_findings(probed["megatron"])
    yield from gpus.gpu_findings(probed["torch"])
    yield from system.system_findings(len(probed["torch"].facts.get("devices", [])), network.has_rdma(), folder)
    yield from network.network_findings(os.environ)
    yield from slurm.slurm_findings(os.environ, software.mpi_library(probed["mpi4py"]))


def _software(probed: dict[str, Probed]) -> Iterator[Finding]:
    yield software.python_finding()
    yield software.requirements_finding()
    yield software.torch_finding(probed["torch"])
    yield software.triton_finding()
    yield from software.megatron_findings(probed["megatron"], probed["trainer"], probed["transformer_engine"])
    yield from software.transformer_engine_findings(probed["transformer_engine"])
    yield software.apex_finding(probed["apex"])
    yield from software.deep_ep_findings(probed["deep_ep"], probed["megatron"])
    yield software.mpi_finding(probed["mpi4py"])
    yield software.export_finding()
    yield software.picture_finding()

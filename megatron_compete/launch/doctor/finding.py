"""One line of the report, and what decides whether it is a problem."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

State = Literal["ok", "note", "missing", "problem"]
"""`missing` is settled by `settle`: a problem where it is required, otherwise a note."""

CAPABILITIES = {
    "training": "the trainer starts: Python, torch, Megatron, this package's requirements",
    "gpu": "CUDA devices compute, NCCL is there",
    "fp8": "Transformer Engine has at least one FP8 recipe on these GPUs",
    "fusions": "every fused kernel that Megatron can use",
    "deepep": "DeepEP's dispatcher",
    "hybridep": "DeepEP's HybridEP dispatcher",
    "mpi": "mpi4py with an MPI library (preprocessing over MPI)",
    "slurm": "a Slurm cluster answers",
    "pictures": "Pillow decodes JPEG, PNG and WebP (vision-language models)",
    "export": "Hugging Face conversion and evaluation",
    "infiniband": "RDMA devices with an active port, and the memory limit they need",
}
"""What `--require` names."""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Args:
        group: heading it stands under.
        name: what was looked at.
        state: see `State`.
        value: what is there, in a few words.
        advice: what to do, where something can be done.
        serves: the capabilities that do not work while this is missing or a problem.
        per_node: healthy nodes of a cluster may differ in the value.
    """

    group: str
    name: str
    state: State
    value: str
    advice: str = ""
    serves: tuple[str, ...] = ()
    per_node: bool = False


def failing(findings: Iterable[Finding], required: set[str]) -> list[Finding]:
    """What keeps the required capabilities from working."""
    return [
        finding for finding in findings if finding.state in ("missing", "problem") and required & set(finding.serves)
    ]


def settle(findings: Iterable[Finding], required: set[str]) -> list[Finding]:
    """Findings with `missing` settled: a problem where a required capability needs it, else a note."""
    findings = list(findings)
    needed = failing(findings, required)
    return [
        replace(finding, state="problem" if finding in needed else "note") if finding.state == "missing" else finding
        for finding in findings
    ]


def works(findings: Iterable[Finding], capability: str) -> bool:
    """Whether something was found that serves the capability, and nothing that fails it."""
    findings = list(findings)
    return any(capability in finding.serves for finding in findings) and not failing(findings, {capability})

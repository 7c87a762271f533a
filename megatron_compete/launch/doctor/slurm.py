"""Findings about Slurm: whether a cluster answers, this job's allocation, and how it starts MPI."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from megatron_compete.launch.doctor.finding import Finding

GROUP = "Slurm"

COMMAND_SECONDS = 20.0

STARTS = {
    "Open MPI v5": ("pmix",),
    "Open MPI": ("pmix", "pmi2"),
    "MPICH": ("pmi2", "pmix", "cray_shasta"),
    "Intel": ("pmi2", "pmix"),
    "MVAPICH": ("pmi2", "pmix"),
}
"""MPI library -> plugins of `srun --mpi` that can start it, the best first (Slurm's MPI guide)."""


def slurm_findings(environment: Mapping[str, str], mpi_library: str) -> Iterator[Finding]:
    """All of them; one line where there is no Slurm."""
    if shutil.which("srun", path=environment.get("PATH")) is None:
        inside = "SLURM_JOB_ID" in environment
        value = "srun is not in this container; the job's variables are" if inside else "not here"
        advice = "submit from the host; ranks inside the container need no srun" if inside else "only for cluster jobs"
        yield Finding(GROUP, "cluster", "missing", value, advice, ("slurm",))
    else:
        cluster, answers = _cluster()
        yield cluster
        if answers and mpi_library:
            yield mpi_start_finding(mpi_library, _mpi_plugins())
    if "SLURM_JOB_ID" in environment:
        yield job_finding(environment)


def _cluster() -> tuple[Finding, bool]:
    """What the controller says, and whether it says anything."""
    code, output = _run("sinfo", "--noheader", "--format=%P %D")
    if code != 0:
        last = output.splitlines()[-1] if output else "no message"
        advice = "run this on a login or compute node; SLURM_CONF names another configuration"
        return Finding(
            GROUP, "cluster", "missing", f"srun is here, no cluster answers ({last})", advice, ("slurm",)
        ), False
    partitions = [line.split() for line in output.splitlines() if line.strip()]
    listed = ", ".join(f"{name.rstrip('*')} ({nodes} nodes)" for name, nodes, *_ in partitions[:6])
    version = _run("sinfo", "--version")[1].split()[-1]  # `slurm 24.05.4`; Debian says `slurm-wlm 22.05.8`
    return Finding(GROUP, "cluster", "ok", f"{version}; partitions {listed}", serves=("slurm",)), True


def _mpi_plugins() -> list[str]:
    """What `srun --mpi=` takes; Slurm prints it to either stream."""
    return re.findall(r"^\s*(?:srun: )?\s*(\w+)\s*$", _run("srun", "--mpi=list")[1], flags=re.MULTILINE)


def mpi_start_finding(library: str, plugins: list[str]) -> Finding:
    """Which `srun --mpi=` starts the MPI that mpi4py uses."""
    wanted = next((starts for prefix, starts in STARTS.items() if library.startswith(prefix)), ("pmix", "pmi2"))
    usable = next((name for name in wanted for plugin in plugins if re.fullmatch(rf"{name}(_v\d+)?", plugin)), "")
    offered = ", ".join(plugins) or "none"
    if usable:
        return Finding(GROUP, "MPI start", "ok", f"{library}: srun --mpi={usable} (of {offered})", serves=())
    advice = f"start with mpirun (COMPETE_LAUNCHER=mpirun), or build mpi4py on an MPI that takes one of: {offered}"
    return Finding(
        GROUP, "MPI start", "missing", f"{library} takes {' or '.join(wanted)}; srun offers {offered}", advice
    )


def job_finding(environment: Mapping[str, str]) -> Finding:
    """The allocation that this runs in."""
    parts = [
        f"job {environment['SLURM_JOB_ID']}",
        f"{environment.get('SLURM_JOB_NUM_NODES', '?')} nodes ({environment.get('SLURM_JOB_NODELIST', '?')})",
    ]
    for words, name in (("tasks", "SLURM_NTASKS"), ("CPUs a task", "SLURM_CPUS_PER_TASK"), ("GPUs a node", "SLURM_GPUS_ON_NODE"), ("restarts", "SLURM_RESTART_COUNT")):  # fmt: skip
        if name in environment:
            parts.append(f"{environment[name]} {words}")
    return Finding(GROUP, "job", "ok", ", ".join(parts), per_node=True)


def _run(*command: str) -> tuple[int, str]:
    """Exit code and what it printed on either stream; a command that hangs or is missing fails."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} did not answer within {COMMAND_SECONDS:g} s"
    except OSError as error:
        return 1, f"{command[0]}: {error.strerror}"
    return result.returncode, result.stdout.strip()

"""Findings about this machine: processors, memory, shared memory, limits, disk, clock, container."""

import ctypes
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_compete.launch.doctor.finding import Finding

GROUP = "Machine"

GIB = 2**30

SMALL_SHARED_MEMORY = GIB
"""NCCL and dataloader workers of one node share it; docker gives a container 64 MiB."""

FEW_OPEN_FILES = 4096
"""A rank holds sockets to its peers, and a file for each dataset and checkpoint part it has open."""

LITTLE_DISK = 10 * GIB

CLOCK_SKEW_SECONDS = 2.0

UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""

CONTAINER_MARKS = {
    "docker": ("/.dockerenv",),
    "podman or buildah": ("/run/.containerenv",),
    "apptainer": ("/.singularity.d",),
}
"""Files that a container runtime puts into its root."""

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


def system_findings(gpus: int, rdma: bool, folder: Path) -> Iterator[Finding]:
    """All of them.

    Args:
        gpus: CUDA devices here.
        rdma: whether there are InfiniBand devices, whose memory must be locked.
        folder: where runs will be written.
    """
    yield processors_finding(gpus)
    yield memory_finding()
    yield shared_memory_finding(Path("/dev/shm"), gpus)
    yield open_files_finding(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield locked_memory_finding(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], rdma)
    yield disk_finding(folder)
    yield clock_finding(folder)
    yield container_finding(os.environ)


def processors_finding(gpus: int) -> Finding:
    """CPUs that this process may use; each rank needs one, and its dataloader workers more."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    value = f"{usable} of {present} usable" if usable < present else str(usable)
    if usable < 2 * gpus:
        return Finding(
            GROUP, "CPUs", "note", f"{value} for {gpus} GPUs", "ask for more: --cpus-per-task, COMPETE_CPUS_PER_TASK"
        )
    return Finding(GROUP, "CPUs", "ok", value)


def memory_finding(cgroup: Path = CGROUP_MEMORY) -> Finding:
    """Main memory, and less where the control group allows less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(cgroup.read_text())
    except (OSError, ValueError):  # no file, or `max`
        limit = total
    if limit < total:
        value = f"{limit / GIB:.1f} GiB allowed of {total / GIB:.1f}"
        return Finding(GROUP, "memory", "note", value, "the job ends when it needs more: --mem, or docker's --memory")
    return Finding(GROUP, "memory", "ok", f"{total / GIB:.1f} GiB")


def shared_memory_finding(folder: Path, gpus: int) -> Finding:
    """Size of /dev/shm: too small, ranks on one node end with a bus error or NCCL's `No space left on device`."""
    if not folder.is_dir():
        return Finding(GROUP, "shared memory", "problem", f"{folder} is missing", "mount a tmpfs there", ("training",))
    usage = shutil.disk_usage(folder)
    value = f"{folder} {_gib(usage.total)}, {_gib(usage.free)} free"
    if usage.free >= SMALL_SHARED_MEMORY:
        return Finding(GROUP, "shared memory", "ok", value, per_node=True)
    advice = "docker: --ipc=host or --shm-size=16g; otherwise remove what fills it"
    return Finding(GROUP, "shared memory", "problem" if gpus > 1 else "note", value, advice, ("gpu",), per_node=True)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:.0f} MiB"


def open_files_finding(soft: int, hard: int) -> Finding:
    """Limit of open file descriptors."""
    if soft == resource.RLIM_INFINITY or soft >= FEW_OPEN_FILES:
        return Finding(GROUP, "open files", "ok", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}")
    if hard == resource.RLIM_INFINITY or hard >= FEW_OPEN_FILES:
        return Finding(GROUP, "open files", "note", f"{soft:,}", "ulimit -n 65536 before the job starts its ranks")
    advice = "docker --ulimit nofile=65536; on nodes slurmd's LimitNOFILE and /etc/security/limits.conf"
    return Finding(GROUP, "open files", "note", f"{soft:,}, at most {hard:,}", advice)


def locked_memory_finding(soft: int, rdma: bool) -> Finding:
    """Limit of locked memory, which RDMA registers its buffers in."""
    if soft == resource.RLIM_INFINITY:
        return Finding(GROUP, "locked memory", "ok", "unlimited")
    advice = (
        "ulimit -l unlimited on the nodes (Slurm: PropagateResourceLimitsExcept=MEMLOCK), docker --ulimit memlock=-1"
    )
    value = f"at most {_gib(soft)}"
    if rdma:
        return Finding(GROUP, "locked memory", "problem", value, advice, ("infiniband",))
    return Finding(GROUP, "locked memory", "ok", f"{value}; RDMA would need more")


def disk_finding(folder: Path) -> Finding:
    """Free space where runs are written; quotas are not seen."""
    free = shutil.disk_usage(folder).free
    little = free < LITTLE_DISK
    advice = "a checkpoint with optimizer takes about 14 bytes a parameter" if little else ""
    return Finding(GROUP, "disk", "note" if little else "ok", f"{_gib(free)} free in {folder}", advice, per_node=True)


def clock_finding(folder: Path) -> Finding:
    """Whether the clock is kept in step, and agrees with the file system's (a file server's, on a cluster)."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            before = time.time()
            os.utime(file.fileno())
            skew = os.fstat(file.fileno()).st_mtime - before
    except OSError as error:
        return Finding(
            GROUP, "clock", "note", f"{folder}: {error.strerror}", "run this in a folder that can be written"
        )
    if abs(skew) > CLOCK_SKEW_SECONDS:
        value = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the clock of {folder}"
        return Finding(GROUP, "clock", "note", value, "set the clock (chrony, ntpd): logs and time limits go by it")
    if _kernel_clock_state() == UNSYNCHRONISED:
        return Finding(
            GROUP, "clock", "note", "agrees with the disk's, not kept in step", "start chrony or ntpd on the host"
        )
    return Finding(GROUP, "clock", "ok", "agrees with the disk's, kept in step")


def _kernel_clock_state() -> int:
    """What adjtimex(2) says when asked for nothing but the state."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, modes = 0
    return ctypes.CDLL(None).adjtimex(buffer)


def container_finding(environment: Mapping[str, str], root: Path = Path("/")) -> Finding:
    """Which container runtime this runs in."""
    kinds = [kind for kind, marks in CONTAINER_MARKS.items() if any((root / mark[1:]).exists() for mark in marks)]
    if any(name.startswith("ENROOT_") for name in environment):
        kinds.append("enroot")
    if "KUBERNETES_SERVICE_HOST" in environment:
        kinds.append("kubernetes")
    return Finding(GROUP, "container", "ok", " in ".join(kinds) or "none")

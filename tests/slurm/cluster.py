"""A real Slurm of several nodes on this one machine, for as long as a test session lasts.

munged, slurmctld and one slurmd a node run as children of this process, in a folder of their own, on free ports and
with loopback addresses of their own. A node has its own host name and /etc/hosts (namespaces of the kernel's), so that
`hostname`, Slurm and torch agree on who is who, and nothing on the host is changed.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_compete.launch.ports import free_port

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libpmix2")
"""Debian's and Ubuntu's; no database, no recommended packages."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "unshare", "setpriv")
INSTALL = "COMPETE_INSTALL_SLURM"
CPUS, MEMORY_MB = 16, 5000
"""Of a node, as Slurm is told; the real ones do not matter."""


def why_not() -> str | None:
    """Why no cluster can be started here; installs Slurm where that is allowed and needed."""
    os.environ["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if os.geteuid() != 0:
        return "Slurm's daemons need root to start jobs: run as root"
    isolated = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, text=True)
    if isolated.returncode != 0:
        return f"no namespaces for nodes: {isolated.stderr.strip()}; a container needs --cap-add SYS_ADMIN"
    if not _missing():
        return None
    if os.environ.get(INSTALL) == "0":
        return f"{', '.join(_missing())} missing, and {INSTALL}=0 forbids to install Slurm"
    return _install()


def _missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def _install() -> str | None:
    if shutil.which("apt-get") is None:
        return f"{', '.join(_missing())} missing, and no apt-get to install them"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            return f"apt-get {command[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    _link_pmix()
    return f"{', '.join(_missing())} missing after apt-get install" if _missing() else None


def _link_pmix() -> None:
    """srun --mpi=pmix opens libpmix.so, which Debian ships only with the headers."""
    for library in Path("/usr/lib").glob("*/pmix2/lib/libpmix.so.2"):
        if not library.with_suffix("").exists():
            library.with_suffix("").symlink_to(library.name)


@dataclass
class Cluster:
    """A running Slurm; `environment` is what its commands need."""

    folder: Path
    count: int = 4
    nodes: list[str] = field(init=False)
    environment: dict[str, str] = field(init=False)
    _daemons: dict[str, subprocess.Popen[bytes]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        tag = secrets.token_hex(2)  # host names that no other cluster on this machine has
        self.nodes = [f"c{tag}n{number}" for number in range(1, self.count + 1)]
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "COMPETE_"))
        } | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    # --- commands -----------------------------------------------------------------------------------------------------

    def command(self, *words: str | Path, check: bool = True, **environment: str) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            list(map(str, words)), env=self.environment | environment, capture_output=True, text=True, timeout=600
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def submit(self, *words: str | Path, **environment: str) -> str:
        """`sbatch` these options, script and arguments; the job's id."""
        return self.command("sbatch", "--parsable", *words, **environment).split(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, NodeList, ..."""
        words = self.command("scontrol", "show", "job", "-o", job_id).split(" ")
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job_id: str, until: Callable[[dict[str, str]], bool], timeout: float = 1800.0) -> dict[str, str]:
        """Wait until a job is as wanted; its fields then."""
        deadline = time.monotonic() + timeout
        while not until(job := self.job(job_id)):
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job_id} is still {job['JobState']} ({job['Reason']}):\n{self.log(job_id)}")
            time.sleep(0.3)
        return job

    def finish(self, job_id: str, timeout: float = 1800.0) -> str:
        """Wait until a job has left the queue for good: its last state."""
        return self.wait(job_id, lambda job: job["JobState"] in OVER, timeout)["JobState"]

    def log(self, job_id: str) -> str:
        """What a job has written so far."""
        path = Path(self.job(job_id).get("StdOut", ""))
        return path.read_text(errors="replace") if path.is_file() else f"(no output in {path})"

    # --- daemons ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, and wait until all nodes can take jobs."""
        self._write_configuration()
        socket_path = self.folder / "munge.socket"
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key",
                    f"--socket={socket_path}", f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                    f"--seed-file={self.folder}/munged.seed", "--num-threads=2")  # fmt: skip
        _wait_until(socket_path.exists, 300, lambda: self._daemon_log("munged"))
        self._start("slurmctld", "slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        for node in self.nodes:
            self.start_node(node)
        _wait_until(lambda: self.usable_nodes() == set(self.nodes), 300, lambda: self._daemon_log("slurmctld"))

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, with its own host name, /etc/hosts and shared memory (MPI names its segments by job)."""
        (self.folder / "spool" / node).mkdir(parents=True, exist_ok=True)
        script = 'mount --bind "$3" /etc/hosts && mount -t tmpfs tmpfs /dev/shm && hostname "$1" && exec slurmd -D -N "$1" -f "$2"'
        self._start(node, "unshare", "--uts", "--mount", "sh", "-c", script, "sh", node, self.environment["SLURM_CONF"],
                    str(self.folder / "hosts"))  # fmt: skip

    def kill_node(self, node: str) -> None:
        """A node dies: its slurmd and all that runs there, at once."""
        daemon = self._daemons.pop(node)
        namespace = _namespace(daemon.pid)
        daemon.kill()
        _kill_namespace(namespace)
        daemon.wait()

    def usable_nodes(self) -> set[str]:
        """Nodes that take jobs or run them."""
        listed = self.command("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        return {line.split()[0] for line in listed if line.split()[1] in ("idle", "mixed", "allocated", "completing")}

    def cancel_all(self) -> None:
        """Empty the queue, and wait until it is."""
        if ids := self.command("squeue", "-h", "-o", "%A", check=False).split():
            self.command("scancel", *ids, check=False)
            _wait_until(lambda: not self.command("squeue", "-h", check=False), 600, lambda: "jobs do not end")

    def stop(self) -> None:
        """End all jobs and daemons, and whatever a job has left behind."""
        with contextlib.suppress(Exception):
            self.cancel_all()
        for name in [*self.nodes, "slurmctld", "munged"]:
            daemon = self._daemons.pop(name, None)
            if daemon is None:
                continue
            namespace = _namespace(daemon.pid) if name in self.nodes else None
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            if namespace:
                _kill_namespace(namespace)

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as output:
            # A daemon goes with this process, even when that is killed.
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment,
            )  # fmt: skip

    def _daemon_log(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")[-3000:]

    # --- configuration ------------------------------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        network = 16 + secrets.randbelow(200)
        addresses = {node: f"127.{network}.0.{number}" for number, node in enumerate(self.nodes, 1)}
        hosts = Path("/etc/hosts").read_text() + "".join(f"{address} {node}\n" for node, address in addresses.items())
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "slurm.conf").write_text(self._slurm_conf(addresses))
        (self.folder / "plugstack.conf").touch()

    def _slurm_conf(self, addresses: dict[str, str]) -> str:
        """Configuration: what it takes on one machine, and waits that are short, but for what a busy machine needs longer.

        KillWait (Slurm's default is 30 s) is what a preempted job has for its checkpoint.

        A requeued job may start again once its credential has expired (cred_expire), 120 s on an ordinary cluster.
        """
        control, *ports = _different_ports(1 + self.count)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr={address} Port={port} CPUs={CPUS} CoresPerSocket={CPUS} "
            f"RealMemory={MEMORY_MB} State=UNKNOWN"
            for (node, address), port in zip(addresses.items(), ports, strict=True)
        )
        return f"""
ClusterName=test
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={self.folder}/munge.socket,cred_expire=5
SlurmctldPort={control}
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.%n.pid
SlurmdSpoolDir={self.folder}/spool/%n
StateSaveLocation={self.folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=3,sched_interval=3,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=120
OverTimeLimit=0
SlurmdTimeout=30
ReturnToService=2
MinJobAge=3600
MailProg=/bin/true
TmpFS=/tmp
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes={",".join(self.nodes)} Default=YES MaxTime=INFINITE PriorityTier=1 DefMemPerCPU={MEMORY_MB // CPUS} State=UP
PartitionName=urgent Nodes={",".join(self.nodes)} MaxTime=INFINITE PriorityTier=10 DefMemPerCPU={MEMORY_MB // CPUS} State=UP
"""


OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster in this empty folder, stopped at the end whatever happens."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _wait_until(true: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {seconds:g} s: {explain()}")
        time.sleep(0.1)


def _different_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _namespace(pid: int | str) -> str | None:
    """The host-name namespace of a process, which all of a node's processes share; None when it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/uts")
    except OSError:
        return None


def _kill_namespace(namespace: str | None) -> None:
    """End all processes of a node; never those of this process's own namespace."""
    if namespace is None or namespace == _namespace("self"):
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _namespace(entry.name) == namespace:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)

"""Many nodes: rank 0 assigns, every rank's workers write their own parts, rank 0 joins them.

Workers are forked before MPI is initialised, because many MPI libraries do not survive a fork. Nobody waits inside MPI:
its waiting loops would take a core away from the workers.
"""

import os
import sys
import time
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines import EngineChoice
from megatron_compete.data.inputs.shards import ShardKey
from megatron_compete.data.preprocessing.coordinator import Answer, LocalCoordinator, StopRequest
from megatron_compete.data.preprocessing.parts import ShardRecord
from megatron_compete.data.preprocessing.workers import WorkerPool

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""What launchers set to the number of ranks: Open MPI's mpirun, MPICH's and Intel's (and srun --mpi=pmi2), MVAPICH's."""

_PMIX = "PMIX_RANK"
"""What srun --mpi=pmix sets for a rank; the number of ranks is then Slurm's to say."""

_LOCAL_RANKS = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_STEP_TASKS_PER_NODE",
)

_PAUSE_SECONDS = 0.005


def is_launched() -> bool:
    """Whether an MPI launcher started this process as one of several: where srun has an MPI by default, a shell on a node is
    a rank too, of one."""
    sizes = [os.environ[name] for name in _SIZES if name in os.environ]
    if not sizes and _PMIX in os.environ:
        sizes = [os.environ.get("SLURM_STEP_NUM_TASKS", "several")]
    return any(size != "1" for size in sizes)


def has_node_to_itself() -> bool:
    """Whether this rank is the only one on its node, as far as the launcher says."""
    for name in _LOCAL_RANKS:
        if name in os.environ:
            return os.environ[name].split("(")[0].split(",")[0] == "1"
    return not is_launched()


def refuse_srun_without_mpi() -> None:
    """Notice tasks that srun started side by side and that do not know of one another.

    Raises:
        CompeteError: there are several.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if not is_launched() and tasks != "1" and "SLURM_STEP_ID" in os.environ:
        raise CompeteError(
            f"srun started {tasks} tasks without MPI, each of which would do the whole job: add --mpi=pmi2 or "
            "--mpi=pmix (srun --mpi=list says what there is)"
        )


class Ranks:
    """This process among the ranks of the job; initialises MPI.

    Raises:
        CompeteError: mpi4py, or the MPI library it needs, is not there.
    """

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise CompeteError(
                f"an MPI launcher started this, but mpi4py cannot be used ({' '.join(str(error).split())}): install "
                "mpi4py and an MPI library (pip install mpi4py mpich)"
            ) from None
        self.comm = MPI.COMM_WORLD
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()

    def first_fault(self, fault: str | None) -> str | None:
        """The fault of the lowest rank that has one."""
        if self.rank != 0:
            self.send(0, fault)
            found: str | None = self.receive()[1]
            return found
        faults = dict(self.receive() for _ in range(self.size - 1)) | {0: fault}
        found = next((faults[rank] for rank in sorted(faults) if faults[rank] is not None), None)
        for rank in range(1, self.size):
            self.send(rank, found)
        return found

    def receive(self) -> tuple[int, Any]:
        """The next message and the rank it is from."""
        while not self.comm.Iprobe():
            time.sleep(_PAUSE_SECONDS)
        return self._receive()

    def receive_waiting(self) -> tuple[int, Any] | None:
        """The next message, if one has come."""
        return self._receive() if self.comm.Iprobe() else None

    def _receive(self) -> tuple[int, Any]:
        from mpi4py import MPI

        status = MPI.Status()
        message = self.comm.recv(status=status)
        return status.Get_source(), message

    def send(self, rank: int, message: Any) -> None:
        """Send a message."""
        self.comm.send(message, dest=rank)

    def abort(self) -> None:
        """End all ranks at once, after an error that nobody expected."""
        sys.stderr.flush()
        self.comm.Abort(1)


class ServingCoordinator:
    """Rank 0's coordinator: its own workers use it directly, other ranks by message.

    Args:
        ranks: this process among the others.
        stop: set when another rank was told to stop.
    """

    poll_seconds = _PAUSE_SECONDS  # the other ranks wait for an answer

    def __init__(self, ranks: Ranks, stop: StopRequest) -> None:
        self._ranks = ranks
        self._stop = stop
        self._coordinator: LocalCoordinator | None = None
        self._left = ranks.size - 1
        self._fault: str | None = None

    def lead(self, coordinator: LocalCoordinator, pool: WorkerPool) -> None:
        """Assign to all ranks until nobody has a shard in hand.

        Raises:
            CompeteError: something went wrong on any rank; what others had in hand is finished.
        """
        self._coordinator = coordinator
        try:
            pool.run(self, name="0.")
        except CompeteError as error:
            self._fail(str(error))
            pool.close()
        self._serve_to_the_end()
        if self._fault is not None:
            raise CompeteError(self._fault)

    def dismiss(self, code: int) -> None:
        """Let the other ranks end, with the exit code of the job."""
        self._coordinator = None
        self._serve_to_the_end()
        for rank in range(1, self._ranks.size):
            self._ranks.send(rank, code)

    def next(self, worker: str) -> Answer:
        """What the coordinator says; a fault in assigning ends the job."""
        if self._coordinator is None:
            return "stop"
        try:
            return self._coordinator.next(worker)
        except CompeteError as error:
            self._fail(str(error))
            return "stop"

    def done(self, record: ShardRecord) -> None:
        """A shard is finished."""
        if self._coordinator is not None:
            self._coordinator.done(record)

    def differs(self, key: ShardKey, engine: EngineChoice, difference: str) -> None:
        """A shard is not finished."""
        if self._coordinator is not None:
            self._coordinator.differs(key, engine, difference)

    def attend(self) -> None:
        """Answer the other ranks."""
        while (received := self._ranks.receive_waiting()) is not None:
            self._answer(*received)
        if self._coordinator is not None:
            self._coordinator.attend()

    def _fail(self, fault: str) -> None:
        """Assign nothing more."""
        if self._coordinator is not None:
            self._coordinator.failed = True
        self._fault = self._fault or fault

    def _serve_to_the_end(self) -> None:
        """Answer until every other rank has taken its leave."""
        while self._left:
            self.attend()
            time.sleep(_PAUSE_SECONDS)

    def _answer(self, rank: int, message: tuple[Any, ...]) -> None:
        kind, *content = message
        if kind == "next":
            worker, stopped = content
            self._stop.requested |= stopped
            self._ranks.send(rank, self.next(worker))
        elif kind == "done":
            self.done(*content)
        elif kind == "differs":
            self.differs(*content)
        else:
            self._left -= 1
            if content[0] is not None:
                self._fail(content[0])


class RemoteCoordinator:
    """The coordinator as other ranks see it."""

    poll_seconds = 0.1

    def __init__(self, ranks: Ranks, stop: StopRequest) -> None:
        self._ranks = ranks
        self._stop = stop

    def next(self, worker: str) -> Answer:
        """Ask rank 0."""
        self._ranks.send(0, ("next", worker, self._stop.requested))
        answer: Answer = self._ranks.receive()[1]
        return answer

    def done(self, record: ShardRecord) -> None:
        """Tell rank 0."""
        self._ranks.send(0, ("done", record))

    def differs(self, key: ShardKey, engine: EngineChoice, difference: str) -> None:
        """Tell rank 0."""
        self._ranks.send(0, ("differs", key, engine, difference))

    def attend(self) -> None:
        """Nothing to do."""


def work_for_rank_0(ranks: Ranks, pool: WorkerPool, stop: StopRequest) -> int:
    """What a rank other than 0 does; the exit code of the job."""
    fault = None
    try:
        pool.run(RemoteCoordinator(ranks, stop), name=f"{ranks.rank}.")
    except CompeteError as error:
        fault = str(error)
    ranks.send(0, ("bye", fault))
    return int(ranks.receive()[1])

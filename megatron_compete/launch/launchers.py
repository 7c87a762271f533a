"""Starting the ranks of a job with torchrun, or being one that srun or mpirun has started."""

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_compete.launch.recipe import MODULE
from megatron_compete.launch.stop_signal import leave_on_stop_signal
from megatron_compete.upstream import replace_symbol

if TYPE_CHECKING:
    from megatron_compete.launch.agent import JobAgent

CPU_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "Only transformer-engine",
)
"""What Megatron warns of a dozen times a rank where there is no CUDA; neither could be installed there."""

AGENT_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"
"""Signals at which torchrun ends its ranks. SIGTERM is not among them: `JobAgent` hands it on and waits."""


ASSERTED_BY_MEGATRON = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "NVTE_CPU_OFFLOAD_V1": "1"}
"""Megatron's conditions for tensor and context parallelism, and for `--fine-grained-activation-offloading`."""


def environment_defaults() -> dict[str, str]:
    """Variables that a rank needs and that the caller's environment does not set."""
    import torch

    on_cpu = not torch.cuda.is_available()
    defaults = openmp_defaults(on_cpu) | ASSERTED_BY_MEGATRON
    if on_cpu:
        defaults["PYTHONWARNINGS"] = ",".join(f"ignore:{message}" for message in CPU_WARNINGS)
    return {name: value for name, value in defaults.items() if name not in os.environ}


def openmp_defaults(on_cpu: bool) -> dict[str, str]:
    """How a rank's OpenMP threads run; OpenMP reads these variables when torch is imported, and never again.

    At the end of each parallel region a thread waits for the others. By default it does so in a loop, and burns a core
    for as long as one of the others has none; with PASSIVE it sleeps. A step of `benchmarks/competition_step.py` with 2
    threads beside two busy processes takes 490 ms of processor time by default, and 227 ms with PASSIVE.
    """
    return {"OMP_NUM_THREADS": "1"} | ({"OMP_WAIT_POLICY": "PASSIVE"} if on_cpu else {})


def become_rank(command: list[str]) -> None:
    """Make this process, which srun or mpirun has started, ready to be one rank of the job that `command` describes:
    torchrun's arguments, whose own options are void, since how many ranks there are is the launcher's to say.
    """
    trainer = command[command.index(MODULE) + 1 :]
    sys.argv = [MODULE, *trainer]
    on_cpu = not Path("/proc/driver/nvidia").exists()  # torch must not be imported yet
    os.environ.update(openmp_defaults(on_cpu) | os.environ)
    silence_cpu_warnings()


def rank_line(launcher: str, command: list[str]) -> str:
    """The command line of one rank of the job that `command`, torchrun's arguments, describes."""
    return shlex.join([launcher, "python", "-m", MODULE, *command[command.index(MODULE) + 1 :]])


def silence_cpu_warnings() -> None:
    """Keep `CPU_WARNINGS` out of this process's output; call before Megatron is imported."""
    for message in CPU_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


class _Reported(logging.Filter):
    """Drops torchrun's lines on ranks that failed: the rank or `JobAgent` has said more in one."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not message.startswith("failed (exitcode: ") and "closing signal SIGTERM" not in message


def run_torchrun(command: list[str]) -> None:
    """Run torchrun with these arguments in this process; returns where all ranks of this node have finished.

    SIGTERM is handed on to the ranks, which save and leave (`launch/agent.py`).

    Raises:
        SystemExit: 75 where the ranks were told to stop; 2 and nothing more to say where they had bad input; 1 where
            they failed, after one line for each rank that this node saw fail first; 128 + N at another signal.
    """
    leave_on_stop_signal()
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    from megatron_compete.launch.agent import JobAgent

    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).addFilter(_Reported())
    arguments = parse_args(command)
    arguments.signals_to_handle = AGENT_SIGNALS
    try:
        with replace_symbol("torch.distributed.launcher.api:LocalElasticAgent", JobAgent):
            run(arguments)
    except ChildFailedError:
        _leave(JobAgent.current)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except Exception as error:
        if JobAgent.current is None or JobAgent.current.exit_code() is None:
            print(f"megatron-compete: torchrun on this node failed: {type(error).__name__}: {error}", file=sys.stderr)
        _leave(JobAgent.current)
    _leave(JobAgent.current, default=0)


def _leave(agent: "JobAgent | None", default: int = 1) -> None:
    """Leave with the ranks' exit code; where they had none of their own, because their launcher failed, with 1."""
    code = agent.exit_code() if agent is not None else None
    code = default if code is None else code
    if code != 0:
        raise SystemExit(code)

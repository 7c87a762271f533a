"""Starting a run: as `megatron-compete pretrain`, or, with one rank on a CPU, forked from a process that is warm.

Importing torch and Megatron takes as long as many steps of a small model. The warm process imports them once; the rank
forked from it calls the same entry, `megatron_compete.training.pretrain.main`, with the same arguments and the same
variables that torchrun would have set.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from megatron_compete.common.yaml_file import dump_yaml
from megatron_compete.launch.ports import free_port
from megatron_compete.launch.recipe import Recipe
from megatron_compete.study.folder import RunFolder

RECIPE = "recipe.yaml"


class Job(Protocol):
    """A run under way."""

    def exit_code(self) -> int | None:
        """None while it goes on."""

    def end(self) -> None:
        """Kill it, with all of its ranks."""


class Command:
    """`megatron-compete pretrain` in a session of its own; its ranks are children of it.

    Args:
        lock: descriptor of the run's lock; held as long as the command or one of its children lives.
    """

    def __init__(self, recipe: Path, log: Path, lock: int) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_compete", "pretrain", "--recipe", str(recipe)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        os.close(lock)

    def exit_code(self) -> int | None:
        return self.process.poll()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class WarmFork:
    """One rank, forked from the warm process. It ends when this process does, however that happens."""

    def __init__(self, arguments: list[str], folder: RunFolder, lock: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["megatron_compete.study.warm_imports"])
        reader, self.alive = context.Pipe(duplex=False)
        os.close(lock)  # the rank takes it
        self.process = context.Process(target=_rank, args=(arguments, str(folder.path), reader))
        self.process.start()
        reader.close()

    def exit_code(self) -> int | None:
        return self.process.exitcode

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _rank(arguments: list[str], folder: str, parent: Connection) -> None:
    """The forked rank: `torchrun --standalone --nproc-per-node 1 -m megatron_compete.training.pretrain ARGUMENTS`."""
    run = RunFolder(Path(folder))
    if run.lock() is None:  # held until the process ends
        raise SystemExit(75)
    output = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, closefd=False)  # noqa: SIM115  as long as the process
        for number in (1, 2)
    )
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )  # fmt: skip
    sys.argv = ["pretrain", *arguments]
    from megatron_compete.training import pretrain

    pretrain.main()


def _end_with(parent: Connection) -> None:
    """End this process when the study's does: the other end of the pipe is then closed."""
    with suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)


def can_be_warm(recipe: Recipe) -> bool:
    """Whether one process of this host is the whole job, and forking is safe: a CUDA context does not survive it."""
    import torch

    single = all(str(recipe.launch.get(name, 1)) == "1" for name in ("nnodes", "nproc-per-node"))
    return single and not torch.cuda.is_available()


def start(recipe: Recipe, folder: RunFolder, lock: int, warm: bool) -> Job:
    """Start the run; its recipe is in the folder then, for whoever wants to run it by hand."""
    path = folder.work / RECIPE
    path.write_text(dump_yaml({"launch": recipe.launch, "arguments": recipe.arguments}))
    if warm and can_be_warm(recipe):
        command = recipe.command()
        return WarmFork(command[command.index("-m") + 2 :], folder, lock)
    return Command(path, folder.log, lock)


def prepare_environment() -> None:
    """Variables of all runs: one thread each, so that their seconds can be compared; no downloads."""
    from megatron_compete.launch.launchers import environment_defaults

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(environment_defaults())

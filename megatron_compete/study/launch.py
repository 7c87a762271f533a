"""Starting a run: as a command, or, with one rank on a CPU, forked from a process that is warm.

Importing torch and Megatron takes as long as many steps of a small model. The warm process imports them once; the rank
forked from it calls the same entry, `main` of the task's module, with the same arguments and the same variables that
torchrun would have set.
"""

import importlib
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
from megatron_compete.launch.recipe import MODULE, Recipe
from megatron_compete.study.folder import RunFolder

RECIPE = "recipe.yaml"
ENTRIES = {"language": MODULE, "regions": "megatron_compete.study.regions.__main__"}
"""By task, the module whose `main` trains a run."""


class Job(Protocol):
    """A run under way."""

    def exit_code(self) -> int | None:
        """None while it goes on."""

    def end(self) -> None:
        """Kill it, with all of its ranks."""


class Command:
    """A run as a command in a session of its own; its ranks are children of it.

    Args:
        words: of `python -m`.
        lock: descriptor of the run's lock; held as long as the command or one of its children lives.
    """

    def __init__(self, words: list[str], log: Path, lock: int) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
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

    def __init__(self, entry: str, arguments: list[str], folder: RunFolder, lock: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["megatron_compete.study.warm_imports"])
        reader, self.alive = context.Pipe(duplex=False)
        os.close(lock)  # the rank takes it
        self.process = context.Process(target=_rank, args=(entry, arguments, str(folder.path), reader))
        self.process.start()
        reader.close()

    def exit_code(self) -> int | None:
        return self.process.exitcode

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _rank(entry: str, arguments: list[str], folder: str, parent: Connection) -> None:
    """The forked rank: `torchrun --standalone --nproc-per-node 1 -m ENTRY ARGUMENTS`."""
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
    sys.argv = [entry.removesuffix(".__main__").rpartition(".")[2], *arguments]
    importlib.import_module(entry).main()


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


def start(recipe: Recipe, folder: RunFolder, lock: int, warm: bool, task: str = "language") -> Job:
    """Start the run; its recipe is in the folder then, for whoever wants to run it by hand.

    Args:
        task: of `ENTRIES`.
    """
    path = folder.work / RECIPE
    path.write_text(dump_yaml({"launch": recipe.launch, "arguments": recipe.arguments}))
    command = recipe.command()
    arguments = command[command.index("-m") + 2 :]
    if warm and can_be_warm(recipe):
        return WarmFork(ENTRIES[task], arguments, folder, lock)
    if task == "language":
        return Command(["megatron_compete", "pretrain", "--recipe", str(path)], folder.log, lock)
    return Command([ENTRIES[task].removesuffix(".__main__"), *arguments], folder.log, lock)


def prepare_environment() -> None:
    """Variables of all runs: one thread each, so that their seconds can be compared; no downloads."""
    from megatron_compete.launch.launchers import environment_defaults

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(environment_defaults())

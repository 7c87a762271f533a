"""An audit's parts: sums over units of work, shared by ranks, kept on disk while they grow, and taken up again after a kill."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from megatron_compete.common.files import write_whole

SAVE_SECONDS = 30.0
LINE_SECONDS = 60.0
"""Between two lines of progress where there is no terminal."""


class Part(Protocol):
    """A sum over units."""

    name: str
    units: int
    state: dict[str, Tensor]
    """The sums, on the CPU; zeros at first. What several ranks have is added up."""

    def step(self, unit: int) -> None:
        """Add a unit, from 0."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def from_environment() -> "Ranks":
        """What torchrun, srun through our launcher or mpirun through it say; joins the others."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")
        return Ranks(int(os.environ.get("RANK", "0")), size)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """For all others."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, state: dict[str, Tensor]) -> None:
        """Replace every rank's sums by those of all."""
        if self.size > 1:
            for name in sorted(state):
                dist.all_reduce(state[name])


def carry_out(part: Part, folder: Path, signature: str, ranks: Ranks) -> float:
    """Do a part, from where an earlier try of the same left it.

    Args:
        folder: where the sums are kept until the audit is done.
        signature: of everything that the sums depend on; what another one left is not used.
    Returns:
        Seconds of this and of earlier tries.
    """
    path = folder / f"{part.name}-{ranks.rank}-of-{ranks.size}.safetensors"
    own = range(ranks.rank, part.units, ranks.size)
    done, before = _take_up(part, path, signature)
    start = saved = time.monotonic()
    for place, unit in _shown(part.name, own, done, ranks):
        part.step(unit)
        if time.monotonic() - saved > SAVE_SECONDS or place + 1 == len(own):
            seconds = before + time.monotonic() - start
            _keep(part, path, signature, place + 1, seconds)
            saved = time.monotonic()
    ranks.add_up(part.state)
    return before + time.monotonic() - start


def _take_up(part: Part, path: Path, signature: str) -> tuple[int, float]:
    """Units done and seconds that they took."""
    try:
        with safe_open(path, "pt") as file:
            kept = json.loads((file.metadata() or {})["audit"])
            if kept["signature"] == signature:
                part.state.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return kept["done"], kept["seconds"]
    except (OSError, SafetensorError, KeyError, ValueError):
        pass  # there is none, or it is damaged: the part begins anew
    return 0, 0.0


def _keep(part: Part, path: Path, signature: str, done: int, seconds: float) -> None:
    kept = {"audit": json.dumps({"signature": signature, "done": done, "seconds": seconds})}
    write_whole(path, save({name: value.contiguous() for name, value in part.state.items()}, kept))


def _shown(name: str, units: range, done: int, ranks: Ranks) -> Iterator[tuple[int, int]]:
    """Place and unit of what is to do, with a bar on a terminal, or a line a minute."""
    import sys

    left = list(enumerate(units))[done:]
    interval = 0.1 if sys.stderr.isatty() else LINE_SECONDS
    yield from tqdm(
        left,
        name,
        total=len(units),
        initial=done,
        mininterval=interval,
        disable=not ranks.is_first,
        ascii=not sys.stderr.isatty(),
    )


def zeros(*shape: int) -> Tensor:
    """A sum to begin with."""
    return torch.zeros(shape, dtype=torch.float64)

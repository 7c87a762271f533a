"""`cluster.env`: what a job needs to know about the cluster, as KEY=value lines that bash can source too.

    COMPETE_PARTITION=gpu
    COMPETE_VENV=$HOME/megatron-compete/.venv
    NCCL_SOCKET_IFNAME=ib0          # anything that is not COMPETE_* is exported to the ranks as it stands

`slurm/cluster.env.example` explains every key. A run folder gets our settings with variables like $HOME filled in. The
ranks' variables may be tokens and keys, and stay where they are: it names the file (`COMPETE_VARIABLES`), and the job reads
them there.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from megatron_compete.cluster.env_file import read_env_file
from megatron_compete.cluster.times import limit_seconds
from megatron_compete.common.errors import CompeteError, did_you_mean
from megatron_compete.launch.environment import Launcher

NAME = "cluster.env"
VARIABLE = "COMPETE_CLUSTER"
PREFIX = "COMPETE_"
VARIABLES = "COMPETE_VARIABLES"
"""In a run folder: the file whose variables, other than ours, the job exports to the ranks."""

_WHOLE = re.compile(r"[0-9]{1,9}")

SOFTWARE = ("venv", "pyxis", "apptainer")


def _number(least: int) -> Callable[[str, str], None]:
    def check(key: str, value: str) -> None:
        if _WHOLE.fullmatch(value) is None or int(value) < least:
            raise CompeteError(f"{key}={value[:40]}: give a whole number from {least}")

    return check


def _one_of(choices: tuple[str, ...]) -> Callable[[str, str], None]:
    def check(key: str, value: str) -> None:
        if value not in choices:
            raise CompeteError(f"{key}={value}: choose one of {', '.join(choices)}")

    return check


def _time(key: str, value: str) -> None:
    limit_seconds(value, f"{key}:")


def _mounts(key: str, value: str) -> None:
    for mount in value.split(","):
        source, _, target = mount.partition(":")
        if not source.startswith("/") or (target and not target.startswith("/")):
            raise CompeteError(f"{key}={value}: {mount!r} is no mount, write /outside:/inside,/same")


def _options(key: str, value: str) -> None:
    for option in split_words(key, value):
        if not option.startswith("-"):
            raise CompeteError(f"{key}={value}: {option!r} is no option, write --name=value, not --name value")


def _any(key: str, value: str) -> None:
    """Whatever the cluster makes of it."""


KEYS: dict[str, Callable[[str, str], None]] = {
    "COMPETE_ACCOUNT": _any,
    "COMPETE_PARTITION": _any,
    "COMPETE_QOS": _any,
    "COMPETE_GPUS_PER_NODE": _number(0),
    "COMPETE_TASKS_PER_NODE": _number(1),
    "COMPETE_CPUS_PER_TASK": _number(1),
    "COMPETE_TIME": _time,
    "COMPETE_SIGNAL_SECONDS": _number(1),
    "COMPETE_SBATCH": _options,
    "COMPETE_SOFTWARE": _one_of(SOFTWARE),
    "COMPETE_VENV": _any,
    "COMPETE_IMAGE": _any,
    "COMPETE_MOUNTS": _mounts,
    "COMPETE_LAUNCHER": _one_of(get_args(Launcher)),
    "COMPETE_MPI": _any,
    "COMPETE_MAX_FAILURES": _number(0),
    "COMPETE_BACKOFF_SECONDS": _number(0),
    "COMPETE_NODE_FAILURES": _number(1),
    VARIABLES: _any,
}
"""Every key of ours, and what refuses a bad value."""

DEFAULTS = {
    "COMPETE_SIGNAL_SECONDS": "300",
    "COMPETE_SOFTWARE": "venv",
    "COMPETE_LAUNCHER": "torchrun",
    "COMPETE_MAX_FAILURES": "3",
    "COMPETE_BACKOFF_SECONDS": "30",
    "COMPETE_NODE_FAILURES": "2",
}

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Settings:
    """Checked settings: ours with their defaults, and the variables that go to the ranks as they stand."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, *layers: Mapping[str, str]) -> "Settings":
        """Settings of these layers, later over earlier ones; an empty value takes a key back.

        Raises:
            CompeteError: an unknown key of ours, with the nearest known one, or a value that cannot be used.
        """
        values = dict(DEFAULTS)
        for layer in layers:
            values.update(layer)
        values = {key: value for key, value in values.items() if value != ""}
        for key, value in values.items():
            if not _KEY.fullmatch(key) or _CONTROL.search(value):
                raise CompeteError(f"{key!r} is no KEY=value on one line: use letters, digits and _ in a key")
            if key in KEYS:
                KEYS[key](key, value)
            elif key.startswith(PREFIX):
                raise CompeteError(
                    f"{key} is no setting{did_you_mean(key, KEYS)}: slurm/cluster.env.example lists them all"
                )
        return cls(values)

    def with_gpus_of(self, launch: Mapping[str, object]) -> "Settings":
        """Where nothing says how many GPUs a node has: the recipe's nproc-per-node."""
        ranks = launch.get("nproc-per-node")
        if ranks is None or self.get("GPUS_PER_NODE") is not None:
            return self
        return Settings.of(self.values, {"COMPETE_GPUS_PER_NODE": str(ranks)})

    def get(self, name: str) -> str | None:
        """A setting of ours by its short name, `PARTITION`."""
        return self.values.get(PREFIX + name)

    def number(self, name: str) -> int | None:
        """A setting that is a number, None where it is not given."""
        value = self.get(name)
        return None if value is None else int(value)

    @property
    def gpus_per_node(self) -> int:
        """GPUs that a job asks for on every node."""
        return self.number("GPUS_PER_NODE") or 0

    @property
    def tasks_per_node(self) -> int:
        """Ranks of a node: one a GPU unless told otherwise.

        Raises:
            CompeteError: neither is known.
        """
        tasks = self.number("TASKS_PER_NODE") or self.gpus_per_node
        if not tasks:
            raise CompeteError(
                "how many ranks a node has is not known: set COMPETE_GPUS_PER_NODE in cluster.env or give "
                "--gpus-per-node; on nodes without GPUs COMPETE_GPUS_PER_NODE=0 and COMPETE_TASKS_PER_NODE"
            )
        return tasks

    def text(self) -> str:
        """As lines that bash can source."""
        return "".join(f"{key}={shlex.quote(value)}\n" for key, value in sorted(self.values.items()))


def find_settings(given: Path | None) -> Path | None:
    """The settings file: `--cluster`, else $COMPETE_CLUSTER, else ./cluster.env, else the user's own; None without one.

    Raises:
        CompeteError: the one that was named is not there.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            source = "--cluster" if given else f"${VARIABLE}"
            raise CompeteError(f"{source} {named}: no such file, copy slurm/cluster.env.example and fill it in")
        return named
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for candidate in (Path(NAME), config / "megatron-compete" / NAME):
        if candidate.is_file():
            return candidate
    return None


def settings_to_keep(path: Path) -> dict[str, str]:
    """Our settings in a settings file, and where the ranks' variables are, if it has any.

    Raises:
        CompeteError: see `read_env_file`.
    """
    values = read_env_file(path)
    if VARIABLES in values:
        raise CompeteError(f"{path}: {VARIABLES} is written by submit: set the variables themselves")
    own = {key: value for key, value in values.items() if key.startswith(PREFIX)}
    return own if len(own) == len(values) else own | {VARIABLES: str(path.absolute())}


def split_words(where: str, text: str) -> list[str]:
    """Words as a shell sees them.

    Raises:
        CompeteError: a quote that is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CompeteError(f"{where}: {text.strip()!r} cannot be read: {error}") from None

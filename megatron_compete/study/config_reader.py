"""Reading a mapping of a YAML file, with errors that name the file, the key, the value and what is wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from megatron_compete.errors import CompeteError
from megatron_compete.recipe import Value

Arguments = dict[str, Value]

OWN_ARGUMENTS = (
    "train-iters", "probe-log", "probe-data", "probe-sequences", "probe-interval", "save", "load", "save-interval",
    "tensorboard-dir", "data-cache-path",
)  # fmt: skip
"""Arguments that a study sets for each of its runs, and that it takes from its own keys."""


class Reader:
    """Values of one mapping of the file, with errors that name file and key."""

    def __init__(self, path: Path, content: Any, where: str = "") -> None:
        self.path, self.where = path, where
        if not isinstance(content, Mapping):
            self.fail(f"is a {type(content).__name__}, not a mapping of names to values")
        self.content = dict(content)

    def fail(self, what: str, key: str = "") -> NoReturn:
        name = ".".join(part for part in (self.where, key) if part)
        raise CompeteError(f"--config {self.path}: {name or 'the file'} {what}")

    def only(self, *known: str) -> None:
        """Refuse keys that mean nothing."""
        for key in self.content:
            if key not in known:
                self.fail(f"is no key of a study here: known are {', '.join(known)}", str(key))

    def part(self, key: str) -> "Reader":
        return Reader(self.path, self.content.get(key) or {}, ".".join(filter(None, (self.where, key))))

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None, least: float | None = None) -> Any:
        value = self.content.get(key, default)
        if value is None and default is None:
            return None
        wrong_bool = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or wrong_bool:
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            self.fail(f"is {value!r}: give a {names}", key)
        number: Any = value
        if least is not None and number < least:
            self.fail(f"is {value}: give {least} or more", key)
        return value

    def need(self, key: str, kind: type | tuple[type, ...], least: float | None = None) -> Any:
        if self.content.get(key) is None:
            self.fail("is missing", key)
        return self.get(key, kind, least=least)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.get(key, str, default)
        if value not in choices:
            self.fail(f"is {value!r}: choose from {', '.join(choices)}", key)
        return str(value)

    def seeds(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        values = self.content.get(key, default)
        if not isinstance(values, list | tuple) or not values or not all(type(value) is int for value in values):
            self.fail(f"is {values!r}: give a list of whole numbers", key)
        if len(set(values)) < len(values):
            self.fail(f"is {values!r}: name each seed once", key)
        return tuple(values)

    def arguments(self, key: str) -> Arguments:
        part = self.part(key)
        for name, value in part.content.items():
            if not isinstance(value, bool | str | int | float | list | None):
                part.fail(f"is a {type(value).__name__}: give a scalar or a list", str(name))
            if name in OWN_ARGUMENTS:
                part.fail("is set by the study itself: leave it out", str(name))
        return part.content

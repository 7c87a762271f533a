"""Reading a mapping of a YAML file, with errors that name the file, the key, the value and what is wanted."""

from typing import Any, NoReturn

from megatron_compete.common.yaml_file import YamlFile
from megatron_compete.launch.recipe import Value, read_arguments

Arguments = dict[str, Value]

OWN_ARGUMENTS = (
    "train-iters", "probe-log", "probe-data", "probe-sequences", "probe-interval", "save", "load", "save-interval",
    "tensorboard-dir", "data-cache-path",
)  # fmt: skip
"""Arguments that a study sets for each of its runs, and that it takes from its own keys."""


class Reader:
    """Values of one mapping of the file, with errors that name file, line and key.

    Args:
        keys: where the mapping is in the file.
    """

    def __init__(self, file: YamlFile, content: Any, *keys: str) -> None:
        self.file, self.keys = file, keys
        self.content = dict(file.section(content, *keys))

    def fail(self, what: str, *keys: str) -> NoReturn:
        self.file.fail(f"{'.'.join((*self.keys, *keys)) or 'the file'} {what}", *self.keys, *keys)

    def only(self, *known: str) -> None:
        """Refuse keys that mean nothing."""
        for key in self.content:
            if key not in known:
                self.fail(f"is no key of a study here: known are {', '.join(known)}", key)

    def part(self, key: str) -> "Reader":
        return Reader(self.file, self.content.get(key), *self.keys, key)

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

    def names(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        values = self.get(key, list, list(default))
        if not all(isinstance(value, str) for value in values) or len(set(values)) < len(values):
            self.fail(f"is {values!r}: give a list of names, each once", key)
        return tuple(values)

    def arguments(self, key: str) -> Arguments:
        found = read_arguments(self.file, self.content.get(key), *self.keys, key)
        for name in found:
            if name in OWN_ARGUMENTS:
                self.fail("is set by the study itself: leave it out", key, name)
        return found

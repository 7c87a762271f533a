"""Recipes: a training job as a YAML file of Megatron argument names.

    launch:                      # torchrun's options, without the dashes
      nproc-per-node: 4
    arguments:                   # Megatron's and ours, without the dashes
      num-layers: 4
      swiglu: true               # true: the bare flag; false or null: not given
      data-path: [0.5, a, 0.5, b]  # a list: several values
    base: ../demo.yaml           # optional: a recipe beside this one, whose values stand where this one says nothing

What follows the recipe on a command line overrides it by name.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_compete.errors import CompeteError

MODULE = "megatron_compete.training.pretrain"
SECTIONS = ("launch", "arguments")
BASE = "base"
LAUNCH_OPTIONS = (
    "nnodes", "nproc-per-node", "node-rank", "master-addr", "master-port", "rdzv-backend", "rdzv-endpoint", "rdzv-id",
    "max-restarts", "standalone",
)  # fmt: skip
"""Options of torchrun that a recipe or an override can set; everything else goes to the trainer."""

Value = bool | str | int | float | list[Any] | None


@dataclass
class Recipe:
    """A job: torchrun's options and the trainer's arguments, both by name without dashes."""

    launch: dict[str, Value] = field(default_factory=dict)
    arguments: dict[str, Value] = field(default_factory=dict)

    def override(self, tokens: Iterable[str]) -> None:
        """Apply command-line tokens: `--name value ...` or `--name=value` replace what the recipe says."""
        for name, value in parse_overrides(tokens).items():
            (self.launch if name in LAUNCH_OPTIONS else self.arguments)[name] = value

    def command(self) -> list[str]:
        """Arguments of torchrun, the trainer module and its arguments included."""
        launch = dict(self.launch)
        if not any(name.startswith(("rdzv", "master")) for name in launch) and launch.get("nnodes", 1) in (1, "1"):
            launch.setdefault("standalone", True)  # a free port instead of a fixed one
        return [*_tokens(launch), "-m", MODULE, *_tokens(self.arguments)]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        CompeteError: the file is missing, is no YAML mapping, or has a section or value of a kind that is not known.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> Recipe:
    """The recipe over its base; `above` are those that it is the base of."""
    if path.resolve() in above:
        raise CompeteError(f"--recipe {path} is its own base: leave one of them out")
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise CompeteError(f"--recipe {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CompeteError(f"--recipe {path} is not YAML: {error}") from error
    if not isinstance(content, dict) or set(content) - {*SECTIONS, BASE}:
        raise CompeteError(f"--recipe {path} needs the sections {' and '.join(SECTIONS)}, and no others but {BASE}")
    base = content.get(BASE)
    recipe = _read(path.parent / str(base), (*above, path.resolve())) if base else Recipe()
    for section in SECTIONS:
        getattr(recipe, section).update(content.get(section) or {})
    for name in recipe.launch:
        if name not in LAUNCH_OPTIONS:
            raise CompeteError(f"--recipe {path}: launch option {name!r} is none of {', '.join(LAUNCH_OPTIONS)}")
    for name, value in recipe.arguments.items():
        if not isinstance(value, bool | str | int | float | list | None):
            raise CompeteError(
                f"--recipe {path}: the value of {name} is a {type(value).__name__}, not a scalar or list"
            )
    return recipe


def parse_overrides(tokens: Iterable[str]) -> dict[str, Value]:
    """Tokens of a command line as {name: value}: True without a value, a list for several."""
    overrides: dict[str, list[str]] = {}
    values: list[str] | None = None
    for token in tokens:
        if token.startswith("--"):
            name, has_value, value = token[2:].partition("=")
            values = overrides[name] = [value] if has_value else []
        elif values is None:
            raise CompeteError(f"{token!r} does not follow a flag: overrides are --name value, with Megatron's names")
        else:
            values.append(token)
    return {name: _single(values) for name, values in overrides.items()}


def _single(values: list[str]) -> Value:
    if not values:
        return True
    if len(values) == 1:
        return {"true": True, "false": False}.get(values[0], values[0])
    return list(values)


def _tokens(options: dict[str, Value]) -> list[str]:
    tokens = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        tokens.append(f"--{name}")
        if value is not True:
            tokens += [str(item) for item in (value if isinstance(value, list) else [value])]
    return tokens


def shell_line(command: list[str], environment: dict[str, str]) -> str:
    """The launch as one line for a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), "torchrun", shlex.join(command)])  # fmt: skip

"""Recipes: a training job as a YAML file of Megatron argument names.

    launch:                      # torchrun's options, without the dashes
      nproc-per-node: 4
    arguments:                   # Megatron's and ours, without the dashes
      num-layers: 4
      swiglu: true               # true: the bare flag; false or null: not given
      data-path: [0.5, a, 0.5, b]  # a list: several values
    base: ../demo.yaml           # optional: a recipe beside this one, whose values stand where this one says nothing,
                                 # or the name of a preset, as --compete-preset takes it

What follows the recipe on a command line overrides it by name.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_compete.common.errors import CompeteError, did_you_mean
from megatron_compete.common.sections import Section, read_section
from megatron_compete.common.yaml_file import YamlFile, kind_of

MODULE = "megatron_compete.training.pretrain"
LAUNCH_OPTIONS = (
    "nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "standalone", "max-restarts",
    "monitor-interval", "start-method", "event-log-handler", "role", "log-dir", "redirects", "tee", "local-ranks-filter",
    "duplicate-stdout-filters", "duplicate-stderr-filters", "node-rank", "master-addr", "master-port", "local-addr",
    "logs-specs", "numa-binding", "virtual-local-rank",
)  # fmt: skip
"""Options of torchrun that a recipe or an override can set, with dashes or underscores; everything else goes to the
trainer. A login node may have no torch to ask; a test compares them with torchrun's own parser."""

OF_THIS_ENTRY = ("module", "no-python", "run-path", "signals-to-handle")
"""Options of torchrun that say what runs and how it is stopped, which is not a recipe's to say."""

PRESETS = {
    path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"), key=lambda path: path.stem)
}
"""Recipes of competition that come with the package, by name. `base: NAME` and `--compete-preset NAME` are the same thing;
what they mean for a job is in `training/presets.py`."""

MEETING = ("rdzv-backend", "rdzv-endpoint", "rdzv-id", "node-rank", "master-addr", "master-port")
"""Options that say where the nodes meet."""

Value = bool | str | int | float | list[Any] | None


@dataclass
class Recipe:
    """A job: torchrun's options and the trainer's arguments, both by name without dashes."""

    launch: dict[str, Value] = field(default_factory=dict)
    arguments: dict[str, Value] = field(default_factory=dict)

    def override(self, tokens: Iterable[str]) -> None:
        """Apply command-line tokens: `--name value ...` or `--name=value` replace what the recipe says."""
        for name, value in parse_overrides(tokens).items():
            option = name.replace("_", "-")
            if option in OF_THIS_ENTRY:
                raise CompeteError(f"--{name} is set by this entry: use torchrun itself for another trainer")
            if option in LAUNCH_OPTIONS:
                self.launch[option] = value
            else:
                self.arguments[name] = value

    def command(self) -> list[str]:
        """Arguments of torchrun, the trainer module and its arguments included."""
        launch = dict(self.launch)
        if not any(name in MEETING for name in launch) and launch.get("nnodes", 1) in (1, "1"):
            launch.setdefault("standalone", True)  # a free port instead of a fixed one
        return [*_tokens(launch), "-m", MODULE, *_tokens(self.arguments)]


class _RecipeFile(Section):
    """The sections of a recipe; names and values in them are checked apart."""

    base: str | None = None
    launch: dict[str, Any] = Field(default_factory=dict)
    arguments: dict[str, Any] = Field(default_factory=dict)


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
    file = YamlFile(path, "--recipe")
    content = read_section(file, _RecipeFile, file.content)
    if not file.content:
        file.fail("is empty: a recipe has the sections launch and arguments")
    recipe = _base(file, content.base, (*above, path.resolve())) if content.base else Recipe()
    recipe.launch.update(read_launch(file, content.launch, "launch"))
    recipe.arguments.update(read_arguments(file, content.arguments, "arguments"))
    return recipe


def _base(file: YamlFile, base: str, above: tuple[Path, ...]) -> Recipe:
    if base in PRESETS:  # as defaults and not as its values, of which some are no settings of the other kind
        return Recipe(arguments={"compete-preset": base})
    path = file.path.parent / base
    if not path.suffix and not path.exists():
        file.fail(
            f"base {base} is neither a file beside this one nor a preset{did_you_mean(base, PRESETS)}: they are {', '.join(PRESETS)}",
            "base",
        )
    return _read(path, above)


def read_launch(file: YamlFile, content: Any, *keys: str) -> dict[str, Value]:
    """torchrun's options at `keys` of a file.

    Raises:
        CompeteError: an option that torchrun does not have, or a value that none can have.
    """
    found: dict[str, Value] = {}
    for name, value in read_arguments(file, content, *keys).items():
        option = name.replace("_", "-")  # torchrun takes both
        if option not in LAUNCH_OPTIONS:
            file.fail(
                f"launch option {name!r}{did_you_mean(option, LAUNCH_OPTIONS)} is none of {', '.join(LAUNCH_OPTIONS)}",
                *keys,
                name,
            )
        if option in found:
            file.fail(f"launch option {name} is given twice: keep one", *keys, name)
        found[option] = value
    return found


def read_arguments(file: YamlFile, content: Any, *keys: str) -> dict[str, Value]:
    """Arguments by name without dashes, at `keys` of a file.

    Raises:
        CompeteError: a name with dashes before it, or a value that is no scalar and no list of text and numbers.
    """
    found = file.section(content, *keys)
    for name, value in found.items():
        if name.startswith("-") or not name or "=" in name or any(letter.isspace() for letter in name):
            file.fail(
                f"{name!r} is no name of an argument: write it without dashes before it, its value behind the colon",
                *keys,
                name,
            )
        items = value if isinstance(value, list) else []
        odd = next((item for item in items if isinstance(item, bool) or not isinstance(item, str | int | float)), value)
        if isinstance(value, dict) or odd is not value:
            file.fail(
                f"{name} has {kind_of(odd)} as a value, where text, numbers, or a list of these can stand", *keys, name
            )
    return dict(found)


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

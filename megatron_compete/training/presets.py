"""Presets: recipes of competition as named sets of defaults, `--compete-preset NAME` or a recipe's `base: NAME`.

A preset is a recipe's file in `launch/presets/`. It becomes values by the name an argument has after parsing: settings of `CompeteConfig` with `compete_` before them,
and Megatron's arguments that belong to the recipe. What it does not name keeps its own default, and a flag that the user
gives wins over it, wherever either stands.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import DEFAULT_PRESET, PREFIX, RESPONSE_ALONE, UTILITY_ALONE, CompeteConfig, flag_of
from megatron_compete.launch import recipe
from megatron_compete.launch.recipe import read_recipe

Settings = Mapping[str, Any]

BALANCES = frozenset({"response_balance_coeff", "router_balance_coeff"})
"""Weights of losses that `balance_loss` is the form of."""

DECISIVE = ("kind", "warmup_steps", *sorted(BALANCES))
"""Fields of `CompeteConfig` by which settings of a preset have an effect or none."""

PRESETS: dict[str, Settings] = {
    name: {argument.replace("-", "_"): value for argument, value in read_recipe(path).arguments.items()}
    for name, path in recipe.PRESETS.items()
}
"""By name, of `launch/presets/`. No switches: no flag could switch one off again."""


def preset(name: str) -> Settings:
    """A preset by name.

    Raises:
        CompeteError: there is none of this name.
    """
    if name not in PRESETS:
        raise CompeteError(f"--compete-preset {name} is unknown: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_defaults(name: str, given: Settings = MappingProxyType({})) -> dict[str, Any]:
    """What a preset makes the defaults: without its settings that would have no effect, which `CompeteConfig` refuses.

    Args:
        given: what the user gives of `DECISIVE`, by the names of `CompeteConfig`'s fields.
    Raises:
        CompeteError: there is none of this name.
    """
    settings = preset(name)
    own = {dest.removeprefix(PREFIX): value for dest, value in settings.items()}
    chosen = {**{field.name: field.default for field in fields(CompeteConfig)}, **own, **given}
    idle = {"response": UTILITY_ALONE, "utility": RESPONSE_ALONE}.get(chosen["kind"], frozenset())
    if "warmup_steps" in given:
        idle |= {"warmup_fraction"}
    if not any(chosen[balance] for balance in BALANCES - idle):
        idle |= {"balance_loss"}
    return {dest: value for dest, value in settings.items() if dest.removeprefix(PREFIX) not in idle}


def defaults_asked_for(tokens: Sequence[str]) -> dict[str, Any]:
    """What a command line's `--compete-preset` makes the defaults; a parser needs to know before it parses the rest.

    Raises:
        CompeteError: there is no such preset.
    """
    return preset_defaults(*_asked_for(tokens))


def _asked_for(tokens: Sequence[str]) -> tuple[str, Settings]:
    """Name of the preset, and what is given of `DECISIVE`; values that are missing or wrong are the real parser's to refuse."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--compete-preset", nargs="?")
    for name in DECISIVE:
        first.add_argument(flag_of(name), dest=name, nargs="?", type=_number_or_text)
    found = vars(first.parse_known_args(tokens)[0])
    preset = found.pop("compete_preset") or DEFAULT_PRESET
    return preset, {name: value for name, value in found.items() if value is not None}


def _number_or_text(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def describe_preset(args: argparse.Namespace) -> str:
    """The preset of a job and each setting that is not the preset's, in one line.

    Args:
        args: validated. With another router than `--router compete`, Megatron's arguments alone count; the competition's
            have no effect.
    """
    given = {name: getattr(args, PREFIX + name) for name in DECISIVE if name != "warmup_steps"}
    expected = preset_defaults(args.compete_preset, given)
    if args.router == "compete":
        expected = {PREFIX + field.name: field.default for field in fields(CompeteConfig)} | expected
    else:
        expected = {dest: value for dest, value in expected.items() if not dest.startswith(PREFIX)}
    others = [
        f"{_flag(dest)} {getattr(args, dest)} (not {value})"
        for dest, value in expected.items()
        if getattr(args, dest) != value
    ]
    exceptions = f", except {', '.join(others)}" if others else ""
    if args.router == "compete":
        return f"--compete-preset {args.compete_preset}{exceptions}"
    return f"--router {args.router} with Megatron's settings of --compete-preset {args.compete_preset}{exceptions}"


def _flag(dest: str) -> str:
    return "--" + dest.replace("_", "-")

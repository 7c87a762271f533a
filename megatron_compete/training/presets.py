"""Presets: recipes of competition as named sets of defaults, `--compete-preset NAME`.

A preset holds values by the name an argument has after parsing: settings of `CompeteConfig` with `compete_` before them,
and Megatron's arguments that belong to the recipe. What it does not name keeps its own default, and a flag that the user
gives wins over it, wherever either stands.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import DEFAULT_PRESET, PREFIX, RESPONSE_ALONE, UTILITY_ALONE, CompeteConfig

Settings = Mapping[str, Any]

PAPER: Settings = {
    "compete_kind": "response",
    "compete_rate": 0.07,
    "compete_max_active_layers": 3,
    "compete_response": "softplus",
    "compete_distill_loss": "mse",
    "compete_distill_coeff": 0.001,
    "compete_distill_winner_coeff": 0.2,
    "compete_diversity_coeff": 0.005,
    "compete_response_balance_coeff": 0.005,
    "compete_router_balance_coeff": 0.01,
    "moe_aux_loss_coeff": 0.0,
}
"""The language recipe of CompeteSMoE (arXiv 2505.13380), which `CompeteConfig`'s defaults are too. Its balance loss is the
entropy form, so Megatron's is off."""

RECOMMENDED: Settings = {
    "compete_kind": "utility",
    "compete_rate": 0.03,
    "compete_router_balance_coeff": 0.0,
    "moe_aux_loss_coeff": 0.01,
}
"""What `docs/findings.md` recommends to those who want competition: the kind and rate that cost the least, with the load
balanced by Megatron's own loss, as top-K baselines have it. It was not shown to be better than top-K."""

PRESETS: dict[str, Settings] = {"paper": PAPER, "recommended": RECOMMENDED}
"""By name. No switches: no flag could switch one off again."""


def preset(name: str) -> Settings:
    """A preset by name.

    Raises:
        CompeteError: there is none of this name.
    """
    if name not in PRESETS:
        raise CompeteError(f"--compete-preset {name} is unknown: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_defaults(name: str, kind: str | None = None) -> dict[str, Any]:
    """What a preset makes the defaults.

    Args:
        kind: `--compete-kind`, where the user gives it. Settings that belong to the other kind alone are then left out,
            since `CompeteConfig` refuses them.
    Raises:
        CompeteError: there is none of this name.
    """
    settings = preset(name)
    kind = kind or settings.get("compete_kind", CompeteConfig.kind)
    idle = {"response": UTILITY_ALONE, "utility": RESPONSE_ALONE}.get(kind, frozenset())
    return {dest: value for dest, value in settings.items() if dest.removeprefix(PREFIX) not in idle}


def defaults_asked_for(tokens: Sequence[str]) -> dict[str, Any]:
    """What a command line's `--compete-preset` makes the defaults; a parser needs to know before it parses the rest.

    Raises:
        CompeteError: there is no such preset.
    """
    return preset_defaults(*_asked_for(tokens))


def _asked_for(tokens: Sequence[str]) -> tuple[str, str | None]:
    """Name of the preset, and the kind if one is given; values that are missing are the real parser's to refuse."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--compete-preset", nargs="?")
    first.add_argument("--compete-kind", nargs="?")
    found, _ = first.parse_known_args(tokens)
    return found.compete_preset or DEFAULT_PRESET, found.compete_kind


def describe_preset(args: argparse.Namespace) -> str:
    """The preset of a job and each setting that is not the preset's, in one line.

    Args:
        args: validated. With another router than `--router compete`, Megatron's arguments alone count; the competition's
            have no effect.
    """
    expected = preset_defaults(args.compete_preset, args.compete_kind)
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

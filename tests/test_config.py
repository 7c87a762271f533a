"""Settings and their checks."""

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig, flag_of
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.config import flag_of as baseline_flag_of
from megatron_compete.routing.responses import RESPONSES
from megatron_compete.training.arguments import add_arguments


def test_defaults_are_the_authors_language_recipe() -> None:
    config = CompeteConfig()
    assert (config.rate, config.warmup_steps) == (0.07, 0)  # A_max follows from the depth: tests/schedule/test_table.py
    assert (config.distill_coeff, config.distill_winner_coeff) == (0.001, 0.2)
    assert (config.diversity_coeff, config.response_balance_coeff, config.router_balance_coeff) == (0.005, 0.005, 0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate", 1.01),
        ("rate", -0.1),
        ("rate", float("nan")),
        ("token_fraction", 0.0),
        ("token_fraction", 1.01),
        ("token_fraction", float("nan")),
        ("max_active_layers", 0),
        ("warmup_steps", -1),
        ("warmup_fraction", -0.1),
        ("warmup_fraction", 1.0),
        ("router_z_loss_coeff", -1.0),
    ]
    + [("score_chunk_tokens", 0), ("diversity_coeff", -0.1), ("distill_winner_coeff", -1.0)],
)
def test_out_of_range_names_flag_and_value(field: str, value: float) -> None:
    with pytest.raises(CompeteError, match=f"{flag_of(field)} {value} is out of range"):
        CompeteConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("response", "l2"), ("response_gradients", "all"), ("distill_loss", "kl"), ("distill_coeff", 1.0)]
    + [("distill_standardize", True), ("diversity_coeff", 0.1), ("response_balance_coeff", 0.1)],
)
def test_settings_of_responses_have_no_effect_on_utility(field: str, value: Any) -> None:
    with pytest.raises(CompeteError, match=f"{flag_of(field)} {value} has no effect with --compete-kind utility"):
        CompeteConfig(kind="utility", **{field: value})


def test_settings_of_utility_have_no_effect_on_responses() -> None:
    with pytest.raises(CompeteError, match="--compete-utility-gradient missing has no effect with --compete-kind resp"):
        CompeteConfig(utility_gradient="missing")


def test_utility_shares_what_is_not_about_responses_and_takes_losses_that_are_off() -> None:
    config = CompeteConfig(kind="utility", rate=0.3, router_balance_coeff=0.1, diversity_coeff=0.0, distill_coeff=0.0)
    assert config.enabled and config.utility_gradient == "dense"


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (dict(response_balance_coeff=0.0, router_balance_coeff=0.0), "--compete-response-balance-coeff and --compete-router-"),
        (dict(kind="utility", router_balance_coeff=0.0), "--compete-router-balance-coeff 0"),
    ],
)  # fmt: skip
def test_a_form_of_balance_needs_a_balance(settings: dict[str, Any], flags: str) -> None:
    with pytest.raises(CompeteError, match=f"--compete-balance-loss top1 changes nothing at {flags}"):
        CompeteConfig(balance_loss="top1", **settings)
    assert CompeteConfig(balance_loss="top1", response_balance_coeff=0.0).balance_loss == "top1"


def job(**arguments: Any) -> argparse.Namespace:
    return argparse.Namespace(compete_warmup_fraction=0.05, **arguments)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (dict(train_iters=100), 5),
        (dict(train_iters=101), 6),
        (dict(train_iters=3), 1),
        (dict(train_samples=8000, global_batch_size=80), 5),
        (dict(train_samples=8079, global_batch_size=80), 5),
        (dict(train_iters=40, train_samples=8000, global_batch_size=80), 2),
    ],
)
def test_a_warm_up_can_be_a_fraction_of_the_steps(arguments: dict[str, Any], steps: int) -> None:
    config = CompeteConfig.from_arguments(job(**arguments))
    assert config == CompeteConfig(warmup_fraction=0.05).of_run(arguments.get("train_iters", 100))
    assert config.warmup_steps == steps
    assert CompeteConfig(warmup_steps=7).of_run(100).warmup_steps == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "is a fraction of a number of steps: give --train-iters, or --train-samples"),
        (dict(train_samples=8000), "or --train-samples with a --global-batch-size"),
        (dict(train_samples=8000, global_batch_size=8, step_batch_size_schedule="0:8"), "or --compete-warmup-steps"),
        (dict(train_iters=100, compete_warmup_steps=7), "and --compete-warmup-steps 7 exclude each other: keep one"),
        (dict(compete_preset="mine"), r"\(what is not given is --compete-preset mine's\)"),
    ],
)
def test_a_fraction_of_no_steps_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CompeteError, match=f"^--compete-warmup-fraction 0.05 .*{says}"):
        CompeteConfig.from_arguments(job(**arguments))
    assert (
        CompeteConfig.from_arguments(job(compete_rate=0.0)).warmup_steps == 0
    )  # where nothing competes, nothing is needed


def test_unknown_kinds() -> None:
    with pytest.raises(CompeteError, match="--compete-kind usefulness is out of range: choose from response, utility"):
        CompeteConfig(kind="usefulness")  # type: ignore[arg-type]


CONFIGS = [(CompeteConfig, flag_of), (BaselineConfig, baseline_flag_of)]


@pytest.mark.parametrize(
    ("kind", "flag", "field"),
    [(kind, flag, field.name) for kind, flag in CONFIGS for field in dataclasses.fields(kind)],
)
def test_every_field_refuses_what_its_annotation_does_not_have(
    kind: type, flag: Callable[[str], str], field: str
) -> None:
    """Built in Python too, where no argparse has looked at it; a misspelt choice must not mean the default."""
    default = getattr(kind(), field)
    takes_none = type(None) in typing.get_args(typing.get_type_hints(kind)[field])
    for wrong in (f"{default}x", math.nan, math.inf, [default], *(() if takes_none else (None,))):
        with pytest.raises(CompeteError, match=rf"^{flag(field)} .* is out of range: (choose from|give) "):
            kind(**{field: wrong})
    if isinstance(default, bool | int):
        with pytest.raises(CompeteError, match="is out of range"):
            kind(**{field: 1.5})


def test_the_command_line_offers_what_the_configuration_takes() -> None:
    parser = add_arguments(argparse.ArgumentParser())
    for kind, flag in CONFIGS:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            (action,) = [action for action in parser._actions if flag(field.name) in action.option_strings]
            is_choice = typing.get_origin(hints[field.name]) is typing.Literal
            assert tuple(action.choices or ()) == (typing.get_args(hints[field.name]) if is_choice else ()), field.name
    assert typing.get_args(typing.get_type_hints(CompeteConfig)["response"]) == tuple(RESPONSES)

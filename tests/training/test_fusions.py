"""Megatron's fused kernels stay Megatron's choice."""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import pytest
from megatron.training.argument_utils import core_transformer_config_from_args
from megatron.training.arguments import parse_args, validate_args

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import MODULE, read_recipe
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.training import arguments
from megatron_compete.training.arguments import add_arguments, check_installed
from megatron_compete.training.model import transformer_config
from megatron_compete.training.presets import PRESETS

RECIPES = Path(__file__).resolve().parents[2] / "examples"
OURS = ("compete-", "relu", "router")
WORLDS = {"competesmoe_154m": 8, "moe_30b_a3b": 128, "demo": 4}
"""Recipes, and the GPUs that each asks for."""


def parsed(recipe_name: str, monkeypatch: pytest.MonkeyPatch, *, ours: bool) -> argparse.Namespace:
    """A recipe's arguments on its GPUs, validated; without our flags and our parser, what Megatron makes of it."""
    recipe = read_recipe(RECIPES / f"{recipe_name}.yaml")
    if not ours:
        recipe.arguments = {k: v for k, v in recipe.arguments.items() if not k.startswith(OURS)}
    recipe.arguments |= {"tokenizer-type": "NullTokenizer", "mock-data": True}
    command = recipe.command()
    monkeypatch.setattr(sys, "argv", ["pretrain", *command[command.index(MODULE) + 1 :]])
    args = parse_args(add_arguments if ours else None)
    args.rank, args.world_size = 0, WORLDS[recipe_name]
    validate_args(args)
    return args


@pytest.mark.parametrize("recipe", WORLDS)
def test_our_entry_sets_megatrons_configuration_and_fuses_what_megatron_fuses(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_gpu():
        args = parsed(recipe, monkeypatch, ours=True)
        stock_args = parsed(recipe, monkeypatch, ours=False)
        config = transformer_config(args)
        stock = core_transformer_config_from_args(stock_args)
    differ = {name for name, value in vars(stock_args).items() if not _same(vars(args)[name], value)}
    assert differ <= {"eval_interval", *PRESETS[args.compete_preset]}
    stock.moe_aux_loss_coeff = config.moe_aux_loss_coeff  # the preset's
    assert args.gradient_accumulation_fusion and args.apply_rope_fusion and args.masked_softmax_fusion
    named = {f.name for f in dataclasses.fields(stock)}
    changed = {name for name in named if not _same(getattr(config, name), getattr(stock, name))}
    assert changed == ({"activation_func"} if args.relu else set())


def _same(one: object, other: object) -> bool:
    """Equal; initialisers of weights are made anew for each configuration."""
    return one == other or (isinstance(one, functools.partial) and repr(one) == repr(other))


def needs(**values: object) -> argparse.Namespace:
    settings = dict(
        transformer_impl="local",
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bf16=True,
        fp16=False,
        hybrid_layer_pattern=None,
        experimental_attention_variant=None,
    )
    return argparse.Namespace(**(settings | values))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            needs(transformer_impl="transformer_engine"),
            "transformer_engine for this: install it, or give --transformer-impl local",
        ),
        (
            needs(gradient_accumulation_fusion=True),
            "fused_weight_gradient_mlp_cuda for this: install it, or give --no-gradient",
        ),
        (needs(masked_softmax_fusion=True), "softmax_cuda for this: install it, or give --no-masked-softmax-fusion"),
        (
            needs(hybrid_layer_pattern="M*E"),
            "mamba_ssm for this: install it, or give a --hybrid-layer-pattern without M",
        ),
        (needs(hybrid_layer_pattern="G*E"), "fla for this: install it, or give another attention"),
        (needs(experimental_attention_variant="gated_delta_net"), "fla for this: install it"),
    ],
)
def test_a_missing_package_is_one_line(args: argparse.Namespace, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "installed", lambda module: False)
    with pytest.raises(CompeteError, match=message):
        check_installed(args)
    monkeypatch.setattr(arguments, "installed", lambda module: True)
    check_installed(args)


def test_nothing_is_needed_for_what_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "installed", lambda module: False)
    check_installed(needs())
    check_installed(needs(masked_softmax_fusion=True, bf16=False))


def test_what_is_installed_is_found() -> None:
    assert arguments.installed("torch") and not arguments.installed("no_such_module")

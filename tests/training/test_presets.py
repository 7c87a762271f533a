"""Presets are defaults: what they hold, and what wins over them."""

import argparse
import dataclasses
import re
import sys

import pytest
from megatron.training.arguments import parse_args

from benchmarks import planned_overhead
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.trainers.same_schedule import continued
from megatron_compete.training.arguments import add_arguments
from megatron_compete.training.presets import PREFIX, PRESETS, describe_preset


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch):
    """Parses a command line with Megatron's parser and ours."""

    def parse(flags: str = "") -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["pretrain", *flags.split()])
        args = parse_args(add_arguments)
        if isinstance(args.moe_aux_loss_coeff, list):  # as `validate_args` does
            (args.moe_aux_loss_coeff,) = args.moe_aux_loss_coeff
        return args

    return parse


@pytest.fixture(autouse=True)
def presets_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `recommended` comes to be: one by utility, and one with settings of competition by response alone."""
    useful = {"compete_kind": "utility", "compete_rate": 0.05, "moe_aux_loss_coeff": 0.01}
    centred = {"compete_rate": 0.1, "compete_response_centering": "batch", "compete_distill_loss": "kl"}
    monkeypatch.setitem(PRESETS, "useful", useful)
    monkeypatch.setitem(PRESETS, "centred", centred)


def test_paper_is_what_the_defaults_are(parsed) -> None:
    named = {dest.removeprefix(PREFIX): value for dest, value in PRESETS["paper"].items() if dest.startswith(PREFIX)}
    assert named.items() <= dataclasses.asdict(CompeteConfig()).items()
    assert (
        CompeteConfig.from_arguments(parsed()) == CompeteConfig() == CompeteConfig.from_arguments(argparse.Namespace())
    )
    assert parsed("--compete-preset paper") == parsed()


@pytest.mark.parametrize("name", ("paper", "paper-vlm", "recommended", "scarce-data"))
def test_a_preset_is_its_flags_written_out(name: str, parsed) -> None:
    """So every setting is a flag's, of the kind that the flag parses to, and fits the others."""
    assert not any(isinstance(value, bool) for value in PRESETS[name].values())
    written = " ".join(f"--{dest.replace('_', '-')} {value}" for dest, value in PRESETS[name].items())
    by_name, by_flag = parsed(f"--compete-preset {name} --train-iters 40"), parsed(f"{written} --train-iters 40")
    assert by_name.compete_preset == name
    by_flag.compete_preset = name
    assert by_name == by_flag
    assert CompeteConfig.from_arguments(by_name).kind == by_name.compete_kind


def test_flags_win_wherever_they_stand(parsed) -> None:
    flags = "--compete-rate 0.2 --moe-aux-loss-coeff 0.5"
    before, after = parsed(f"{flags} --compete-preset=useful"), parsed(f"--compete-preset useful {flags}")
    assert before == after
    assert (before.compete_kind, before.compete_rate, before.moe_aux_loss_coeff) == ("utility", 0.2, 0.5)
    assert parsed("--compete-preset paper --compete-preset useful") == parsed("--compete-preset useful")


def test_a_warm_up_in_steps_takes_the_place_of_a_fraction(parsed) -> None:
    vision = CompeteConfig.from_arguments(parsed("--compete-preset paper-vlm --train-iters 40"))
    assert (vision.warmup_fraction, vision.warmup_steps) == (0.05, 2)
    for steps in (0, 7):
        args = parsed(f"--compete-warmup-steps {steps} --compete-preset paper-vlm --train-iters 40")
        assert CompeteConfig.from_arguments(args) == dataclasses.replace(
            vision, warmup_fraction=0.0, warmup_steps=steps
        )
    assert describe_preset(args) == (
        "--compete-preset paper-vlm, except --compete-warmup-steps 7 (not 0), --compete-warmup-fraction 0.0 (not 0.05)"
    )
    with pytest.raises(CompeteError, match="exclude each other"):
        CompeteConfig.from_arguments(parsed("--compete-warmup-steps 7 --compete-warmup-fraction 0.1 --train-iters 40"))


def test_the_vision_recipe_also_goes_by_utility(parsed) -> None:
    """Without its losses of winners, and with those of its router."""
    config = CompeteConfig.from_arguments(parsed("--compete-preset paper-vlm --compete-kind utility --train-iters 40"))
    assert (config.kind, config.balance_loss, config.router_z_loss_coeff) == ("utility", "top1", 0.001)
    assert config.diversity_coeff == CompeteConfig.diversity_coeff


def test_the_vision_recipe_also_goes_without_balance(parsed) -> None:
    """Its form of balance losses stays out where there are none, and only there."""
    flags = "--compete-preset paper-vlm --train-iters 40 --compete-router-balance-coeff 0"
    none = parsed(f"{flags} --compete-response-balance-coeff 0.0")
    config = CompeteConfig.from_arguments(none)
    assert (config.balance_loss, config.router_balance_coeff, config.response_balance_coeff) == ("entropy", 0.0, 0.0)
    assert config.distill_coeff == 0.01
    assert describe_preset(none) == (
        "--compete-preset paper-vlm, except --compete-response-balance-coeff 0.0 (not 0.01), "
        "--compete-router-balance-coeff 0.0 (not 0.01)"
    )
    assert CompeteConfig.from_arguments(parsed(flags)).balance_loss == "top1"
    assert CompeteConfig.from_arguments(parsed(f"{flags} --compete-kind utility")).balance_loss == "entropy"
    with pytest.raises(CompeteError, match="--compete-balance-loss top1 changes nothing"):
        CompeteConfig.from_arguments(
            parsed(f"{flags} --compete-response-balance-coeff 0 --compete-balance-loss top1 --compete-preset paper")
        )
    with pytest.raises(CompeteError, match="argument --compete-router-balance-coeff: invalid float value: 'much'"):
        parsed("--compete-preset paper-vlm --compete-router-balance-coeff much")


@pytest.mark.parametrize("router", ("topk", "remoe"))
def test_a_fraction_of_the_steps_is_asked_for_where_there_is_a_schedule(router: str, parsed) -> None:
    flags = "--compete-preset paper-vlm"
    assert CompeteConfig.from_arguments(parsed(f"{flags} --router {router}")).warmup_steps == 0
    with pytest.raises(CompeteError, match="is a fraction of a number of steps"):
        CompeteConfig.from_arguments(parsed(flags))


def shown_default(flag: str, asked_for: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What `pretrain --help` says of a flag's default, with this command line."""
    monkeypatch.setattr(sys, "argv", ["pretrain", "--help", *asked_for.split()])
    parser = add_arguments(argparse.ArgumentParser(prog="", formatter_class=WideHelp))
    (line,) = [line for line in parser.format_help().splitlines() if line.split()[:1] == [flag]]
    said = re.findall(r"\(default: ([^)]*)\)", line)
    return said[0] if len(said) == 1 else None


class WideHelp(argparse.HelpFormatter):
    """A line for each flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=200, width=5000)


def test_help_shows_the_defaults_of_the_preset_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag, dest in (("--compete-max-active-layers", "max_active_layers"), ("--compete-rate", "rate")):
        assert shown_default(flag, "", monkeypatch) == str(getattr(CompeteConfig, dest))
        assert shown_default(flag, "--compete-preset paper-vlm", monkeypatch) == str(
            PRESETS["paper-vlm"][PREFIX + dest]
        )
    assert shown_default("--vision-num-layers", "", monkeypatch) is None  # None is no number of layers
    assert shown_default("--vision-layernorm-epsilon", "", monkeypatch) == "1e-5 for clip, 1e-6 for siglip"


def test_settings_of_the_other_kind_stay_out(parsed) -> None:
    args = parsed("--compete-preset centred --compete-kind utility")
    assert CompeteConfig.from_arguments(args) == CompeteConfig(kind="utility", rate=0.1)
    assert describe_preset(args) == "--compete-preset centred, except --compete-kind utility (not response)"
    assert CompeteConfig.from_arguments(parsed("--compete-preset centred")).response_centering == "batch"
    assert CompeteConfig.from_arguments(parsed("--compete-preset useful --compete-kind response")) == CompeteConfig(
        rate=0.05
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "--compete-preset best",
            "^--compete-preset best is unknown: choose from paper, paper-vlm, recommended, scarce-data, ",
        ),
        ("--compete-preset", "argument --compete-preset: expected one argument"),
        ("--compete-preset --compete-kind utility", "argument --compete-preset: expected one argument"),
        ("--compete-preset useful --compete-kind usefulness", "argument --compete-kind: invalid choice"),
    ],
)
def test_what_cannot_be_is_one_line(flags: str, says: str, parsed) -> None:
    with pytest.raises(CompeteError, match=says) as raised:
        parsed(flags)
    assert "\n" not in str(raised.value)


def test_a_refusal_names_the_preset_that_is_part_of_it(parsed) -> None:
    args = parsed("--compete-preset useful --compete-diversity-coeff 0.1")
    with pytest.raises(CompeteError, match=r"-coeff 0.1 has no effect .*leave it out \(.*--compete-preset useful's"):
        CompeteConfig.from_arguments(args)


def test_the_line_names_what_is_not_the_presets(parsed) -> None:
    assert describe_preset(parsed()) == "--compete-preset paper"
    assert describe_preset(parsed("--compete-rate 0.07 --compete-seed 7")) == (
        "--compete-preset paper, except --compete-seed 7 (not 1234)"
    )
    assert describe_preset(parsed("--compete-preset useful --moe-aux-loss-coeff 0 --compete-rate 0.2")) == (
        "--compete-preset useful, except --compete-rate 0.2 (not 0.05), --moe-aux-loss-coeff 0.0 (not 0.01)"
    )


def test_the_baseline_keeps_megatrons_part(parsed) -> None:
    args = parsed("--compete-preset useful --router topk --compete-rate 0.5")
    assert args.moe_aux_loss_coeff == 0.01
    assert describe_preset(args) == "--router topk with Megatron's settings of --compete-preset useful"


def test_a_resumed_run_refuses_another_presets_schedule_and_takes_its_losses(parsed) -> None:
    paper, centred, late = (
        CompeteConfig.from_arguments(parsed(flags))
        for flags in ("", "--compete-preset centred", "--compete-preset centred --compete-rate 0.07")
    )
    saved, other, same = (CompetitionSchedule.of(config, ((0, 0),) * 4).settings() for config in (paper, centred, late))
    with pytest.raises(CompeteError, match=r"--compete-rate 0.07 -> 0.1\. Give the checkpoint's values"):
        continued(saved, other, centred)
    assert continued(saved, same, late) == saved


def test_scarce_data_has_all_tokens_of_all_layers_compete_by_utility_at_every_step(parsed) -> None:
    config = CompeteConfig.from_arguments(parsed("--compete-preset scarce-data"))
    assert (config.kind, config.rate, config.token_fraction, config.router_balance_coeff) == ("utility", 1.0, 1.0, 0.0)
    assert CompetitionSchedule.of(config, ((0, 0),) * 4).table(0, 10).all()


@pytest.mark.parametrize("name", planned_overhead.RECIPES)
def test_recommended_costs_every_shipped_recipe_five_percent_at_most(name: str) -> None:
    cost = planned_overhead.overhead(planned_overhead.planned(name, "h100"), planned_overhead.recommended())
    assert 0.5 < cost.simulated <= 5.0

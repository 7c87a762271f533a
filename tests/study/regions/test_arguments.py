"""Flags: what they mean, and what is refused."""

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.study.regions.arguments import parse_arguments


def test_presets_give_their_values_and_flags_win() -> None:
    config = CompeteConfig.from_arguments(parse_arguments(["--compete-preset", "recommended"]))
    assert (config.kind, config.rate, config.token_fraction) == ("utility", 1.0, 0.02)
    args = parse_arguments(["--compete-preset", "recommended", "--compete-token-fraction", "0.07"])
    assert CompeteConfig.from_arguments(args).token_fraction == 0.07
    assert args.moe_aux_loss_coeff == 0.01 and parse_arguments([]).moe_aux_loss_coeff == 0.0


def test_the_rank_is_what_an_expert_can_be() -> None:
    assert parse_arguments(["--moe-ffn-hidden-size", "24"]).region_rank == 12
    assert parse_arguments(["--moe-ffn-hidden-size", "24", "--region-rank", "3"]).region_rank == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--num-layers 2", "unrecognized arguments: --num-layers 2"),
        ("--router oracle --moe-router-topk 2", "--moe-router-topk 2 is out of range: --router oracle"),
        ("--router oracle --num-experts 8", "--regions 16 is out of range: --router oracle needs an expert for each"),
        ("--moe-router-topk 17", "--moe-router-topk 17 is out of range: there are 16 experts"),
        ("--samples 100", "--samples 100 is out of range"),
        ("--grow-experts copies", "--grow-experts without --initial"),
        ("--grow-noise 0.1", "--grow-noise without --initial"),
        ("--lr 1e-5", "--min-lr 0.0001 is out of range"),
        ("--probe-interval 0", "--probe-interval 0 is out of range"),
        ("--router topk --router-temperature 0.5", "--router-temperature 0.5 has no effect with --router topk"),
        ("--compete-kind utility --compete-distill-coeff 0.5", "--compete-distill-coeff 0.5 has no effect"),
    ],
)
def test_what_is_refused(line: str, words: str) -> None:
    with pytest.raises(CompeteError, match=words):
        parse_arguments(line.split())

"""Operations by hand."""

import pytest

from megatron_compete.config import CompeteConfig
from megatron_compete.study.regions.arguments import parse_arguments
from megatron_compete.study.regions.flops import competition_flops, expert_flops

UTILITY = ("--compete-kind", "utility", "--compete-router-balance-coeff", "0")


def test_a_step_is_three_passes_of_two_matrices_of_k_experts_and_a_competition_one_of_all() -> None:
    args = parse_arguments(["--moe-router-topk", "2", *UTILITY])
    assert expert_flops(args) == 3 * 256 * 2 * (2 * 16 * 16 * 2)
    assert competition_flops(args, CompeteConfig.from_arguments(args)) == 256 * 16 * (2 * 16 * 16 * 2)


def test_utility_at_7_percent_of_the_steps_costs_37_percent_at_one_expert() -> None:
    args = parse_arguments([*UTILITY, "--compete-rate", "1", "--compete-token-fraction", "0.07"])
    extra = competition_flops(args, CompeteConfig.from_arguments(args)) / expert_flops(args)
    assert extra == pytest.approx(0.07 * 16 / 3)

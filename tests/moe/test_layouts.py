"""The layer on every layout of up to four ranks against the dense reference in fp64.

Compared are outputs, input gradients, and the gradients of router and experts as the optimizer would get them.
"""

import dataclasses

import pytest

from megatron_compete.config import CompeteConfig
from tests.moe.layouts import BATCH, SEQUENCE, Layout, all_layouts, rest_is_slow
from tests.moe.steps import Case, check, random_batch

STRONG = CompeteConfig(
    rate=0.5, max_active_layers=1, distill_coeff=7.0, diversity_coeff=5.0, response_balance_coeff=3.0,
    router_balance_coeff=3.0, score_chunk_tokens=3,
)  # fmt: skip
"""Loss weights large enough that an error in any loss shows in the gradients; a chunk that divides nothing."""

OPTIONS = dataclasses.replace(
    STRONG, response_centering="batch", response_gradients="all", distill_loss="kl", distill_temperature=0.5,
    distill_standardize=True,
)  # fmt: skip

UTILITY = CompeteConfig(
    kind="utility", rate=0.5, max_active_layers=1, router_balance_coeff=0.3, score_chunk_tokens=3,
)  # fmt: skip

VISION = dataclasses.replace(STRONG, balance_loss="top1", router_z_loss_coeff=0.5, distill_winner_coeff=0.0)
"""The losses of `--compete-preset paper-vlm`, as heavy."""

FRACTION = 0.4
"""Of 8 positions: 3 or 4, so that of 4 ranks some hold more than others, or none."""


def sampled(config: CompeteConfig) -> Case:
    """A step at which a sample of the tokens competes."""
    return Case(dataclasses.replace(config, token_fraction=FRACTION))


CASES = {
    "softplus": Case(STRONG),
    "l2": Case(dataclasses.replace(STRONG, response="l2")),
    "options": Case(OPTIONS),
    "utility": Case(UTILITY),
    "utility-missing": Case(dataclasses.replace(UTILITY, utility_gradient="missing")),
    "normal": Case(STRONG, competes=False),
    "vision": Case(VISION),
    "vision-normal": Case(VISION, competes=False),
    "sampled": sampled(dataclasses.replace(STRONG, response="l2")),
    "sampled-options": sampled(OPTIONS),
    "sampled-vision": sampled(dataclasses.replace(VISION, response_centering="batch")),
    "sampled-utility": sampled(UTILITY),
    "sampled-utility-missing": sampled(dataclasses.replace(UTILITY, utility_gradient="missing")),
}

EXCHANGED = ("options", "utility-missing", "normal", "sampled-options", "sampled-vision", "sampled-utility-missing")
"""Cases that exchange all that there is between ranks: what the others change happens within one."""

LAYOUTS = [layout for world in (1, 2, 4) for layout in all_layouts(world)]

COVERING = [
    Layout(),
    Layout(world=2, tp=2, ep=2),
    Layout(world=2, cp=2, etp=2),
    Layout(world=4, ep=4),
    Layout(world=4, tp=2, etp=4),
    Layout(world=4, tp=4, ep=2),
    Layout(world=4, cp=2),
    Layout(world=4, cp=4, etp=2),
    Layout(world=4, tp=2, cp=2, ep=2, etp=2),
]
"""In `make test`: one rank; two ranks with each way to split tokens and each way to split experts; and at four ranks each
of the six ways to split tokens (TP x CP) and each of the six to split experts (EP x ETP) once. The two splits use separate
process groups, so the other 37 layouts only pair the same groups differently: they run `EXCHANGED`, these all of `CASES`. The
other dispatchers are `test_dispatchers.py`'s."""


@pytest.mark.parametrize("layout", rest_is_slow(LAYOUTS, COVERING), ids=str)
def test_layer_equals_dense_reference(layout: Layout) -> None:
    cases = CASES if layout in COVERING else {name: CASES[name] for name in EXCHANGED}
    check(layout, random_batch(layout, SEQUENCE, BATCH), cases)


PER_TOKEN = [
    Layout(),
    Layout(world=2),
    Layout(world=2, cp=2, ep=2),
    Layout(world=4, ep=4),
    Layout(world=4, tp=2, ep=2, etp=2),
    Layout(world=4, tp=2, cp=2, ep=4),
]


@pytest.mark.parametrize("layout", rest_is_slow(PER_TOKEN, [PER_TOKEN[1], PER_TOKEN[2], PER_TOKEN[4]]), ids=str)
def test_gradients_divided_by_tokens_at_the_end(layout: Layout) -> None:
    """--calculate-per-token-loss."""
    layout = dataclasses.replace(layout, per_token=True)
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES)

"""The table of an audit's numbers, and how they are written."""

import math

import pytest

from megatron_compete.audit.measures import (
    METRICS,
    by_layer,
    changes,
    has_spread,
    interval,
    mean,
    number,
    short,
    targets,
)
from megatron_compete.audit.results import Interval, Regret
from tests.audit.audits import layer_audit, small_audit


def test_every_number_is_read_from_its_layer() -> None:
    audit = small_audit()
    found = {key: by_layer(audit, key) for key in METRICS}
    assert found["load_entropy"] == ([0, 1], [0.74, 0.74])
    assert found["busiest"] == ([0, 1], [2.0, 2.0]), "half of the load, of four experts"
    assert found["dead"] == ([0, 1], [1.0, 1.0]) and found["moved"] == ([0, 1], [2.0, 2.0])
    assert found["agreement_utility"][1] == [0.55, 0.55] and found["agreement_response"][1] == [0.4, 0.4]
    assert found["router_rank"][1] == [3.5, 3.5] and found["same_choice"][1] == [0.9, 0.9]
    assert all(len(layers) == 2 for layers, _ in found.values())


def test_layers_without_a_part_are_left_out() -> None:
    audit = small_audit(layers=2)
    audit.layers[0] = layer_audit(0, competition=None, regret=None)
    assert by_layer(audit, "agreement_utility")[0] == [1]
    assert [layer for layer, _ in changes(audit, "random")] == [1]


def test_targets_have_an_order_and_unknown_ones_come_last() -> None:
    change = Interval(0.0, -1.0, 1.0)
    audit = small_audit(layers=1)
    audit.layers[0] = layer_audit(0, regret=Regret(4, {"new": change, "random": change, "utility": change}))
    assert targets(audit) == ["utility", "random", "new"]


def test_a_mean_is_of_what_is_finite() -> None:
    assert mean([1.0, math.nan, 3.0, math.inf]) == 2.0
    assert math.isnan(mean([math.nan])) and math.isnan(mean([]))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0.00"), (0.12345, "0.123"), (-0.0012345, "-0.00123"), (12.345, "12.3"), (123456.0, "123,456"),
        (1e-7, "1.00e-07"), (3e9, "3.00e+09"), (math.nan, "nan"), (-math.inf, "-inf"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float | None, written: str) -> None:
    assert number(value) == written


def test_an_interval_of_one_sequence_is_its_mean() -> None:
    assert interval(Interval(-0.012, -0.0151, -0.009)) == "-0.012 (-0.015 to -0.0090)"
    assert interval(Interval(0.5, 0.5, 0.5)) == "0.50"
    assert has_spread(Interval(0.5, 0.4, 0.6)) and not has_spread(Interval(0.5, 0.5, 0.5))
    assert has_spread(Interval(0.0, 0.0, 0.0)), "experts that are all the same"
    assert not has_spread(Interval(0.5, -math.inf, math.inf)) and not has_spread(Interval(math.nan, 0.0, 1.0))


def test_names_of_charts_are_short_and_no_formulas() -> None:
    assert short("a" * 40) == "a" * 40
    assert short("/long/" + "b" * 60) == "…" + "b" * 39
    assert "$$" not in short("$$x$$") and "\\(" not in short("\\(x\\)") and "\\[" not in short("\\[x\\]")

"""Sections of agreement and regret."""

import dataclasses
import math

import numpy as np

from megatron_compete.audit.measures import TARGETS, changes
from megatron_compete.audit.results import Interval, Regret
from megatron_compete.audit.sections.competition import competition, regret, regret_chart
from tests.audit.audits import layer_audit, small_audit


def data_of(figure, name: str) -> dict[str, list[float]]:
    (source,) = {
        one.data_source.id: one.data_source for one in figure.renderers if one.data_source.name == name
    }.values()
    return {column: np.asarray(values).tolist() for column, values in source.data.items()}


def test_agreement_stands_beside_the_chance_of_each_layer() -> None:
    audit = small_audit(2)
    audit.layers[1] = layer_audit(1, top_k=1)
    agreement, *maps = competition(audit).figures
    assert data_of(agreement, "chance, K / E") == {"x": [0.0, 1.0], "y": [0.5, 0.25]}
    np.testing.assert_allclose(data_of(agreement, "agreement with utility")["y"], [0.55, 0.55], rtol=1e-6)
    utility = maps[0].renderers[0].data_source.data["image"][0]
    np.testing.assert_allclose(utility[0], [-0.4, 0.0, 0.0, 0.4], atol=1e-6)  # in even shares of 1/4


def test_layers_that_were_measured_are_named() -> None:
    audit = small_audit(3)
    audit.layers[1] = layer_audit(1, competition=None, regret=None)
    assert "Of 2 of 3 layers: layers 0 and 2." in competition(audit).text
    assert "Of 2 of 3 layers: layers 0 and 2." in regret(audit).text


def test_every_target_has_a_chart_a_row_and_a_sentence() -> None:
    section = regret(small_audit(2))
    (table,) = section.tables
    assert [row[0] for row in table.rows] == list(TARGETS)
    assert table.rows[0] == ("utility", "0.0", "0.0 (-0.020 to 0.020) in layer 0", "0.0 (-0.020 to 0.020) in layer 0", "0 of 2", "0 of 2")  # fmt: skip
    assert table.rows[3][4:] == ("0 of 2", "2 of 2")
    assert all(f"{name}: {meaning}." in section.text for name, meaning in TARGETS.items())
    assert "on 256 tokens of each layer" in section.text


def test_the_chart_of_a_target_has_its_intervals_and_leaves_out_what_is_not_finite() -> None:
    audit = small_audit(2)
    audit.layers[1] = layer_audit(1, regret=Regret(4, {"random": Interval(math.nan, -math.inf, math.inf)}))
    shown = data_of(regret_chart({"": changes(audit, "random")}, "random"), "")
    np.testing.assert_allclose([shown[name] for name in ("x", "value", "low", "high")], [[0], [0.04], [0.02], [0.06]])
    assert regret(audit).tables[0].rows[-2][0] == "random"


def test_a_target_without_a_finite_number_has_dashes() -> None:
    audit = small_audit(1)
    audit.layers[0] = layer_audit(0, regret=Regret(4, {"all": Interval(math.nan, math.nan, math.nan)}))
    assert regret(audit).tables[0].rows == [("all", "nan", "–", "–", "0 of 1", "0 of 1")]


def test_parts_that_were_not_measured_are_a_line() -> None:
    audit = dataclasses.replace(small_audit(0), layers=[layer_audit(0, competition=None, regret=None)])
    for section in (competition(audit), regret(audit)):
        assert section.text.endswith(": not part of this audit.") and not section.figures and not section.tables

"""Sections of load, entropies and domains."""

import dataclasses
import math

import numpy as np

from megatron_compete.audit.sections.parts import layer_places, loads_in_even_shares, unique
from megatron_compete.audit.sections.use import DOMAIN_MAPS, domain_distances, domains, load, use
from tests.audit.audits import layer_audit, small_audit


def test_load_is_in_even_shares_and_layers_of_other_sizes_are_filled_up() -> None:
    audit = small_audit(2)
    narrow = dataclasses.replace(audit.layers[0].use, load=[0.25, 0.75])
    audit.layers[0] = layer_audit(0, experts=2, use=narrow)
    found = loads_in_even_shares(audit, lambda layer: layer.use.load)
    np.testing.assert_allclose(found, [[0.5, 1.5, math.nan, math.nan], [2.0, 1.2, 0.8, 0.0]])


def test_load_is_shown_by_number_and_sorted() -> None:
    by_number, in_order, dead = load(small_audit(2)).figures
    cells = [figure.renderers[0].data_source.data["image"][0] for figure in (by_number, in_order)]
    np.testing.assert_allclose(cells[0], [[2.0, 1.2, 0.8, 0.0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(cells[0], cells[1])
    assert dead.title.text == "Dead experts"


def test_without_dead_experts_there_is_no_chart_of_them() -> None:
    audit = small_audit(1)
    audit.layers[0] = layer_audit(0, use=dataclasses.replace(audit.layers[0].use, dead=[]))
    assert len(load(audit).figures) == 2


def test_an_audit_without_layers_says_so() -> None:
    assert load(small_audit(0)).text == "There is no MoE layer."
    assert use(small_audit(0)).figures


def test_layers_at_uneven_distances_are_named() -> None:
    audit = small_audit(3)
    assert layer_places(audit) == [0, 1, 2]
    assert layer_places(dataclasses.replace(audit, layers=[layer_audit(1), layer_audit(3), layer_audit(8)])) == ["1", "3", "8"]  # fmt: skip


def test_the_distance_of_a_domain_is_what_would_have_to_move() -> None:
    # load 0.5 0.3 0.2 0; books 0.6 0.4 0 0; code 0.4 0.2 0.4 0
    np.testing.assert_allclose(domain_distances(small_audit(1)), [[0.2, 0.2]])
    (table,) = domains(small_audit(1)).tables
    assert table.rows == [("books", "1,000", "2.400", "0.200"), ("code", "1,048", "2.600", "0.200")]


def test_maps_are_of_the_layers_with_the_most_information() -> None:
    audit = small_audit(DOMAIN_MAPS + 3)
    for place, layer in enumerate(audit.layers):
        information = math.nan if place == 1 else 1.0 - place / 10
        audit.layers[place] = layer_audit(place, use=dataclasses.replace(layer.use, domain_information=information))
    titles = [figure.title.text for figure in domains(audit).figures[1:]]
    assert [title.split(":")[0] for title in titles] == ["Layer 0", "Layer 2", "Layer 3", "Layer 4"]


def test_one_domain_has_no_maps_and_a_hint() -> None:
    audit = small_audit(1, domains=["all"], tokens_by_domain=[2048], loss_by_domain=[2.5])
    use_of_one = dataclasses.replace(audit.layers[0].use, load_by_domain=[audit.layers[0].use.load])
    audit.layers[0] = layer_audit(0, use=use_of_one)
    assert "give several files" in domains(audit).text and not domains(audit).figures


def test_domains_of_one_name_stay_apart() -> None:
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    long = "x" * 50
    figure = domains(small_audit(1, domains=["1" + long, "2" + long])).figures[0]
    assert len(figure.legend[0].items) == 2, "their ends are the same"

"""Audits side by side: numbers, differences, and what may not be compared."""

import dataclasses

from megatron_compete.audit.comparison import compare, notes
from megatron_compete.audit.results import Interval
from tests.audit.audits import audit_of, layer_audit, small_audit


def rows_of(*audits) -> dict[str, tuple]:
    tables = compare([(f"run {place}", audit) for place, audit in enumerate(audits)]).sections[0].tables
    return {row[0]: row[1:] for table in tables for row in table.rows}


def test_differences_are_to_the_first() -> None:
    better = small_audit(2, loss=Interval(2.25, 2.2, 2.3))
    better.layers[0] = layer_audit(0, use=dataclasses.replace(better.layers[0].use, dead=[]))
    rows = rows_of(small_audit(2), better)
    assert rows["loss, nats a token"] == ("2.500 (2.400 to 2.600)", "2.250 (2.200 to 2.300)", "-0.250")
    assert rows["dead experts"] == ("2", "1", "-1")
    assert rows["agreement with utility"] == ("0.550", "0.550", "0.00")
    assert rows["regret, random"][0] == "0.0400"


def test_other_texts_are_said_and_their_losses_not_subtracted() -> None:
    other = small_audit(2, text="1" * 64)
    assert rows_of(small_audit(2), other)["loss, nats a token"][2] == "another text"
    (note,) = notes([("a", small_audit(2)), ("b", other)])
    assert note.startswith("b read another text than a: their losses")
    assert notes([("a", small_audit(2)), ("b", small_audit(2))])[0].startswith("All read the same tokens.")


def test_models_of_other_shapes_stand_beside_each_other() -> None:
    use = dataclasses.replace(layer_audit(0).use, load=[0.5, 0.5], load_by_domain=[[0.5, 0.5]] * 2)
    narrow = audit_of(layers=[layer_audit(layer, experts=2, use=use) for layer in range(5)])
    page = compare([("a", small_audit(2)), ("b", narrow), ("c", audit_of(layers=[]))])
    assert sum("has other MoE layers" in note for note in notes([("a", small_audit(2)), ("b", narrow)])) == 1
    lines = page.sections[2].figures[0].children[0]
    assert [item.label.value for item in lines.legend[0].items] == ["a", "b"]


def test_a_part_that_one_audit_lacks_is_said() -> None:
    bare = audit_of(layers=[layer_audit(0, competition=None, regret=None, geometry=None, against=None)])
    page = compare([("full", small_audit(1)), ("bare", bare)])
    by_title = {section.title: section for section in page.sections}
    assert by_title["The router beside competition"].text == "Not part of the audit of bare."
    assert rows_of(small_audit(1), bare)["margin"] == ("0.100", "0.100", "0.00")
    assert rows_of(small_audit(1), bare)["agreement with utility"] == ("0.550", "–", "–")
    nothing = compare([("bare", bare)])
    assert [section.text for section in nothing.sections[1:2]] == ["Regret: not part of these audits."]


def test_audits_of_one_name_stay_apart() -> None:
    page = compare([("a", small_audit(1)), ("a", small_audit(1))])
    assert [name for name, _ in page.summary] == ["a", "a (2)"]

"""Sections that say what an audit is of, and what its numbers mean."""

from megatron_compete.audit.measures import METRICS, TARGETS
from megatron_compete.audit.sections.reference import cost, definitions, numbers, stands_out, summary
from tests.audit.audits import layer_audit, small_audit


def test_the_summary_names_model_text_and_the_main_numbers() -> None:
    found = dict(summary(small_audit(2)))
    assert found == {
        "Model": "Qwen3MoeForCausalLM, 1.00 M parameters, float32",
        "MoE layers": "2 of 4 experts, 2 a token",
        "Text": "2,048 tokens, 2 domains",
        "Loss": "2.500 (2.400 to 2.600) nats a token",
        "Dead experts": "2 of 8",
        "Agreement with utility": "0.550 (chance 0.500)",
        "Agreement with response": "0.400 (chance 0.500)",
        "Router saturation": "0.900 against runs/earlier/audit",
    }


def test_layers_of_several_sizes_are_a_range() -> None:
    audit = small_audit(2)
    audit.layers[0] = layer_audit(0, experts=8, competition=None)
    assert dict(summary(audit))["MoE layers"] == "2 of 4 to 8 experts, 2 a token"
    assert dict(summary(small_audit(1, parameters=30_532_122_624)))["Model"] == "Qwen3MoeForCausalLM, 30.5 B parameters, float32"  # fmt: skip


def test_all_numbers_are_there_and_a_part_that_is_not_has_no_column() -> None:
    (table,) = numbers(small_audit(2)).tables
    assert len(table.header) == 3 + len(METRICS) and len(table.rows) == 2
    audit = small_audit(1)
    audit.layers[0] = layer_audit(0, against=None)
    (table,) = numbers(audit).tables
    assert "router saturation" not in table.header and "margin" in table.header


def test_every_number_and_target_is_defined_with_its_source() -> None:
    (table,) = definitions([small_audit(1)]).tables
    rows = {row[0]: row for row in table.rows}
    assert {metric.name for metric in METRICS.values()} < rows.keys() and {f"regret, {name}" for name in TARGETS} < rows.keys()  # fmt: skip
    assert "2409.02060" in rows["router saturation"][2] and "2411.00918" in rows["regret, drop top-1"][2]
    assert not [row for row in definitions([]).tables[0].rows if row[0].startswith("regret,")]


def test_cost_is_in_its_units() -> None:
    assert cost(small_audit()).tables[0].rows == [("use", "1.50 s"), ("competition", "3.00 s"), ("peak memory", "0.93 GiB")]  # fmt: skip
    assert cost(small_audit(cost={})).text == "Not recorded."


def test_the_text_that_was_read_is_named() -> None:
    assert stands_out(small_audit()).text.startswith("The model runs/small/hf read 16 sequences of 128 tokens.\n\n")

"""The tables for a terminal."""

import io
import re

import pytest

from megatron_compete.plan import report
from megatron_compete.plan.report import WIDTH, print_plan
from tests.plan.planned import DENSE, planned, planned_with_tower


def lines(*overrides: str) -> list[str]:
    file = io.StringIO()
    print_plan(*planned(*overrides), "demo.yaml", file)
    return file.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_topics_come_in_order_and_assumptions_last() -> None:
    headings = [line.split("(")[0].split(":")[0].strip() for line in lines() if line and not line.startswith(" ")]
    assert headings == [
        "demo.yaml on 8 x h100", "Parameters", "Memory of a rank", "Network", "FLOPs of a step, all ranks",
        "Step", "Competition", "Assumed, not measured",
    ]  # fmt: skip


def test_nothing_is_cut_off_or_too_wide() -> None:
    text = lines()
    assert "…" not in "\n".join(text)
    assert max(map(len, text)) <= WIDTH and all(line == line.rstrip() for line in text)


def test_values_and_units() -> None:
    plan, overhead = planned()
    text = "\n".join(lines())
    assert f"total      {plan.parameters.total / 1e6:.4g} M" in text
    own = overhead.of("balanced", 2)
    row = next(cells(line) for line in lines() if "balanced *" in line)
    assert row[:3] == ["balanced *", "2", f"{100 * own.competing_share:.1f} %"]
    assert row[3:7] == [
        f"{1e3 * value:.1f} ms" for value in (own.mean_seconds, own.p50_seconds, own.p95_seconds, own.max_seconds)
    ]
    assert row[8:] == [f"{own.overhead_percent:.2f} %", str(own.most_layers_on_a_stage)]
    memory = next(cells(line) for line in lines() if line.startswith("  0  "))
    assert float(memory[9]) == pytest.approx(plan.memory[0].competing / 2**30, abs=0.005)


def test_chosen_limits_and_why_others_are_missing() -> None:
    text = lines()
    shown = [cells(line)[1] for line in text if line.startswith("  shifted")]
    assert shown == ["2", "4", "8", "16"]
    joined = " ".join(" ".join(text).split())
    assert "no shifted schedule at A_max 1: --compete-max-active-layers 1 is below rate * layers" in joined
    assert "no bernoulli schedule at A_max 1 to 15: " in joined


def test_of_many_stages_the_ends_and_the_fullest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_STAGES", 3)
    plan, _ = planned()
    shown = [line.split()[0] for line in lines() if re.match(r"  \d+ +\d+\.\d\d ", line)]
    assert shown == [str(stage) for stage in sorted({0, 1, 2, 3, plan.fullest.stage})]


def test_a_job_without_competition_has_no_table_of_policies() -> None:
    text = "\n".join(lines("--router", "topk"))
    assert "normal step" in text and "Competition" not in text and "mean over steps" not in text


def test_seconds_and_counts_choose_their_unit() -> None:
    assert report._seconds(0.5)(0.0123) == "12.3 ms" and report._seconds(5.0)(0.0123) == "0.012 s"
    assert [report._count(number) for number in (999, 1500, 38_240_000, 235_100_000_000)] == [
        "999", "1.5 k", "38.24 M", "235.1 B",
    ]  # fmt: skip


def test_a_dense_model_is_not_described_as_a_mixture() -> None:
    text = lines(*DENSE)
    assert [cells(line)[0] for line in text[1:3]] == ["layers", "batch"]
    whole = "\n".join(text)
    assert "active for a token" not in whole and "routing" not in whole and "EDP" not in whole
    assert "scoring pass" not in whole and "dp-cp" in whole


def test_a_tower_and_what_its_layers_cost() -> None:
    file = io.StringIO()
    print_plan(*planned_with_tower(), "tower.yaml", file)
    text = " ".join(file.getvalue().split())
    assert "pictures 1 tile a sequence of 16 x 12 pixels: 12 tokens in the tower, 12 in the decoder" in text
    assert re.search(r"each competing layer adds tower [\d.]+, projector [\d.]+ with A_max", text)
    assert "tower experts" in text and "projector router" in text
    assert "every sample has pictures of one tile" in text and "Megatron's own estimate" not in text
    assert max(map(len, file.getvalue().splitlines())) <= WIDTH

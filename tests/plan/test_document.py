"""The JSON document holds what the plan holds."""

import json
from typing import Any

import pytest

from megatron_compete.plan.document import plan_document
from tests.plan.planned import DENSE, planned, planned_with_tower


def document(*overrides: str) -> Any:
    plan, overhead = planned(*overrides)
    return json.loads(json.dumps(plan_document(plan, overhead, "demo.yaml"), allow_nan=False))


def test_numbers_are_the_plans() -> None:
    plan, overhead = planned()
    content = document()
    assert content["recipe"] == "demo.yaml" and content["layout"]["gpus"] == 8
    assert content["layout"]["microbatches"] == plan.job.microbatches == 8
    assert content["parameters"]["total"] == plan.parameters.total
    stages = content["memory"]["stages"]
    assert [stage["competing_step_bytes"] for stage in stages] == [stage.competing for stage in plan.memory]
    parts = ("weights", "gradients", "optimizer", "activations", "output", "competition", "scoring")
    for stage in stages:
        assert sum(stage[f"{part}_bytes"] for part in parts) == pytest.approx(stage["competing_step_bytes"])
    for kind in content["traffic_per_step"]:
        assert kind["within_node_bytes"] + kind["across_nodes_bytes"] == pytest.approx(max(kind["sent_by_stage_bytes"]))
    assert content["flops_per_step"]["normal_flop"] == plan.flops.normal
    assert content["step"]["normal_seconds"] == overhead.normal_seconds


def test_step_and_utilization_agree() -> None:
    plan, _ = planned()
    step, flops = document()["step"], document()["flops_per_step"]
    assert step["mean_seconds"] == pytest.approx(step["normal_seconds"] * (1 + step["overhead_percent"] / 100))
    peak = plan.hardware.bf16_flops * 8
    assert step["normal_mfu_percent"] == pytest.approx(100 * flops["normal_flop"] / step["normal_seconds"] / peak)
    assert step["mean_mfu_percent"] * step["mean_seconds"] == pytest.approx(
        step["normal_mfu_percent"] * step["normal_seconds"]
    )
    assert step["tokens_per_second"] * step["mean_seconds"] == pytest.approx(64 * 128)


def test_every_policy_and_limit_is_there_once() -> None:
    _, overhead = planned()
    competition = document()["competition"]
    settings = [(item["policy"], item["max_active_layers"]) for item in competition["outcomes"]]
    assert len(settings) == len(set(settings)) == 3 * 16
    assert (competition["preset"], competition["kind"]) == ("paper", "response")
    assert (competition["policy"], competition["max_active_layers"], competition["layers"]) == ("balanced", 2, 16)
    for item in competition["outcomes"]:
        outcome = overhead.of(item["policy"], item["max_active_layers"])
        assert item["infeasible"] == outcome.infeasible
        if outcome.infeasible:
            assert "mean_seconds" not in item
        else:
            assert item["mean_seconds"] == outcome.mean_seconds
            assert item["p50_seconds"] <= item["p95_seconds"] <= item["max_seconds"]


def test_a_job_without_competition() -> None:
    content = document("--router", "topk")
    assert content["competition"]["policy"] is None and content["competition"]["outcomes"] == []
    assert content["step"]["competing_mean_seconds"] is None and content["step"]["overhead_percent"] == 0
    assert content["step"]["mean_seconds"] == content["step"]["normal_seconds"] > 0


def test_a_dense_model_has_no_experts_and_no_competition() -> None:
    content = document(*DENSE)
    layout = content["layout"]
    assert [layout[f"{name}_parallel"] for name in ("expert", "expert_tensor", "expert_data")] == [None, None, None]
    assert layout["pipeline_parallel"] == 4 and content["parameters"]["active"] == content["parameters"]["total"]
    assert not {"experts", "router", "shared experts"} & set(content["parameters"]["by_kind"])
    assert {kind["group"] for kind in content["traffic_per_step"]} <= {"tp", "pp", "dp-cp", "embedding"}
    assert content["competition"]["outcomes"] == [] and content["step"]["overhead_percent"] == 0.0
    said = json.dumps([content["assumptions"]["notes"], content["memory"]["not_counted"]])
    assert "routing" not in said and "scoring" not in said and "launch gaps" in said


def test_layers_of_parts_have_numbers_of_their_own() -> None:
    """Where all layers that compete are a decoder's, its numbers are the mean."""
    plan, overhead = planned_with_tower()
    content = json.loads(json.dumps(plan_document(plan, overhead, "tower.yaml"), allow_nan=False))
    flops, times = content["flops_per_step"], content["times"]
    added = flops["competing_layer_flop_by_part"]
    assert set(added) == set(times["competing_layer_seconds_by_part"]) == {"tower", "projector"}
    assert flops["competing_layer_flop"] == pytest.approx((3 * added["tower"] + added["projector"]) / 4)
    assert content["memory"]["megatron_estimate"] is None
    seconds = times["competing_layer_seconds_by_part"]
    mean = (3 * seconds["tower"]["forward"] + seconds["projector"]["forward"]) / 4
    assert times["competing_layer_forward_seconds"] == pytest.approx(mean)
    of_decoder = document()["flops_per_step"]
    assert of_decoder["competing_layer_flop_by_part"] == {"decoder": of_decoder["competing_layer_flop"]}

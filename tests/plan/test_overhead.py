"""Steps of policies and limits: exact on one stage, and against the table counted by hand."""

import dataclasses

import numpy as np
import pytest

from benchmarks import planned_overhead
from megatron_compete.plan import overhead
from megatron_compete.plan.overhead import mean_step, simulate_policies
from megatron_compete.plan.pipeline import simulate
from megatron_compete.plan.stage_program import PipelineShape
from megatron_compete.plan.times import PipelineTimes
from megatron_compete.schedule import CompetitionSchedule


def pipeline_times(stages: int, chunks: int, layers: int, microbatches: int) -> PipelineTimes:
    """Layers lie as Megatron lays them: one after the other over stages, then chunks."""
    of_place = layers // (stages * chunks)
    random = np.random.default_rng(0)
    return PipelineTimes(
        forward_PV=1 + 0.1 * random.random((stages, chunks)),
        backward_PV=2 + 0.1 * random.random((stages, chunks)),
        competing_forward_L=np.full(layers, 0.6),
        competing_backward_L=np.full(layers, 0.3),
        stage_chunks=tuple((i // of_place % stages, i // of_place // stages) for i in range(layers)),
        transfer=0.01,
        microbatches=microbatches,
        group_size=stages,
        once=0.5,
    )


def job(stages: int, chunks: int, layers: int, rate: float, max_active: int, microbatches: int = 8):  # type: ignore[no-untyped-def]
    times = pipeline_times(stages, chunks, layers, microbatches)
    schedule = CompetitionSchedule(layers, rate, max_active, "balanced", stage_chunks=times.stage_chunks)
    return schedule, times, PipelineShape(stages, chunks, microbatches, stages)


def test_on_one_stage_the_overhead_is_rate_times_layers() -> None:
    schedule, times, shape = job(1, 1, 6, rate=0.125, max_active=2, microbatches=4)
    result = simulate_policies(schedule, times, shape)
    normal = 4 * float(times.forward_PV[0, 0] + times.backward_PV[0, 0]) + 0.5
    assert result.normal_seconds == pytest.approx(normal) and result.steps % schedule.window_steps == 0
    for policy in ("balanced", "shifted"):
        for max_active in range(1, 7):
            outcome = result.of(policy, max_active)  # type: ignore[arg-type]
            assert outcome.infeasible is None and outcome.most_layers <= max_active
            assert outcome.mean_seconds == pytest.approx(normal + 0.125 * 6 * 4 * 0.9)
            assert outcome.overhead_percent == pytest.approx(100 * 0.125 * 6 * 4 * 0.9 / normal)


@pytest.mark.parametrize("chunks", (1, 2))
def test_numbers_are_those_of_the_table(chunks: int) -> None:
    schedule, times, shape = job(4, chunks, 16, rate=0.1, max_active=4)
    result = simulate_policies(schedule, times, shape, most_steps=300)
    shifted = dataclasses.replace(schedule, policy="shifted", stage_chunks=())
    table_NL = shifted.table(0, result.steps)
    forward_NPV = np.repeat(times.forward_PV[None], result.steps, axis=0)
    backward_NPV = np.repeat(times.backward_PV[None], result.steps, axis=0)
    on_stage = np.zeros((result.steps, 4), dtype=int)
    for step, layer in zip(*np.nonzero(table_NL)):
        place = times.stage_chunks[layer]
        forward_NPV[step][place] += 0.6
        backward_NPV[step][place] += 0.3
        on_stage[step, place[0]] += 1
    seconds_N = simulate(shape, forward_NPV, backward_NPV, 0.01) + 0.5
    outcome = result.of("shifted", 4)
    np.testing.assert_allclose(outcome.seconds, seconds_N, rtol=1e-12)
    competing = table_NL.any(axis=1)
    assert outcome.competing_share == competing.mean()
    assert outcome.competing_mean_seconds == pytest.approx(seconds_N[competing].mean())
    assert outcome.mean_seconds == pytest.approx(seconds_N.mean())
    assert outcome.max_seconds == pytest.approx(seconds_N.max())
    assert outcome.p50_seconds == pytest.approx(np.sort(seconds_N)[(result.steps - 1) // 2])
    assert outcome.p95_seconds == pytest.approx(np.sort(seconds_N)[int(np.ceil(0.95 * result.steps)) - 1])
    assert (outcome.most_layers, outcome.most_layers_on_a_stage) == (table_NL.sum(axis=1).max(), on_stage.max())


def test_layers_of_other_kinds_cost_what_they_do() -> None:
    """A tower's and a projector's layers on the first stage beside a decoder's: step by step as the table says."""
    schedule, times, shape = job(2, 1, 8, rate=0.25, max_active=4)
    forward_L, backward_L = np.array([0.1] * 3 + [0.7] + [0.4] * 4), np.array([0.2] * 3 + [0.1] + [0.9] * 4)
    times = dataclasses.replace(times, competing_forward_L=forward_L, competing_backward_L=backward_L)
    result = simulate_policies(schedule, times, shape, most_steps=100)
    table_NL = dataclasses.replace(schedule, policy="shifted", stage_chunks=()).table(0, result.steps)
    on_stage_LP = np.array([[at == stage for stage in range(2)] for at, _ in times.stage_chunks])
    added_NP = [(table_NL * seconds_L) @ on_stage_LP for seconds_L in (forward_L, backward_L)]
    passes = (times.forward_PV, times.backward_PV)
    forward_NPV, backward_NPV = (one + added[:, :, None] for one, added in zip(passes, added_NP, strict=True))
    seconds_N = simulate(shape, forward_NPV, backward_NPV, 0.01) + 0.5
    np.testing.assert_allclose(result.of("shifted", 4).seconds, seconds_N, rtol=1e-12)
    assert result.of("shifted", 4).most_layers_on_a_stage == (table_NL.astype(int) @ on_stage_LP).max()
    assert times.evenly(0.25) == pytest.approx(0.25 * (forward_L + backward_L).sum() * 8 / 2)


def test_one_schedule_alone_costs_what_it_does_among_all() -> None:
    schedule, times, shape = job(4, 2, 16, rate=0.1, max_active=4)
    among = simulate_policies(schedule, times, shape)
    alone = mean_step(dataclasses.replace(schedule, warmup_steps=50), times, shape, among.steps)
    assert alone.normal_seconds == among.normal_seconds
    assert alone.overhead_percent == pytest.approx(among.of("balanced", 4).overhead_percent)


@pytest.mark.parametrize("policy", ("balanced", "shifted"))
def test_at_a_rate_of_one_every_layer_is_slow_at_every_step(policy: str) -> None:
    schedule, times, shape = job(4, 2, 16, rate=1.0, max_active=16)
    chunks = schedule.stage_chunks if policy == "balanced" else ()
    step = mean_step(dataclasses.replace(schedule, policy=policy, stage_chunks=chunks), times, shape)  # type: ignore[arg-type]
    slow = simulate(shape, times.forward_PV[None] + 2 * 0.6, times.backward_PV[None] + 2 * 0.3, 0.01)[0] + 0.5
    assert step.seconds == pytest.approx(slow)


def test_a_sample_at_every_step_costs_235b_its_work_where_all_tokens_at_some_cost_twice_that() -> None:
    """The same number of competing tokens in a pipeline of PP 8 x VP 4."""
    plan = planned_overhead.planned("moe_235b_a22b", "h100")
    sample, steps = (
        planned_overhead.overhead(plan, settings(0.04))
        for settings in (planned_overhead.by_sample, planned_overhead.by_steps)
    )
    assert sample.even == pytest.approx(steps.even, rel=0.01) and sample.flops == pytest.approx(steps.flops)
    assert sample.simulated <= 1.15 * min(sample.even, sample.flops)
    assert steps.simulated > 2 * steps.even


def test_limits_that_no_schedule_can_meet_say_why() -> None:
    result = simulate_policies(*job(2, 1, 16, rate=0.25, max_active=4), most_steps=300)
    assert len(result.outcomes) == 3 * 16
    assert "below rate * layers = 0.25 * 16 = 4" in (result.of("balanced", 3).infeasible or "")
    assert "bernoulli keeps no limit" in (result.of("bernoulli", 15).infeasible or "")
    assert np.isnan(result.of("shifted", 3).mean_seconds)
    for policy in ("balanced", "shifted", "bernoulli"):
        assert result.of(policy, 16).infeasible is None  # type: ignore[arg-type]


def test_balancing_over_stages_pays() -> None:
    """Eight stages, 1F1B: fewer layers at once on a stage, and so less time."""
    result = simulate_policies(*job(8, 1, 32, rate=0.1, max_active=8, microbatches=16))
    balanced, shifted = result.of("balanced", 8), result.of("shifted", 8)
    assert balanced.most_layers_on_a_stage < shifted.most_layers_on_a_stage
    assert balanced.overhead_percent < shifted.overhead_percent
    assert balanced.max_seconds < shifted.max_seconds


def test_competition_that_costs_nothing_adds_nothing() -> None:
    schedule, times, shape = job(4, 2, 16, rate=0.1, max_active=4)
    free = dataclasses.replace(times, competing_forward_L=np.zeros(16), competing_backward_L=np.zeros(16))
    result = simulate_policies(schedule, free, shape, most_steps=300)
    assert result.of("shifted", 4).overhead_percent == pytest.approx(0, abs=1e-10)
    assert result.of("shifted", 4).competing_share > 0.5


def test_a_job_without_competition_has_one_step_time() -> None:
    _, times, shape = job(4, 2, 16, rate=0.1, max_active=4)
    result = simulate_policies(None, times, shape)
    assert result.outcomes == () and result.policy is None
    one = simulate(shape, times.forward_PV[None], times.backward_PV[None], 0.01)[0] + 0.5
    assert result.normal_seconds == pytest.approx(one)


def test_fewer_steps_where_there_is_too_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = job(4, 2, 16, rate=0.1, max_active=4)
    whole = simulate_policies(*arguments)
    monkeypatch.setattr(overhead, "WORK", 1)
    cut = simulate_policies(*arguments)
    assert 1000 <= cut.steps < whole.steps and cut.steps % arguments[0].window_steps == 0
    monkeypatch.undo()
    again = simulate_policies(*arguments, most_steps=cut.steps)
    assert again.of("shifted", 4) == cut.of("shifted", 4)


def test_the_rate_is_the_jobs_at_its_highest() -> None:
    """Warm-up and decay are left out, whatever the job has."""
    schedule, times, shape = job(4, 1, 8, rate=0.25, max_active=4)
    later = dataclasses.replace(schedule, warmup_steps=10**6, decay="linear", decay_steps=10)
    outcomes = [simulate_policies(item, times, shape, most_steps=300).of("balanced", 4) for item in (schedule, later)]
    assert outcomes[0] == outcomes[1] and outcomes[0].competing_share > 0

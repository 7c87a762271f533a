"""The schedule's promises, over drawn configurations of all policies."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import strategies as st

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.table import POLICIES, Policy
from tests.schedule.draws import copy_of, of_draws, schedules, slots


@of_draws(2000, schedules(), st.integers(0, 5000))
def test_never_more_than_max_active_and_none_in_warmup(schedule: CompetitionSchedule, start: int) -> None:
    table = schedule.table(start, start + 300)
    assert table.sum(axis=1).max(initial=0) <= schedule.max_active
    assert not table[: max(0, schedule.warmup_steps - start)].any()


def counts_after_warmup(schedule: CompetitionSchedule, windows: int) -> tuple[np.ndarray, int]:
    """Competitions of each layer in the first windows after warm-up, and the steps of these."""
    steps = windows * schedule.window_steps
    return schedule.table(schedule.warmup_steps, schedule.warmup_steps + steps).sum(axis=0), steps


@of_draws(2000, schedules(decays=False))
def test_layers_compete_equally_often_at_the_rate(schedule: CompetitionSchedule) -> None:
    """At any load, the fullest included; stronger than a tolerance on the long run, which bernoulli needs."""
    counts, steps = counts_after_warmup(schedule, windows=3)
    expected = schedule.rate * steps
    if schedule.policy == "bernoulli":
        assert np.abs(counts - expected).max() <= 6.0 * math.sqrt(expected * (1 - schedule.rate)) + 6.0
    else:
        assert counts.min() == counts.max() == math.floor(expected + 1e-6)


@of_draws(1000, schedules(decays=True))
def test_a_falling_rate_is_met_as_well(schedule: CompetitionSchedule) -> None:
    """Against a sum over steps of the rate, written plainly."""
    counts, steps = counts_after_warmup(schedule, windows=3)
    expected = sum(plain_rate(schedule, step + 0.5) for step in range(steps))
    if schedule.policy == "bernoulli":
        assert np.abs(counts - expected).max() <= 6.0 * math.sqrt(expected) + 6.0
    else:
        assert counts.min() == counts.max()
        assert abs(counts[0] - expected) <= 1.0 + 0.5


def plain_rate(schedule: CompetitionSchedule, time: float) -> float:
    progress = min(1.0, time / schedule.decay_steps)
    share = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.floor + (schedule.rate - schedule.floor) * share


@pytest.mark.parametrize("policy", POLICIES)
def test_long_run_rates_of_all_policies(policy: str) -> None:
    """Two percent of the rate, three percent of one another: 100,000 steps, at 0.9 of the load and at all of it."""
    for load, layers in ((0.9, 24), (1.0, 24)):
        max_active = layers if policy == "bernoulli" else 6
        rate = load * max_active / layers if policy != "bernoulli" else 0.5 * load
        schedule = CompetitionSchedule(layers, rate, max_active, policy, slots(2, 2, layers=6))
        rates = schedule.table(0, 100_000).mean(axis=0)
        assert np.abs(rates / rate - 1).max() <= 0.02
        assert rates.max() / rates.min() <= 1.03


@of_draws(1000, schedules(), st.integers(0, 20_000), st.integers(0, 900))
def test_any_step_is_the_same_by_any_path(schedule: CompetitionSchedule, start: int, length: int) -> None:
    """A resumed, a longer and a shorter run see the table that an uninterrupted one sees."""
    whole = schedule.table(start, start + length)
    again = copy_of(schedule)
    for step in range(start, start + length, 197):
        row = [again.is_active(step, layer) for layer in range(1, schedule.num_layers + 1)]
        assert row == whole[step - start].tolist()
    np.testing.assert_array_equal(whole[length // 2 :], copy_of(schedule).table(start + length // 2, start + length))
    np.testing.assert_array_equal(whole, copy_of(schedule).table(0, start + length + 300)[start : start + length])


IN_ANOTHER_PROCESS = """
import json, sys
from megatron_compete.schedule import CompetitionSchedule
print(json.dumps([CompetitionSchedule.from_settings(one).digest() for one in json.loads(sys.stdin.read())]))
"""


def test_another_process_draws_the_same_table() -> None:
    stage_chunks = slots(2, 2, layers=3)
    drawn = [
        CompetitionSchedule(12, 0.2, 12, policy, stage_chunks, decay=decay, decay_steps=900 * (decay != "none"))
        for policy in POLICIES
        for decay in ("none", "linear", "cosine")
    ]
    given_to_it = json.dumps([schedule.settings() for schedule in drawn])
    output = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], input=given_to_it, capture_output=True, text=True, check=True
    ).stdout
    digests = [schedule.digest() for schedule in drawn]
    assert json.loads(output) == digests
    assert len(set(digests)) == len(digests)


@of_draws(200, schedules(decays=False))
def test_the_cache_forgets_and_draws_again(schedule: CompetitionSchedule) -> None:
    before = schedule.table(0, 1000)
    schedule._windows.clear()
    np.testing.assert_array_equal(before, schedule.table(0, 1000))


@pytest.mark.parametrize("policy", POLICIES)
def test_single_steps_are_the_tables_after_warmup(policy: Policy) -> None:
    schedule = CompetitionSchedule(9, 0.2, 9, policy, warmup_steps=37)
    table = schedule.table(0, 300)
    asked = [[schedule.is_active(step, layer) for layer in range(1, 10)] for step in range(300)]
    np.testing.assert_array_equal(table, asked)
    assert not table[:37].any() and table[37:].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_windows_are_drawn_apart(policy: Policy) -> None:
    schedule = CompetitionSchedule(8, 0.2, 8, policy)
    first, second = np.split(schedule.table(0, 2 * schedule.window_steps), 2)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_falling_rate_ends_at_its_floor(decay: str) -> None:
    schedule = CompetitionSchedule(8, 0.5, 8, decay=decay, decay_steps=512, floor=0.125)  # type: ignore[arg-type]
    steps = schedule.window_steps
    assert (schedule.table(4 * steps, 8 * steps).sum(axis=0) == steps // 2).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_other_seeds_give_other_tables(policy: str) -> None:
    tables = [CompetitionSchedule(8, 0.2, 8, policy, seed=seed).table(0, 500) for seed in range(3)]
    assert not any(np.array_equal(a, b) for a, b in ((tables[0], tables[1]), (tables[1], tables[2])))


@pytest.mark.parametrize("policy", POLICIES)
def test_all_pairs_of_layers_compete_together_alike(policy: str) -> None:
    """No pair of layers of a stage meets much more often than another: the order of the layers plays no part."""
    table = CompetitionSchedule(8, 0.2, 8 if policy == "bernoulli" else 3, policy).table(0, 400_000).astype(float)
    together = table.T @ table
    off_diagonal = together[~np.eye(8, dtype=bool)]
    assert off_diagonal.max() < 1.15 * off_diagonal.mean() and off_diagonal.min() > 0.85 * off_diagonal.mean()


def test_an_impossible_rate_names_both_ways_out() -> None:
    with pytest.raises(CompeteError, match=r"0.07 \* 64 = 4.48: raise it to 5 or lower --compete-rate to 0.0468"):
        CompetitionSchedule(num_layers=64, rate=0.07, max_active=3)
    CompetitionSchedule(num_layers=64, rate=0.0468, max_active=3)
    CompetitionSchedule(num_layers=64, rate=0.07, max_active=5)


def test_bernoulli_needs_room_for_all_layers() -> None:
    with pytest.raises(CompeteError, match="raise it to 8, or use balanced or shifted"):
        CompetitionSchedule(num_layers=8, rate=0.07, max_active=7, policy="bernoulli")


@pytest.mark.parametrize(
    "arguments",
    [
        dict(rate=-0.1),
        dict(rate=1.1),
        dict(max_active=0),
        dict(num_layers=0),
        dict(policy="fair"),
        dict(policy="balanced", stage_chunks=((0, 0), (1, 0))),
        dict(decay="linear"),
        dict(decay="linear", decay_steps=10, floor=0.2),
        dict(decay_steps=10),
        dict(floor=0.05),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(CompeteError):
        CompetitionSchedule(**(dict(num_layers=4, rate=0.1, max_active=2) | arguments))


def test_layers_are_numbered_from_one() -> None:
    schedule = CompetitionSchedule(4, 0.5, 2)
    for layer in (0, 5):
        with pytest.raises(IndexError):
            schedule.is_active(0, layer)


def test_from_the_settings_of_a_job() -> None:
    config = CompeteConfig(rate=0.5, max_active_layers=2, rate_decay="cosine", rate_decay_steps=50, rate_floor=0.1)
    one_stage, two_stages = slots(1, layers=4), slots(2, layers=2)
    assert CompetitionSchedule.of(config, one_stage).policy == "shifted"
    balanced = CompetitionSchedule.of(config, two_stages)
    assert (balanced.policy, balanced.stage_chunks, balanced.floor) == ("balanced", two_stages, 0.1)
    explicit = CompetitionSchedule.of(dataclasses.replace(config, policy="shifted"), two_stages)
    assert (explicit.policy, explicit.stage_chunks) == ("shifted", ())


def test_every_setting_of_a_job_reaches_the_schedule() -> None:
    config = CompeteConfig(
        rate=0.3, max_active_layers=3, policy="balanced", seed=7, warmup_steps=11, rate_decay="linear",
        rate_decay_steps=90, rate_floor=0.2,
    )  # fmt: skip
    stage_chunks = slots(2, 2, layers=1)
    assert CompetitionSchedule.of(config, stage_chunks).settings() == dict(
        num_layers=4, rate=0.3, max_active=3, policy="balanced", places=[list(stage_chunk) for stage_chunk in stage_chunks], seed=7,
        warmup_steps=11, decay="linear", decay_steps=90, floor=0.2,
    )  # fmt: skip


def test_a_warm_up_is_of_a_number_of_steps() -> None:
    fraction = CompeteConfig(warmup_fraction=0.1)
    assert CompetitionSchedule.of(fraction.of_run(50), ((0, 0),)).warmup_steps == 5
    with pytest.raises(CompeteError, match=r"--compete-warmup-fraction 0.1 .* say which, by CompeteConfig.of_run"):
        CompetitionSchedule.of(fraction, ((0, 0),))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [0.3, 0.002])
def test_digests_tell_another_way_of_drawing(policy: Policy, rate: float) -> None:
    """With the same settings, as another version of numpy might; at a low rate, where the first windows are empty, too."""
    schedule = CompetitionSchedule(4, rate, 4, policy)
    digests = {schedule.drawn()}
    drawn = [window for window in range(64) if schedule._window(window).any()][:3]
    assert len(drawn) == 3
    for window in drawn:
        other = copy_of(schedule)
        bits = schedule._window(window).copy()
        bits[np.flatnonzero(bits.any(axis=1))[0]] ^= 0b11000000
        other._windows[window] = bits
        assert other.digest() != schedule.digest()
        digests.add(other.drawn())
    assert len(digests) == 4
    assert copy_of(schedule).drawn() == schedule.drawn()


def test_digests_tell_settings_apart_that_draw_alike() -> None:
    one, other = (CompetitionSchedule(4, 0.3, max_active, "bernoulli") for max_active in (4, 5))
    assert one.drawn() == other.drawn() and one.digest() != other.digest()


def test_it_says_what_it_is() -> None:
    balanced = CompetitionSchedule(8, 0.1, 2, "balanced", slots(4, layers=2), decay="linear", decay_steps=50)
    assert balanced.describe() == (
        "balanced over 4 stages, rate 0.1, falling (linear) to 0 over 50 steps: 0.8 of 8 layers a step on average, "
        "at most 2"
    )
    assert CompetitionSchedule(8, 0.1, 2, warmup_steps=5).describe().startswith("shifted, rate 0.1 after 5 steps: ")


@pytest.mark.parametrize("stages", [1, 2, 3, 8, 16])
def test_the_defaults_fit_any_depth(stages: int) -> None:
    """A_max is the authors' 3 where that holds their rate (42 layers), and from there on the least that does."""
    for layers in range(stages, 201):
        stage_chunks = tuple((layer * stages // layers, 0) for layer in range(layers))
        schedule = CompetitionSchedule.of(CompeteConfig(), stage_chunks)
        assert schedule.rate == 0.07 and schedule.max_active == max(3, -(-7 * layers // 100))
        table = schedule.table(0, schedule.window_steps)
        assert table.sum(axis=1).max() <= schedule.max_active and len(set(table.sum(axis=0))) == 1
        if layers <= 42:
            given = CompetitionSchedule.of(CompeteConfig(max_active_layers=3), stage_chunks)
            assert given.settings() == schedule.settings()  # that of checkpoints from before it was derived


def test_a_max_follows_the_rate_and_explicit_contradictions_stay_errors() -> None:
    assert CompetitionSchedule.of(CompeteConfig(rate=0.5), slots(1, layers=16)).max_active == 8
    assert CompetitionSchedule.of(CompeteConfig(rate=0.01, policy="bernoulli"), slots(1, layers=16)).max_active == 16
    with pytest.raises(CompeteError, match=r"--compete-max-active-layers 3 is below rate .* raise it to 7 or lower"):
        CompetitionSchedule.of(CompeteConfig(max_active_layers=3), slots(2, layers=47))
    capped = CompetitionSchedule.of(CompeteConfig(cap_rate=True), slots(2, layers=47))
    assert (capped.rate, capped.max_active) == (3 / 94, 3)


def test_a_capped_rate_is_the_highest_that_fits() -> None:
    config = CompeteConfig(rate=0.5, max_active_layers=1, rate_floor=0.3, rate_decay="linear", rate_decay_steps=9)
    with pytest.raises(CompeteError, match="--compete-cap-rate takes the highest rate that fits"):
        CompetitionSchedule.of(config, slots(1, layers=4))
    capped = CompetitionSchedule.of(dataclasses.replace(config, cap_rate=True), slots(1, layers=4))
    assert (capped.rate, capped.floor) == (0.25, 0.25)
    possible = CompetitionSchedule.of(
        dataclasses.replace(config, cap_rate=True, max_active_layers=4), slots(1, layers=4)
    )
    assert possible.rate == 0.5

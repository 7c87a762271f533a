"""Ranks agree on the schedule, and a resumed run keeps it."""

import dataclasses

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.balanced import StageChunk
from megatron_compete.trainers.same_schedule import check_agreement, continued, follow_saved, schedule_state
from tests.ranks import run_ranks
from tests.schedule.draws import slots

CONFIG = CompeteConfig(rate=0.2, max_active_layers=2)
Places = tuple[StageChunk, ...]
TWO_STAGES = slots(2, layers=2)


def competition(config: CompeteConfig = CONFIG, places: Places = TWO_STAGES) -> Competition:
    return Competition(config, (1, 2, 3, 4), lambda: 0, places)


def agree(own_config_of_rank: dict[int, CompeteConfig], places_of_rank: dict[int, Places]) -> str:
    """What the check says on this rank; empty if nothing."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    one = competition(own_config_of_rank.get(rank, CONFIG), places_of_rank.get(rank, TWO_STAGES))
    try:
        check_agreement(one)
    except CompeteError as error:
        return str(error)
    return ""


def test_ranks_that_agree_go_on() -> None:
    assert run_ranks(3, agree, {}, {}) == ["", "", ""]


def test_ranks_that_differ_stop_with_the_values() -> None:
    other = dataclasses.replace(CONFIG, seed=5, rate=0.1)
    said = run_ranks(4, agree, {2: other, 3: other}, {})
    assert len(set(said)) == 1
    assert "--compete-rate is 0.2 on rank 0, 0.1 on rank 2" in said[0]
    assert "--compete-seed is 1234 on rank 0, 5 on rank 2" in said[0]
    assert "policy" not in said[0]
    assert "pipeline layout" in run_ranks(2, agree, {}, {1: slots(4)})[0]


def draw_otherwise(differing_rank: int) -> str:
    """As with another version of numpy on one rank."""
    torch.distributed.init_process_group("gloo")
    one = competition()
    if torch.distributed.get_rank() == differing_rank:
        one.schedule._windows[1] = ~one.schedule._window(1)
    try:
        check_agreement(one)
    except CompeteError as error:
        return str(error)
    return ""


def test_other_random_numbers_are_noticed() -> None:
    said = run_ranks(2, draw_otherwise, 1)
    assert all("install one version of numpy on all nodes" in text for text in said)


def settings_of(config: CompeteConfig, places: Places = TWO_STAGES) -> dict:
    return CompetitionSchedule.of(config, places).settings()


def test_a_change_of_layout_keeps_policy_and_stages() -> None:
    saved = settings_of(CONFIG)
    assert continued(saved, settings_of(CONFIG, slots(1, layers=4)), CONFIG) == saved
    assert continued(saved, settings_of(CONFIG, slots(4)), CONFIG) == saved


@pytest.mark.parametrize(
    "change",
    [
        dict(rate=0.3),
        dict(max_active_layers=3),
        dict(seed=1),
        dict(warmup_steps=7),
        dict(policy="shifted"),
        dict(rate_decay="linear", rate_decay_steps=10, rate_floor=0.1),
    ],
    ids=str,
)
def test_other_settings_are_refused(change: dict) -> None:
    config = dataclasses.replace(CONFIG, **change)
    flag = {"max_active_layers": "--compete-max-active-layers"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(CompeteError, match="--compete-override-schedule") as refused:
        continued(settings_of(CONFIG), settings_of(config), config)
    assert flag.replace("_", "-") in str(refused.value)


def test_a_longer_run_keeps_the_warm_up_that_was_a_fraction_of_the_first() -> None:
    fraction = dataclasses.replace(CONFIG, warmup_fraction=0.05)
    saved, longer = (settings_of(fraction.of_run(steps)) for steps in (100, 400))
    assert (saved["warmup_steps"], longer["warmup_steps"]) == (5, 20)
    assert continued(saved, longer, fraction.of_run(400)) == saved
    with pytest.raises(CompeteError, match="--compete-warmup-steps 5 -> 20"):
        continued(saved, longer, dataclasses.replace(CONFIG, warmup_steps=20))


def test_a_saved_schedule_is_followed_refused_or_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    saved = schedule_state(competition().schedule)
    one_stage = competition(places=slots(1, layers=4))
    follow_saved(one_stage, saved)
    assert one_stage.schedule == competition().schedule
    assert "goes on: --compete-policy shifted -> balanced" in capsys.readouterr().out
    other = competition(dataclasses.replace(CONFIG, seed=5))
    with pytest.raises(CompeteError, match="--compete-seed 1234 -> 5"):
        follow_saved(other, saved)
    follow_saved(other, saved, override=True)
    assert other.schedule.seed == 5
    assert "--compete-override-schedule: --compete-seed 1234 -> 5" in capsys.readouterr().out
    follow_saved(other, {"settings": schedule_state(other.schedule)["settings"]})
    assert "holds no digest" in capsys.readouterr().out

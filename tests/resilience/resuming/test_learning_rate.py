"""Two courses of the learning rate are called the same where Megatron's scheduler gives the same rates, and only there."""

import dataclasses
import itertools
import random

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_compete.resilience.resuming.learning_rate import RateSchedule

BASE = RateSchedule(
    lr=1.0, min_lr=0.1, warmup_init=0.0, warmup=8, decay=40, style="cosine", wsd_decay=12, wsd_style="linear",
    weight_decay=(0.1, 0.1), weight_decay_over=40, weight_decay_style="constant",
)  # fmt: skip
CHOICES = {
    "lr": (1.0, 0.5), "min_lr": (0.1, 0.2), "warmup_init": (0.0, 0.05), "warmup": (8, 4), "decay": (40, 60),
    "style": ("cosine", "constant", "linear", "WSD", "inverse-square-root"), "wsd_decay": (12, 20),
    "wsd_style": ("linear", "cosine"), "weight_decay": ((0.1, 0.1), (0.1, 0.3)), "weight_decay_over": (40, 60),
    "weight_decay_style": ("constant", "linear"),
}  # fmt: skip


def rates(course: RateSchedule, consumed: int) -> list[tuple[float, float]]:
    """Megatron's learning rate and weight decay at every sample from `consumed` on, beyond the end of either course."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    scheduler = OptimizerParamScheduler(
        optimizer,  # type: ignore[arg-type]
        course.warmup_init, course.lr, course.min_lr, course.warmup, course.decay, course.style,
        *course.weight_decay, course.weight_decay_over, course.weight_decay_style,
        wsd_decay_steps=course.wsd_decay, lr_wsd_decay_style=course.wsd_style,
    )  # type: ignore[arg-type]  # fmt: skip
    found = []
    for sample in range(consumed, 80):
        scheduler.num_steps = sample
        found.append((scheduler.get_lr({}), scheduler.get_wd()))
    return found


def allowed(course: RateSchedule) -> bool:
    grows = course.weight_decay[0] != course.weight_decay[1]
    return not (grows and course.weight_decay_style == "constant")  # an assertion of Megatron's


PAIRS = [(name, value) for name, values in CHOICES.items() for value in values]


@pytest.mark.parametrize("consumed", [0, 6, 20])
def test_no_change_is_said_where_rates_are_the_same(consumed: int) -> None:
    drawn = random.Random(7)
    courses = [
        dataclasses.replace(BASE, **{name: drawn.choice(values) for name, values in CHOICES.items()})
        for _ in range(400)
    ]
    courses = [course for course in courses if allowed(course)]
    same = 0
    for one, (name, value) in itertools.product(courses[:60], PAIRS):
        other = dataclasses.replace(one, **{name: value})
        if not allowed(other) or one.changes(other, consumed):
            continue
        same += one != other
        assert rates(one, consumed) == rates(other, consumed), (one, other)
    assert same > 100


@pytest.mark.parametrize(
    ("change", "consumed"),
    [
        (dict(lr=0.5), 0), (dict(min_lr=0.2), 20), (dict(warmup=4), 20), (dict(warmup_init=0.05), 2), (dict(decay=60), 20),
        (dict(style="linear"), 20), (dict(weight_decay=(0.2, 0.2)), 20),
    ],
    ids=str,
)  # fmt: skip
def test_a_change_that_shows_is_said(change: dict, consumed: int) -> None:
    other = dataclasses.replace(BASE, **change)
    assert rates(BASE, consumed) != rates(other, consumed)
    assert len(BASE.changes(other, consumed)) == 1


def test_the_state_goes_over_the_arguments() -> None:
    state = {
        "max_lr": 0.5, "min_lr": 0.0, "lr_warmup_steps": 3, "lr_decay_steps": 9, "lr_decay_style": "linear", "start_wd": 0.2,
        "end_wd": 0.3, "wd_incr_steps": 10, "wd_incr_style": "cosine",
    }  # fmt: skip
    restored = BASE.restored(state)
    assert restored == RateSchedule(0.5, 0.0, 0.0, 3, 9, "linear", 12, "linear", (0.2, 0.3), 10, "cosine")
    assert BASE.restored({}) == BASE

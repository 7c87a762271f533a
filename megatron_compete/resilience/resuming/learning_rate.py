"""The course of learning rate and weight decay over a run, and whether two of them are the same from some sample on.

Megatron counts it in samples (`get_optimizer_param_scheduler`, megatron/training/training.py), whether a run is given in
iterations or in samples; so another batch is another course.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RateSchedule:
    """What `OptimizerParamScheduler` is made of."""

    lr: float
    min_lr: float
    warmup_init: float
    warmup: float
    """Samples, as `decay`, `wsd_decay` and `weight_decay_over`."""
    decay: float
    style: str
    wsd_decay: float | None
    wsd_style: str | None
    weight_decay: tuple[float, float]
    """At the start and at the end."""
    weight_decay_over: float
    weight_decay_style: str

    @classmethod
    def of(cls, args: argparse.Namespace) -> "RateSchedule":
        """The course that these arguments, validated, ask for."""
        if args.train_samples:
            unit, length = 1, args.train_samples
            decay, wsd, warmup = args.lr_decay_samples, args.lr_wsd_decay_samples, args.lr_warmup_samples
        else:
            unit, length = args.global_batch_size, args.train_iters or 0
            decay, wsd, warmup = args.lr_decay_iters, args.lr_wsd_decay_iters, args.lr_warmup_iters
        over = (decay or length) * unit
        return cls(
            lr=float(args.lr or 0),
            min_lr=float(args.min_lr or 0),
            warmup_init=args.lr_warmup_init,
            warmup=warmup * unit if args.lr_warmup_fraction is None else args.lr_warmup_fraction * over,
            decay=over,
            style=args.lr_decay_style,
            wsd_decay=None if wsd is None else wsd * unit,
            wsd_style=args.lr_wsd_decay_style if args.lr_decay_style == "WSD" else None,
            weight_decay=(args.start_weight_decay, args.end_weight_decay),
            weight_decay_over=length * unit,
            weight_decay_style=args.weight_decay_incr_style,
        )

    def restored(self, state: Mapping[str, Any]) -> "RateSchedule":
        """This course as `OptimizerParamScheduler.state_dict` has it, which knows nothing of WSD; empty changes nothing."""
        if not state:
            return self
        return replace(
            self,
            lr=state["max_lr"],
            min_lr=state["min_lr"],
            warmup=state["lr_warmup_steps"],
            decay=state["lr_decay_steps"],
            style=state["lr_decay_style"],
            weight_decay=(state["start_wd"], state["end_wd"]),
            weight_decay_over=state["wd_incr_steps"],
            weight_decay_style=state["wd_incr_style"],
        )

    def changes(self, after: "RateSchedule", consumed: int) -> list[str]:
        """What of `after` is another from sample `consumed` on, in words; settings that have no effect are left out."""
        warm = consumed > max(self.warmup, after.warmup)
        constant = self.style == after.style == "constant"
        flat = self.weight_decay == after.weight_decay and len(set(self.weight_decay)) == 1
        steady = flat or self.weight_decay_style == after.weight_decay_style == "constant"
        wsd = self.style == after.style == "WSD"
        compared = [
            ("it rises to", self.lr, after.lr, True),
            ("it falls to", self.min_lr, after.min_lr, not constant),
            ("it falls by", self.style, after.style, True),
            ("samples of warm-up:", self.warmup, after.warmup, not (constant and warm)),
            ("warm-up from", self.warmup_init, after.warmup_init, not warm),
            ("samples until its end:", self.decay, after.decay, not constant),
            ("samples of WSD's last part:", self.wsd_decay, after.wsd_decay, wsd),
            ("WSD's last part by", self.wsd_style, after.wsd_style, wsd),
            ("weight decay", self.weight_decay, after.weight_decay, True),
            ("weight decay grows by", self.weight_decay_style, after.weight_decay_style, not flat),
            ("samples of its growth:", self.weight_decay_over, after.weight_decay_over, not steady),
        ]
        return [
            f"{what} {_number(now)} instead of {_number(then)}"
            for what, then, now, matters in compared
            if matters and then != now
        ]


def _number(value: object) -> str:
    if isinstance(value, tuple):
        return " to ".join(_number(one) for one in dict.fromkeys(value))
    return f"{value:g}" if isinstance(value, float) else str(value)

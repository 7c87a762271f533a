"""When the trainer logs, as the metrics of `moe/metrics.py` ask it; Megatron's `training_log` has them reported."""

import argparse

from megatron_compete.moe.metrics import LogIntervals


def log_intervals(args: argparse.Namespace) -> LogIntervals:
    """`--tensorboard-log-interval` and `--log-interval`. The writer is on the last rank alone, the folder's name on all."""
    written = bool(args.tensorboard_dir or args.wandb_project)
    return LogIntervals(args.tensorboard_log_interval if written else None, args.log_interval)

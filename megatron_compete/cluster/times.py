"""Slurm's way to write a time limit."""

import re

from megatron_compete.common.errors import CompeteError

_CLOCK = re.compile(
    r"(?:(?P<days>\d{1,9})-)?(?P<first>\d{1,9})(?::(?P<second>\d{1,2}))?(?::(?P<third>\d{1,2}))?", re.ASCII
)

UNLIMITED = ("UNLIMITED", "INFINITE")


def limit_seconds(text: str, flag: str = "--time") -> int | None:
    """A time limit in seconds, None where there is none.

    Args:
        text: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or
            `days-hours:minutes:seconds`, as sbatch takes them, or `UNLIMITED`.
    Raises:
        CompeteError: none of these, or no time at all.
    """
    if text.upper() in UNLIMITED:
        return None
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise CompeteError(f"{flag} {text} is no time limit of Slurm's: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = (int(part) if part is not None else None for part in match.groups())
    if days is not None:
        units = (86400 * days, 3600 * (first or 0), 60 * (second or 0), third or 0)
    elif third is not None:
        units = (0, 3600 * (first or 0), 60 * (second or 0), third)
    else:
        units = (0, 0, 60 * (first or 0), second or 0)
    seconds = sum(units)
    if seconds == 0:
        raise CompeteError(f"{flag} {text} leaves a job no time: give one minute or more, or UNLIMITED")
    return seconds

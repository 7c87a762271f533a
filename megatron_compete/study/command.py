"""`megatron-compete study`: the options of a study's command."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from megatron_compete.common.command_line import Command, check_options, option
from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class StudyOptions:
    """What to do with a study."""

    config: Path = option(metavar="FILE", help="the study, see examples/studies/")
    out: Path | None = option(None, metavar="DIR", help="its folder (default: runs/studies/NAME)")
    jobs: int | None = option(None, help="runs at a time (default: the study's jobs, else 1)")
    only: tuple[str, ...] = option(
        (), metavar="NAME", repeats=True, help="a variant, or VARIANT/seed-N; may be repeated"
    )
    any_code: bool = option(False, help="keep finished runs that other code of this package trained")
    keep_checkpoints: bool = option(False, help="do not delete the checkpoints of finished runs")
    cold: bool = option(False, help="start every run as a command of its own, never from the warm process")
    no_report: bool = option(False, help="train only")
    report_only: bool = option(False, help="make tables and figures of the raw logs, and train nothing")
    timing_only: bool = option(False, help="measure what steps cost, with nothing beside them, and train nothing")
    slurm: bool = option(False, help="submit the runs as job arrays instead of training here")

    def __post_init__(self) -> None:
        check_options(self)
        if self.jobs is not None and self.jobs < 1:
            raise CompeteError(f"--jobs {self.jobs}: give 1 or more")


def study(options: StudyOptions) -> None:
    """Train and report; SIGTERM ends the runs under way, which go on with the next command."""
    signal.signal(signal.SIGTERM, _stopped)
    from megatron_compete.study.run import run_study  # torch: seconds to import

    run_study(options)


def _stopped(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


main = Command(
    name="study",
    description="""Train a study's runs and write its report. The same command again skips what is finished and goes on
    with what was killed. DRY_RUN=1 prints the runs and the time they are expected to take.""",
    example="--config examples/studies/tiny.yaml --jobs 2",
    options=StudyOptions,
    run=study,
)

"""`python -m megatron_compete.study --config FILE`: train a study's runs and write its report.

The same command again skips what is finished and goes on with what was killed. DRY_RUN=1 prints the runs and the time
they are expected to take.
"""

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from megatron_compete.common.errors import run_command
from megatron_compete.study.config import Study, read_study
from megatron_compete.study.corpus import PreparedCorpus, is_prepared, prepare_corpus
from megatron_compete.study.grid import Run, chosen, runs_of
from megatron_compete.study.launch import prepare_environment
from megatron_compete.study.report import write_report
from megatron_compete.study.slurm import submit
from megatron_compete.study.timing import measure
from megatron_compete.study.train import Trainer


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m megatron_compete.study", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag(
        "--config", type=Path, required=True, metavar="FILE", help="the study, see examples/studies/ and docs/study.md"
    )
    flag("--out", type=Path, metavar="DIR", help="its folder (default: runs/studies/NAME)")
    flag("--jobs", type=int, metavar="N", help="runs at a time (default: the study's jobs, else 1)")
    flag("--only", action="append", default=[], metavar="NAME", help="a variant, or VARIANT/seed-N; may be repeated")
    flag("--any-code", action="store_true", help="keep finished runs that other code of this package trained")
    flag("--keep-checkpoints", action="store_true", help="do not delete the checkpoints of finished runs")
    flag("--cold", action="store_true", help="start every run as a command of its own, never from the warm process")
    flag("--no-report", action="store_true", help="train only")
    flag("--report-only", action="store_true", help="make tables and figures of the raw logs, and train nothing")
    flag(
        "--timing-only",
        action="store_true",
        help="measure what steps cost, with nothing beside them, and train nothing",
    )
    flag("--slurm", action="store_true", help="submit the runs as job arrays instead of training here")
    return parser


def run(options: argparse.Namespace) -> None:
    """Do what the flags say."""
    study = read_study(options.config)
    folder = options.out or Path("runs/studies") / study.name
    runs = chosen(runs_of(study), options.only)
    if options.report_only:
        write_report(study, folder)
        _say(f"report: {folder / 'report.html'}")
        return
    if os.environ.get("DRY_RUN") == "1" and not options.slurm:
        show_grid(study, runs, folder, options.jobs or study.jobs)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_bytes(options.config.read_bytes())
    prepare_environment()
    corpus = prepare_corpus(study.corpus, (folder / "corpus").absolute())
    if options.slurm:
        submit(study, runs, options.config, folder, options)
        return
    trainer = Trainer(
        study, folder.absolute(), corpus, _say, options.any_code, not options.cold, options.keep_checkpoints
    )
    if not options.timing_only:
        trainer.train(runs, options.jobs or study.jobs)
    if study.timing is not None and (options.timing_only or not options.only):
        names = [name for name in study.variants if any(one.variant == name for one in runs)]
        measure(study, names, folder.absolute(), corpus, not options.cold, _say)
    if not options.no_report:
        write_report(study, folder)
        _say(f"report: {folder / 'report.html'}")


def show_grid(study: Study, runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Print the runs and what they are expected to take, as far as finished ones tell."""
    place = (folder / "corpus").absolute()
    has_corpus = study.corpus.train is not None or is_prepared(study.corpus, place)
    prepared = prepare_corpus(study.corpus, place) if has_corpus else PreparedCorpus("", "", {}, "none yet")
    trainer = Trainer(study, folder.absolute(), prepared, _say)
    left, unknown = 0.0, 0
    for one in runs:
        finished, seconds = trainer.is_finished(one), trainer.expected_seconds(one)
        state = "finished" if finished else "begun" if trainer.place(one.name).probe_log.exists() else "to train"
        _say(f"{one.name:40} {one.steps:6} steps  {state}" + (f"  {seconds / 60:.1f} min" if seconds else ""))
        left += 0.0 if finished else seconds or 0.0
        unknown += not finished and seconds is None
    if unknown:
        _say(f"{len(runs)} runs; no run is finished to measure time by: train one with --only {runs[0].name}")
    else:
        _say(f"{len(runs)} runs; about {left / 60 / jobs:.0f} minutes left with {jobs} at a time")


def _say(text: str) -> None:
    print(text, flush=True)


def _stopped(number: int, frame: object) -> NoReturn:
    """SIGTERM ends the runs under way, which go on with the next command."""
    raise SystemExit(128 + number)


def main() -> None:
    """Entry of the command."""
    signal.signal(signal.SIGTERM, _stopped)
    options = parser().parse_args()
    if options.jobs is not None and options.jobs < 1:
        parser().error(f"--jobs {options.jobs}: give 1 or more")
    run_command(lambda: run(options))


if __name__ == "__main__":
    main()

"""A study from its file to its report: the corpus, the runs, what steps cost, tables and figures."""

import os
from collections.abc import Sequence
from pathlib import Path

from megatron_compete.study.command import StudyOptions
from megatron_compete.study.config import Study, read_study
from megatron_compete.study.corpus import PreparedCorpus, is_prepared, prepare_corpus
from megatron_compete.study.grid import Run, chosen, runs_of
from megatron_compete.study.launch import prepare_environment
from megatron_compete.study.report import write_report
from megatron_compete.study.slurm import submit
from megatron_compete.study.timing import measure
from megatron_compete.study.train import Trainer


def run_study(options: StudyOptions) -> None:
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
    corpus = _corpus(study, folder)
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


def _corpus(study: Study, folder: Path) -> PreparedCorpus:
    """The study's text; a task without text draws what it reads from the seed."""
    if study.task != "language":
        return PreparedCorpus("", "", {}, study.task)
    return prepare_corpus(study.corpus, (folder / "corpus").absolute())


def show_grid(study: Study, runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Print the runs and what they are expected to take, as far as finished ones tell."""
    text, place = study.corpus, (folder / "corpus").absolute()
    is_there = study.task != "language" or text.train is not None or is_prepared(text, place)
    corpus = _corpus(study, folder) if is_there else PreparedCorpus("", "", {}, "none yet")
    trainer = Trainer(study, folder.absolute(), corpus, _say)
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

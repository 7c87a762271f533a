"""Which runs are trained, skipped, set aside and reported, with jobs that only pretend to train."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from megatron_compete.study import launch, train
from megatron_compete.study.config import Study
from megatron_compete.study.corpus import PreparedCorpus
from megatron_compete.study.folder import RunFolder
from megatron_compete.study.grid import Run, chosen, runs_of
from megatron_compete.study.logs import read_scalar
from megatron_compete.study.train import Trainer
from tests.study.fabricated import CONTENT, study_of

CORPUS = PreparedCorpus("train", "heldout", {}, "digest")


class Pretence:
    """A job that is over at once, with the log of a run of `steps` steps."""

    def __init__(self, recipe: Recipe, folder: RunFolder, code: int, steps: int) -> None:
        self.code = code
        folder.log.write_text("error: --lr is too high\n" if code else "")
        folder.probe_log.write_text(json.dumps({"step": steps, "loss": 1.0, "load": []}) + "\n")

    def exit_code(self) -> int:
        return self.code

    def end(self) -> None: ...


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs pretend; the folders of those that were started."""
    started: list[str] = []

    def start(recipe: Recipe, folder: RunFolder, lock: int, warm: bool, task: str) -> Pretence:
        import os

        os.close(lock)
        name = "/".join(folder.path.parts[-2:])
        started.append(name)
        code = 2 if recipe.arguments.get("lr") == "bad" else 0
        return Pretence(recipe, folder, code, int(str(recipe.arguments["train-iters"])))

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(train.run_files, "logged_scalars", lambda folder: {"lm loss": {1: 2.0}})
    monkeypatch.setattr(train.run_files, "make_start", lambda folder, study, run: folder.upcycled.mkdir())
    return started


def trainer_of(study: Study, folder: Path, **options: Any) -> tuple[Trainer, list[str]]:
    said: list[str] = []
    say: Callable[[str], None] = said.append
    return Trainer(study, folder, CORPUS, say, **options), said


def test_what_is_finished_is_skipped(tmp_path: Path, jobs: list[str]) -> None:
    study = study_of(tmp_path)
    runs = runs_of(study)
    trainer_of(study, tmp_path)[0].train(chosen(runs, ["topk"]), jobs=2)
    assert jobs == ["topk/seed-1", "topk/seed-2", "topk/seed-3"]
    trainer, said = trainer_of(study, tmp_path)
    trainer.train(runs, jobs=1)
    assert said[0] == "9 runs, 3 finished, 6 to train"
    assert len(jobs) == 9 and not any(name.startswith("topk") for name in jobs[3:])


def test_a_run_of_other_settings_is_set_aside_and_trained_anew(tmp_path: Path, jobs: list[str]) -> None:
    study = study_of(tmp_path, seeds=[1])
    trainer_of(study, tmp_path)[0].train(runs_of(study), jobs=1)
    longer = study_of(tmp_path, seeds=[1], steps=50)
    trainer, said = trainer_of(longer, tmp_path)
    trainer.train(chosen(runs_of(longer), ["paper"]), jobs=1)
    assert jobs[3:] == ["paper/seed-1"]
    assert (tmp_path / "superseded/paper/seed-1-1/finished.json").is_file()
    assert "superseded/paper/seed-1-N" in said[1]
    assert trainer.is_finished(chosen(runs_of(longer), ["paper"])[0])


def test_other_code_counts_as_other_settings_unless_told(
    tmp_path: Path, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, seeds=[1])
    trainer_of(study, tmp_path)[0].train(runs_of(study), jobs=1)
    monkeypatch.setattr(train, "code_version", lambda: "another")
    run = runs_of(study)[0]
    assert not trainer_of(study, tmp_path)[0].is_finished(run)
    assert trainer_of(study, tmp_path, any_code=True)[0].is_finished(run)


def test_a_failed_run_is_named_with_its_error_and_the_others_are_trained(tmp_path: Path, jobs: list[str]) -> None:
    variants = CONTENT["variants"] | {"paper": {"arguments": {"lr": "bad"}}}
    study = study_of(tmp_path, seeds=[1], variants=variants)
    trainer, _ = trainer_of(study, tmp_path)
    with pytest.raises(CompeteError, match=r"1 runs are not there \(paper/seed-1\).*error: --lr is too high"):
        trainer.train(runs_of(study), jobs=1)
    assert [run.variant for run in runs_of(study) if trainer.is_finished(run)] == ["topk", "slow"]


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path, jobs: list[str]) -> None:
    study = study_of(tmp_path, seeds=[1])
    lock = RunFolder(tmp_path / "runs/topk/seed-1").lock()
    assert lock is not None
    trainer, _ = trainer_of(study, tmp_path)
    with pytest.raises(CompeteError, match="topk/seed-1: another process is training it"):
        trainer.train(runs_of(study), jobs=1)
    assert jobs == ["paper/seed-1", "slow/seed-1"]


def test_starts_come_first_and_their_mixture_is_what_a_run_begins_from(tmp_path: Path, jobs: list[str]) -> None:
    study = study_of(
        tmp_path,
        seeds=[1],
        starts={"dense": {"steps": 5, "upcycle": {"experts": 8}}},
        variants=CONTENT["variants"] | {"late": {"start": "dense"}},
    )
    trainer_of(study, tmp_path)[0].train(chosen(runs_of(study), ["late"]), jobs=4)
    assert jobs == ["dense/seed-1", "late/seed-1"]
    late = runs_of(study)[-1]
    recipe = train.run_files.placed_recipe(late, RunFolder(tmp_path / "runs/late/seed-1"), CORPUS, RunFolder(tmp_path / "runs/dense/seed-1"))  # fmt: skip
    assert recipe.arguments["pretrained-checkpoint"] == str(tmp_path / "runs/dense/seed-1/work/upcycled")


def test_students_of_the_regions_task_begin_from_the_weights_of_their_start(tmp_path: Path) -> None:
    starts, variants = {"half": {"steps": 5}}, {"topk": {}, "grown": {"start": "half"}}
    half, grown = runs_of(study_of(tmp_path, task="regions", seeds=[1], starts=starts, variants=variants))[1:]
    place = RunFolder(tmp_path / "runs/half/seed-1")
    first = train.run_files.placed_recipe(half, place, CORPUS, None, "regions").arguments
    then = train.run_files.placed_recipe(grown, RunFolder(tmp_path / "runs/grown/seed-1"), CORPUS, place, "regions").arguments  # fmt: skip
    assert first["save"] == then["initial"] == str(place.model("regions")) and "initial" not in first
    assert first["probe-log"] == str(place.probe_log) and "data-path" not in first


def test_a_model_that_cannot_be_upcycled_fails_alone(tmp_path: Path, jobs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refuse(folder: RunFolder, study: Study, run: Run) -> None:
        raise CompeteError("--top-k 9 is too many")

    monkeypatch.setattr(train.run_files, "make_start", refuse)
    starts = {"dense": {"steps": 5, "upcycle": {"experts": 8}}}
    study = study_of(tmp_path, seeds=[1], starts=starts, variants={"late": {"start": "dense"}} | CONTENT["variants"])
    with pytest.raises(CompeteError, match=r"dense/seed-1: no mixture can be made of it: --top-k 9"):
        trainer_of(study, tmp_path)[0].train(runs_of(study), jobs=1)
    assert jobs == ["dense/seed-1", "topk/seed-1", "paper/seed-1", "slow/seed-1"]


def test_nothing_is_begun_that_does_not_fit_into_the_budget(tmp_path: Path, jobs: list[str]) -> None:
    study = study_of(tmp_path, seeds=[1], **{"budget-minutes": 10})
    trainer, said = trainer_of(study, tmp_path)
    trainer.train(chosen(runs_of(study), ["topk"]), jobs=1)
    marker = tmp_path / "runs/topk/seed-1/finished.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"job_seconds": 601.0}))
    assert trainer.expected_seconds(runs_of(study)[1]) == pytest.approx(601.0)
    trainer.train(runs_of(study), jobs=1)
    assert jobs == ["topk/seed-1"]
    assert said[-1] == "budget of 10 minutes: not begun: paper/seed-1, slow/seed-1"


def test_a_run_shorter_than_the_interval_of_the_log_has_no_scalars(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = RunFolder(tmp_path)
    with SummaryWriter(str(folder.work / "tensorboard")) as writer:
        writer.add_text("lr", "1e-3", 0)
    folder.probe_log.write_text('{"step": 0}\n{"step": 40}\n')
    train.run_files.finish(runs_of(study_of(tmp_path))[0], folder, {"digest": "d"})
    assert folder.scalars.read_text() == "scalar,step,mean,values\n"
    assert read_scalar(folder.scalars, "competition/agreement") == {}
    finished = folder.finished()
    assert finished is not None and finished["steps"] == 40


def test_scalars_are_kept_as_means_between_probes(tmp_path: Path) -> None:
    scalars = {
        "lm loss": {1: 4.0, 2: 2.0, 3: 1.0},
        "competition/agreement": {3: 0.5},
        "competition/agreement/layer-1": {3: 0.5},
        "moe/load-max": {1: 1.0},
    }
    train.run_files.write_scalars(tmp_path / "scalars.csv", scalars, [0, 2, 4])
    assert (tmp_path / "scalars.csv").read_text().splitlines() == [
        "scalar,step,mean,values",
        "competition/agreement,4,0.5,1",
        "lm loss,2,3.0,2",
        "lm loss,4,1.0,1",
    ]

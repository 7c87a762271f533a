import json
from pathlib import Path

import pytest

from megatron_compete.cluster.run_folder import Contents, RunFolder
from megatron_compete.cluster.snapshot import GitState, Snapshot
from megatron_compete.common.errors import CompeteError


def contents(tmp_path: Path, lr: float = 0.1, code: str = "pass", patch: bytes = b"") -> Contents:
    source = tmp_path / f"code-{len(list(tmp_path.glob('code-*')))}.py"
    source.write_text(code)
    snapshot = Snapshot({"megatron_compete/a.py": source}, GitState("abc", (), patch))
    files = {
        "recipe.yaml": f"lr: {lr}\n",
        "command.txt": "run\n",
        "cluster.env": "A=1\n",
        "submit.sbatch": "#!/bin/bash\n",
    }
    return Contents(files, snapshot)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one")


def leftovers(run: RunFolder) -> list[Path]:
    return [path for path in run.path.parent.iterdir() if path != run.path]


def test_a_new_folder_holds_everything(tmp_path: Path, run: RunFolder) -> None:
    run.write(contents(tmp_path, patch=b"+x"))
    assert (run / "code/megatron_compete/a.py").read_text() == "pass"
    assert (run / "git.patch").read_bytes() == b"+x" and (run / "logs").is_dir()
    assert not leftovers(run) and not run.was_submitted and run.job_id is None


def test_the_same_again_changes_nothing(tmp_path: Path, run: RunFolder) -> None:
    run.write(contents(tmp_path))
    run.record_submission("17", "pretrain")
    before = (run / "recipe.yaml").stat().st_ino
    run.write(contents(tmp_path))
    assert (run / "recipe.yaml").stat().st_ino == before and run.job_id == "17"
    record = json.loads((run / "job.json").read_text())
    assert record["kind"] == "pretrain" and record["submitted"].startswith("20")


def test_a_folder_that_never_ran_is_replaced(tmp_path: Path, run: RunFolder) -> None:
    run.write(contents(tmp_path))
    run.write(contents(tmp_path, lr=0.2))
    assert (run / "recipe.yaml").read_text() == "lr: 0.2\n" and not leftovers(run)


@pytest.mark.parametrize(("changed", "name"), [({"lr": 0.2}, r"recipe\.yaml"), ({"code": "other"}, "code/")])
def test_another_jobs_folder_is_left_alone(tmp_path: Path, run: RunFolder, changed: dict, name: str) -> None:
    run.write(contents(tmp_path))
    run.record_submission("17", "pretrain")
    with pytest.raises(
        CompeteError, match=rf"is of another job \({name} differ\): .*--update.*sbatch .*submit\.sbatch"
    ):
        run.write(contents(tmp_path, **changed))
    assert (run / "recipe.yaml").read_text() == "lr: 0.1\n"


def test_an_update_keeps_what_the_job_made_and_what_it_replaces(tmp_path: Path, run: RunFolder) -> None:
    run.write(contents(tmp_path, patch=b"+x"))
    (run / "attempts.tsv").write_text("0\t17\n")
    (run / "checkpoints").mkdir()
    run.write(contents(tmp_path, lr=0.2), update=True)
    run.write(contents(tmp_path, lr=0.3), update=True)
    assert (run / "recipe.yaml").read_text() == "lr: 0.3\n" and (run / "checkpoints").is_dir()
    assert (run / "attempts.tsv").exists() and not (run / "git.patch").exists()
    assert (run / "earlier/0/recipe.yaml").read_text() == "lr: 0.1\n" and (run / "earlier/0/git.patch").exists()
    assert (run / "earlier/1/recipe.yaml").read_text() == "lr: 0.2\n" and (run / "earlier/1/code").is_dir()
    assert not leftovers(run)


def test_a_failure_leaves_nothing(tmp_path: Path, run: RunFolder) -> None:
    broken = contents(tmp_path)
    next(iter(broken.snapshot.files.values())).unlink()
    with pytest.raises(CompeteError, match="cannot be written: No such file or directory"):
        run.write(broken)
    assert list(run.path.parent.iterdir()) == []


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(CompeteError, match="exists and is no run folder"):
        RunFolder(tmp_path / "mine").write(contents(tmp_path))
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").write(contents(tmp_path))
    assert (tmp_path / "empty/submit.sbatch").exists()
    for name in ("a b", "50%", "it's"):
        with pytest.raises(CompeteError, match="means something else to Slurm"):
            RunFolder(tmp_path / name)

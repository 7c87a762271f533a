import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

import megatron_compete
from megatron_compete.cluster import snapshot as module
from megatron_compete.cluster.snapshot import digest_of, files_under, git_state, take_snapshot
from megatron_compete.common.errors import CompeteError
from tests.cluster.stand_in import ROOT


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


def pretend_to_be_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package at `root` with its scripts beside it."""
    for name in ("megatron_compete/__init__.py", "megatron_compete/old.py", "slurm/pretrain.sbatch", "docs/much.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    (root / "slurm/pretrain.sbatch").chmod(0o755)
    monkeypatch.setattr(megatron_compete, "__file__", str(root / "megatron_compete/__init__.py"))


def test_a_checkout_as_its_working_tree_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "checkout"
    pretend_to_be_in(root, monkeypatch)
    (root / ".gitignore").write_text("*.secret\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    clean = take_snapshot()
    as_committed = clean.digest()
    assert clean.git is not None and clean.git.changed == () and set(clean.git_files()) == {"git.txt"}
    (root / "megatron_compete/__init__.py").write_text("edited\n")
    (root / "megatron_compete/old.py").unlink()
    (root / "megatron_compete/new.py").write_text("new\n")
    (root / "slurm/key.secret").write_text("ignored\n")
    (root / "slurm/cluster.env").write_text("HF_TOKEN=hf_secret\n")
    snapshot = take_snapshot()
    assert set(snapshot.files) == {"megatron_compete/__init__.py", "slurm/pretrain.sbatch"}
    files = snapshot.git_files()
    text = files["git.txt"].decode()
    assert snapshot.git is not None and text.startswith(snapshot.git.revision) and "?? megatron_compete/new.py" in text
    assert snapshot.git.untracked() == ("megatron_compete/new.py", "slurm/cluster.env")
    assert b"+edited" in files["git.patch"]
    snapshot.copy_to(tmp_path / "code")
    assert digest_of(files_under(tmp_path / "code")) == snapshot.digest() != as_committed
    assert (tmp_path / "code/slurm/pretrain.sbatch").stat().st_mode & 0o100


def test_an_unpacked_archive_inside_another_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q", ".")
    root = tmp_path / "sources"
    pretend_to_be_in(root, monkeypatch)
    for name in ("slurm/cluster.env", "tools/.token", "megatron_compete/weights.bin"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("not ours\n")
    assert git_state(root) is None
    snapshot = take_snapshot()
    assert set(snapshot.files) == {"megatron_compete/__init__.py", "megatron_compete/old.py", "slurm/pretrain.sbatch"}
    assert snapshot.git_files()["git.txt"].startswith(b"no git checkout; megatron-compete ")


def test_an_installed_package_brings_its_scripts_in_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_be_in(tmp_path / "site-packages", monkeypatch)
    (tmp_path / "site-packages/slurm/pretrain.sbatch").unlink()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(CompeteError, match=r"slurm/pretrain.sbatch is neither in"):
        take_snapshot()
    script = tmp_path / "share/megatron-compete/slurm/pretrain.sbatch"
    script.parent.mkdir(parents=True)
    script.touch()
    for name in ("tools/setup.py", "examples/a.yaml", "tests/evaluation/b.yaml"):  # of another distribution
        (tmp_path / "site-packages" / name).parent.mkdir(parents=True)
        (tmp_path / "site-packages" / name).touch()
    (script.parent / "cluster.env").touch()
    files = take_snapshot().files
    assert files["slurm/pretrain.sbatch"] == script
    assert set(files) == {"megatron_compete/__init__.py", "megatron_compete/old.py", "slurm/pretrain.sbatch"}


def test_a_wheel_has_what_a_snapshot_has(tmp_path: Path) -> None:
    """Of the files beside the package, and nothing that happens to lie there, such as a cluster.env."""
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    patterns = {pattern for some in shipped.values() for pattern in some}
    tracked = {name for name in take_snapshot().files if not name.startswith("megatron_compete/")}
    assert _files(ROOT, patterns) >= tracked and _files(ROOT, module.BESIDE) >= tracked
    for name in ("slurm/cluster.env", "tools/notes.txt", "examples/.env"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert not _files(tmp_path, patterns) and not _files(tmp_path, module.BESIDE)


def _files(root: Path, patterns: Iterable[str]) -> set[str]:
    return {path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)}


def test_this_package_has_all_that_a_job_needs() -> None:
    files = take_snapshot().files
    for name in (
        "slurm/job.sh",
        "tools/convert_checkpoint.py",
        "examples/evaluate.sh",
        "tests/evaluation/license.jsonl",
    ):
        assert name in files
    assert files["megatron_compete/cluster/snapshot.py"] == Path(module.__file__)
    assert not any("__pycache__" in name for name in files) and files["slurm/job.sh"].is_relative_to(ROOT)

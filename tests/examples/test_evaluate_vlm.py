"""`examples/evaluate_vlm.sh` and the task it runs, without lmms-eval; tests/lmms has the whole, with it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml

from megatron_compete.data.digit_pictures import DigitPictures, Kind, write_digit_pictures

ROOT = Path(__file__).resolve().parent.parent.parent
TASK = ROOT / "tests" / "evaluation" / "digit_pictures"


def evaluate(*arguments: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "DRY_RUN": "1"}
    script = str(ROOT / "examples" / "evaluate_vlm.sh")
    return subprocess.run([script, *map(str, arguments)], env=environment | variables, capture_output=True, text=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "processor_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DigitPictures:
    return write_digit_pictures(tmp_path_factory.mktemp("digits"), train=0, heldout=100)


@pytest.fixture(scope="module")
def utils() -> ModuleType:
    """As lmms-eval loads it: by its path."""
    spec = importlib.util.spec_from_file_location("utils", TASK / "utils.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    return yaml.load((TASK / "digit_pictures.yaml").read_text(), Loader)


def test_the_command_names_task_model_and_settings(model: Path) -> None:
    done = evaluate(model, TASKS="mme,pope", LIMIT="7", BATCH="2", DEVICE="cpu", TRUST_REMOTE_CODE="1")
    assert done.returncode == 0, done.stderr
    words = done.stdout.replace("\\", "").split()
    assert words[words.index("--model_args") + 1] == f"pretrained={model},dtype=auto,device=cpu,trust_remote_code=True"
    for flag, value in {"--tasks": "mme,pope", "--limit": "7", "--batch_size": "2"}.items():
        assert words[words.index(flag) + 1] == value
    assert words[words.index("--output_path") + 1] == f"{model}-evaluation"
    assert "--tasks digit_pictures" in evaluate(model).stdout
    assert "accelerate.commands.launch --num_processes 4 " in evaluate(model, PROCESSES="4").stdout


@pytest.mark.parametrize("missing", ["config.json", "processor_config.json"])
def test_a_folder_without_model_or_processor_is_refused(model: Path, missing: str) -> None:
    (model / missing).unlink()
    done = evaluate(model)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {model} is no vision-language model's Hugging Face folder ({missing} is missing)"
    )
    assert done.stderr.count("\n") == 1


def test_without_lmms_eval_it_says_how_to_get_it(model: Path) -> None:
    python = model / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = evaluate(model, PYTHON=str(python), DRY_RUN="")
    assert (done.returncode, done.stderr) == (
        2, f"error: lmms-eval is not installed for {python}: tools/setup_lmms_environment.sh\n"
    )  # fmt: skip


def test_a_python_named_from_here_is_found_from_elsewhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "bin").mkdir()
    (model / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(model)
    done = evaluate(model, PYTHON="bin/python")
    assert done.stdout.startswith(f"{model}/bin/python ")  # the link: what it leads to has other packages


def test_the_tasks_metrics_are_the_kinds_of_questions(task: dict[str, Any]) -> None:
    metrics = {metric["metric"] for metric in task["metric_list"]}
    assert metrics == {"exact_match", *(f"exact_match_{kind}" for kind in get_args(Kind))}


def test_the_tasks_functions_and_files_are_there(
    task: dict[str, Any], utils: ModuleType, pictures: DigitPictures
) -> None:
    named = [value for key, value in task.items() if key.startswith(("doc_to", "process"))]
    assert len(named) == 4
    for value in named:
        assert callable(getattr(utils, value.removeprefix("utils.")))
    assert task["dataset_kwargs"]["data_files"] == {task["test_split"]: pictures.heldout_path.name}


def test_a_document_becomes_question_picture_and_score(
    utils: ModuleType, pictures: DigitPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.heldout_path.parent)
    for record in json.loads(pictures.heldout_path.read_text()):
        question, wanted = (turn["value"] for turn in record["conversations"])
        asked = utils.question(record)
        assert question == (f"<image>\n{asked}" if "image" in record else asked)
        # Where some records have no picture, `datasets` gives them the field with nothing in it.
        shown = utils.pictures({"image": None} | record)
        assert [picture.size for picture in shown] == [(16, 16)] * ("image" in record)
        kind = f"exact_match_{record['kind']}"
        assert utils.score(record, [f"{utils.answer(record)}."]) == {"exact_match": 1.0, kind: 1.0}
        assert utils.score(record, [f"not {wanted}"]) == {"exact_match": 0.0, kind: 0.0}

from pathlib import Path

import pytest
import yaml

from megatron_compete.cluster.pretrain_job import check_files, recipe_text, resolve
from megatron_compete.cluster.settings import Settings
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe

SETTINGS = Settings.of({"COMPETE_GPUS_PER_NODE": "8"})


def resolved(tmp_path: Path, launch: dict | None = None, **arguments: object) -> Recipe:
    recipe = Recipe(launch or {}, {name.replace("_", "-"): value for name, value in arguments.items()})
    resolve(recipe, tmp_path / "run", 4, SETTINGS)
    return recipe


def test_the_run_folder_takes_checkpoints_and_logs(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, {"nproc-per-node": 2}, lr=0.1)
    checkpoints = str(tmp_path / "run/checkpoints")
    assert recipe.launch == {"nnodes": 4, "nproc-per-node": 8}
    assert recipe.arguments == {
        "lr": 0.1, "save": checkpoints, "load": checkpoints, "tensorboard-dir": str(tmp_path / "run/tensorboard"),
        "exit-signal-handler": True,
    }  # fmt: skip
    content = yaml.safe_load(recipe_text(recipe))
    assert content == {"launch": recipe.launch, "arguments": recipe.arguments}


def test_what_the_user_names_stays_and_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.bin", "a.idx", "t.model"):
        Path(name).touch()
    data = ["0.5", "a", "0.5", "missing"]
    recipe = resolved(tmp_path, save="ck", tensorboard_dir="tb", data_path=data, tokenizer_model="t.model")
    assert recipe.arguments["save"] == recipe.arguments["load"] == str(tmp_path / "ck")
    assert recipe.arguments["data-path"] == ["0.5", str(tmp_path / "a"), "0.5", "missing"]
    assert recipe.arguments["tokenizer-model"] == str(tmp_path / "t.model")


def test_conversations_are_files_beside_a_folder_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vision-language model's data are JSON and no prefixes; each file and folder is there, or named."""
    monkeypatch.chdir(tmp_path)
    Path("train.json").write_text("[]")
    Path("pictures").mkdir()
    given = {"vision_model_type": "siglip", "train_data_path": ["1", "train.json"], "image_folder": "pictures"}
    recipe = resolved(tmp_path, image_processor="processor", **given)
    assert recipe.arguments["train-data-path"] == ["1", str(tmp_path / "train.json")]
    assert recipe.arguments["image-folder"] == str(tmp_path / "pictures")
    with pytest.raises(CompeteError, match="--image-processor processor is not there"):
        check_files(recipe)
    check_files(resolved(tmp_path, **given))
    for changed, says in (
        ({"train_data_path": "none.json"}, "--train-data-path none.json: none.json is not there"),
        ({"train_data_path": None}, "no training data: give --train-data-path FILE.json"),
        ({"image_folder": "none"}, "--image-folder none is not there"),
    ):
        with pytest.raises(CompeteError, match=says):
            check_files(resolved(tmp_path, **(given | changed)))


def test_a_job_must_go_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"--load /other is not --save .*--pretrained-checkpoint"):
        resolved(tmp_path, load="/other")
    with pytest.raises(CompeteError, match="rdzv-endpoint: n1:29500 in the recipe is the job's to say"):
        resolved(tmp_path, {"rdzv-endpoint": "n1:29500"})


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("a.bin", "a.idx", "b.idx", "t.model"):
        (tmp_path / name).touch()
    model, good = str(tmp_path / "t.model"), str(tmp_path / "a")
    check_files(resolved(tmp_path, mock_data=True, tokenizer_type="NullTokenizer"))
    check_files(
        resolved(tmp_path, data_path=["1", good], tokenizer_type="SentencePieceTokenizer", tokenizer_model=model)
    )
    check_files(resolved(tmp_path, data_path=good, tokenizer_type="HuggingFaceTokenizer", tokenizer_model="org/name"))
    for arguments, says in (
        ({}, "no training data: give --data-path"),
        ({"data_path": ["0.3", good, "0.7", str(tmp_path / "b")]}, r"--data-path .*/b: .*/b\.bin is not there"),
        ({"valid_data_path": "nowhere", "mock_data": True}, r"--valid-data-path nowhere: nowhere\.bin is not there"),
        ({"mock_data": True, "pretrained_checkpoint": "/none"}, "--pretrained-checkpoint /none is not there"),
        ({"data_path": good, "tokenizer_type": "HuggingFaceTokenizer"}, "HuggingFaceTokenizer needs --tokenizer-model FOLDER"),
        ({"data_path": good, "tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "x.model"}, "--tokenizer-model x.model is not"),
    ):  # fmt: skip
        with pytest.raises(CompeteError, match=says):
            check_files(resolved(tmp_path, **arguments))

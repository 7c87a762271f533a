"""Damage of every kind is named; whole checkpoints are whole."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_compete.checkpoint.integrity import Findings, inspect_hf, inspect_torch_dist
from megatron_compete.checkpoint.restricted import load_metadata
from tests.checkpoint import gpt, hf_models
from tests.ranks import run_ranks

Saved = tuple[Path, torch.Tensor]


@pytest.fixture(scope="module")
def parallel(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration's folder, written by four ranks."""
    folder = tmp_path_factory.mktemp("parallel")
    layout = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1}
    run_ranks(4, gpt.resave, str(saved[0] / "iter_0000007"), str(folder), layout | {"pipeline_model_parallel_size": 2})
    return folder / "iter_0000007"


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def only_problem(found: Findings) -> str:
    assert len(found.problems) == 1, found.problems
    assert "1 problem" in str(found)
    return found.problems[0]


def test_whole_checkpoints(saved: Saved, parallel: Path) -> None:
    for folder in (saved[0] / "iter_0000007", parallel):
        found = inspect_torch_dist(folder, read=True)
        assert found.problems == []
        assert found.tensors >= 10 and found.files >= 1
        assert found.bytes == sum(path.stat().st_size for path in folder.glob("*.distcp"))
        assert "whole" in str(found)


def test_a_file_cut_short(parallel: Path, tmp_path: Path) -> None:
    folder = copy(parallel, tmp_path / "cut")
    path = sorted(folder.glob("*.distcp"))[1]
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path.name} was cut short" in only_problem(inspect_torch_dist(folder))


def test_a_missing_file(parallel: Path, tmp_path: Path) -> None:
    folder = copy(parallel, tmp_path / "missing")
    path = sorted(folder.glob("*.distcp"))[1]
    path.unlink()
    assert f"{path.name} is missing" in only_problem(inspect_torch_dist(folder))


def test_files_of_another_save(parallel: Path, tmp_path: Path) -> None:
    folder = copy(parallel, tmp_path / "foreign")
    (folder / "__9_0.distcp").write_bytes(b"x")
    assert only_problem(inspect_torch_dist(folder)) == "__9_0.distcp is foreign: the index does not name it"
    (folder / "__9_0.distcp").unlink()
    path = sorted(folder.glob("*.distcp"))[1]
    path.write_bytes(path.read_bytes() + b"x" * 99)
    assert f"{path.name} is not this checkpoint's" in only_problem(inspect_torch_dist(folder))


def test_files_outside_of_the_folder(parallel: Path, sharded: Path, tmp_path: Path) -> None:
    folder = copy(parallel, tmp_path / "outside")
    index = load_metadata(folder / ".metadata")
    moved = sorted(folder.glob("*.distcp"))[0]
    moved.rename(tmp_path / moved.name)
    for info in index.storage_data.values():
        if info.relative_path == moved.name:
            info.relative_path = f"../{moved.name}"
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    assert f"names the file '../{moved.name}', which is not in its folder" in only_problem(inspect_torch_dist(folder))
    folder = copy(sharded, tmp_path / "hf")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for name in ("../model.safetensors", ["model.safetensors"], 5):
        path.write_text(json.dumps(index | {"weight_map": {key: name for key in index["weight_map"]}}))
        assert "which is not in its folder" in only_problem(inspect_hf(folder))


def test_content_that_is_damaged(parallel: Path, tmp_path: Path) -> None:
    folder = copy(parallel, tmp_path / "content")
    path = max(folder.glob("*.distcp"), key=lambda one: one.stat().st_size)
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(bytes(data))
    assert inspect_torch_dist(folder, read=True).problems


def edit_index(folder: Path, key: str, change: str) -> None:
    """Rewrite `.metadata` as a rank that saved otherwise would have."""
    with (folder / ".metadata").open("rb") as stream:
        index = pickle.load(stream)
    chunks = index.state_dict_metadata[key].chunks
    if change == "drop":
        chunks.pop()
    elif change == "overlap":
        number = next(i for i, chunk in enumerate(chunks) if chunk.offsets[-1] > 0)
        *before, last = chunks[number].offsets
        chunks[number] = chunks[0].__class__(torch.Size([*before, last - 1]), chunks[number].sizes)
    elif change == "beyond":
        chunks[-1] = chunks[0].__class__(torch.Size([o + 1 for o in chunks[-1].offsets]), chunks[-1].sizes)
    elif change == "none":
        chunks.clear()
    (folder / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "values were saved"),
        ("overlap", "chunks overlap"),
        ("beyond", "reaches beyond its shape"),
        ("none", "none of it was saved"),
    ],
)
def test_chunks_that_are_not_the_tensor(parallel: Path, tmp_path: Path, change: str, message: str) -> None:
    folder = copy(parallel, tmp_path / change)
    edit_index(folder, "decoder.layers.self_attention.linear_proj.weight", change)
    problems = inspect_torch_dist(folder).problems
    assert any(message in problem and "linear_proj" in problem for problem in problems), problems


def test_an_index_that_is_none(parallel: Path, tmp_path: Path) -> None:
    folder = copy(parallel, tmp_path / "index")
    (folder / ".metadata").write_bytes(b"no")
    assert "is not the index of a checkpoint" in only_problem(inspect_torch_dist(folder))


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    assert inspect_hf(folder, read=True).problems == []
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors")
    assert inspect_hf(folder).problems == []
    assert "model.norm.weight" in only_problem(inspect_hf(folder, read=True))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.save(tmp_path_factory.mktemp("mixtral"), "mixtral", shard="40KB")


def test_hugging_face_folders(sharded: Path, tmp_path: Path) -> None:
    found = inspect_hf(sharded, read=True)
    assert found.problems == [] and found.files > 2
    folder = copy(sharded, tmp_path / "hf")
    files = sorted(folder.glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].unlink()
    save_file({"a": torch.ones(1)}, folder / "model-00009-of-00002.safetensors")
    found = inspect_hf(folder)
    for text in (f"{files[0].name} is cut short", f"{files[1].name} is missing"):
        assert any(text in problem for problem in found.problems), (text, found.problems)
    assert found.notes == ["model-00009-of-00002.safetensors is passed over: it is not of the model"]


def test_files_beside_the_model_are_no_damage(sharded: Path, tmp_path: Path) -> None:
    folder = copy(sharded, tmp_path / "hf")
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"a": torch.ones(1)}, folder / name)
    found = inspect_hf(folder, read=True)
    assert found.problems == [] and len(found.notes) == 2
    assert found.tensors == inspect_hf(sharded).tensors


def test_a_tensor_in_two_shards(sharded: Path, tmp_path: Path) -> None:
    folder = copy(sharded, tmp_path / "hf")
    one, *_, last = sorted(folder.glob("*.safetensors"))
    name, value = next(iter(load_file(one).items()))
    save_file(load_file(last) | {name: torch.zeros_like(value)}, last)
    assert any(f"{name} is in {one.name} and in {last.name}" in problem for problem in inspect_hf(folder).problems)


def test_a_tensor_in_another_file_than_indexed(sharded: Path, tmp_path: Path) -> None:
    folder = copy(sharded, tmp_path / "index")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(one for one in index["weight_map"].values() if one != file)
    index["weight_map"][name] = other
    path.write_text(json.dumps(index))
    problems = inspect_hf(folder).problems
    assert f"{name} is not in {other}, where model.safetensors.index.json has it" in problems


def test_another_precision_than_the_configuration_says(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path, "llama", torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config))
    found = inspect_hf(folder)
    assert found.problems == [] and found.notes == ["config.json says float32, and the tensors are bfloat16"]


def test_no_model_at_all(tmp_path: Path) -> None:
    assert "config.json cannot be read" in only_problem(inspect_hf(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "has neither" in only_problem(inspect_hf(tmp_path))

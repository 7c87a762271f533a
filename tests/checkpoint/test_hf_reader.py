"""Hugging Face folders: read without mapping, and refused where files do not belong together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.checkpoint.safetensors_reader import SafetensorsFile
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import hf_models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.save(tmp_path_factory.mktemp("llama"), "llama", torch.bfloat16, shard="20KB")


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_tensors_are_those_of_the_library(model: Path) -> None:
    folder = HfFolder(model)
    assert len(folder.files) > 2
    expected = {name: tensor for path in model.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert folder.tensors.keys() == expected.keys()
    assert all(folder.read(name).equal(tensor) for name, tensor in expected.items())
    name = "model.embed_tokens.weight"
    assert folder.read(name, (3,)).equal(expected[name][3])
    assert folder.config["model_type"] == "llama"


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([[1.0, 0.0, 2.0]]).to(dtype)
    save_file({"empty": value[:0].clone(), "one": value}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.read("one").dtype == dtype
    assert file.read("one").float().equal(value.float())
    assert file.read("empty").shape == (0, 3)


@pytest.mark.parametrize("cut", [-1, 100, 4], ids=["values", "header", "length"])
def test_a_file_cut_short(model: Path, tmp_path: Path, cut: int) -> None:
    folder = copy(model, tmp_path / "cut")
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CompeteError, match=rf"{path.name} is .*(cut short|not a safetensors file)"):
        HfFolder(folder)


def test_a_missing_shard_is_named(model: Path, tmp_path: Path) -> None:
    folder = copy(model, tmp_path / "missing")
    path = sorted(folder.glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(CompeteError, match=f"lacks 1 of its .* files: {path.name}"):
        HfFolder(folder)


def test_an_index_of_another_model(model: Path, tmp_path: Path) -> None:
    folder = copy(model, tmp_path / "index")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = list(index["weight_map"].values())
    name, file = next((name, file) for name, file in index["weight_map"].items() if files.count(file) > 1)
    index["weight_map"]["stranger"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CompeteError, match=r"stranger is not in .*, where .* has it"):
        HfFolder(folder)
    del index["weight_map"]["stranger"], index["weight_map"][name]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CompeteError, match=f"{name} is in .*, and model.safetensors.index.json does not have it"):
        HfFolder(folder)
    index["weight_map"][name] = "../" + file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CompeteError, match=r"names the file .* which is not in its folder"):
        HfFolder(folder)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CompeteError, match="only safetensors are read"):
        HfFolder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(model: Path, tmp_path: Path) -> None:
    """transformers takes the last file's, whatever the index says; an older value may be in it."""
    folder = copy(model, tmp_path / "twice")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(iter(index))
    other = next(file for file in sorted(set(index.values())) if file != index[name])
    tensors = load_file(folder / other)
    save_file(tensors | {name: torch.zeros(3)}, folder / other)
    with pytest.raises(CompeteError, match=f"{name} is in .* and in .*: which counts cannot be known"):
        HfFolder(folder)


def test_files_that_do_not_count(model: Path, tmp_path: Path) -> None:
    folder = copy(model, tmp_path / "beside")
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"x": torch.zeros(3)}, folder / name)
    assert HfFolder(folder).passed_over == ["adapter_model.safetensors", "consolidated.safetensors"]
    assert HfFolder(folder).tensors == HfFolder(model).tensors
    # As transformers: a single file goes before an index, whose shards it does not look at.
    save_file(whole := {"one": torch.zeros(3)}, folder / "model.safetensors")
    assert HfFolder(folder).tensors.keys() == whole.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "pickles that can run code"),
        ("adapter_model.safetensors", "an adapter alone.* merge it"),
        ("consolidated.00.safetensors", "Mistral"),
        ("model.Q4_K_M.gguf", "llama.cpp"),
        ("weights.safetensors", "other names and no index"),
    ],
)
def test_layouts_that_are_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).touch()
    with pytest.raises(CompeteError, match=message):
        HfFolder(tmp_path)


def test_a_slice_is_read_alone(tmp_path: Path) -> None:
    value = torch.arange(24.0).reshape(2, 3, 4)
    save_file({"before": torch.ones(5), "x": value}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.read("x", (1,)).equal(value[1]) and file.read("x", (1, 2)).equal(value[1, 2])
    assert file.read("x").equal(value)


def file_of(folder: Path, header: object, values: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
    return folder / "x.safetensors"


def entry(start: int, end: int, shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8), "b": entry(4, 12)},
        {"a": entry(0, 4), "b": entry(8, 12)},
        {"a": entry(4, 12)},
        {"a": entry(0, 12, [-1, -3])},
        {"a": entry(0, 12, [2**62, 4])},
        {"a": entry(0, 12) | {"shape": [3.0]}},
        {"a": entry(0, 12) | {"shape": [True, 3]}},
        b'{"a": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}, "a": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        b'{"\\ud800": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        b"[" * 50_000,
        [],
        "x",
        None,
    ],
    ids=lambda header: str(header)[:40],
)
def test_headers_that_lie(tmp_path: Path, header: object) -> None:
    """Overlaps, holes, sizes that are no sizes, names that stand twice or cannot be printed."""
    with pytest.raises(CompeteError, match=r"x\.safetensors"):
        SafetensorsFile(file_of(tmp_path, header, bytes(12)))


@pytest.mark.parametrize(
    "weight_map", [{}, [], None, {"a": 5}, {"a": ""}, {"a": "/etc/passwd"}, {"a": "b/../../c"}], ids=str
)
def test_indices_that_lie(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CompeteError, match=r"has no weight_map|which is not in its folder"):
        HfFolder(tmp_path)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="no such folder"):
        HfFolder(tmp_path / "none")
    with pytest.raises(CompeteError, match="cannot be read"):
        HfFolder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CompeteError, match="not a JSON object"):
        HfFolder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CompeteError, match=r"has neither model\.safetensors nor"):
        HfFolder(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1]},
        7,
    ],
    ids=str,
)
def test_a_header_that_lies(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(CompeteError, match="x"):
        SafetensorsFile(tmp_path / "x.safetensors")

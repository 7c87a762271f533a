"""Damaged checkpoints: whatever is read of them is what is there, and nothing of them runs."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megatron_compete.checkpoint.families import read_config
from megatron_compete.checkpoint.hf_reader import HfFolder, read_json
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.integrity import inspect_torch_dist
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import hf_models
from tests.fuzz.damage import Read, failure, fuzz, kept

INPUTS, SECONDS = 130, 15.0
"""Of each reader: 520 inputs together."""


class Readers:
    """Good files, and a reader for damaged ones of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = hf_models.save(folder / "model", "mixtral", shard="40KB")
        import_checkpoint(Import(self.model, folder / "megatron", file_bytes=20_000))
        self.checkpoint = find_checkpoint(folder / "megatron")
        self.whole = TorchDistCheckpoint(self.checkpoint)
        save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}, folder / "good")

    def good(self, reader: str) -> list[bytes]:
        return {
            "safetensors": [(self.folder / "good").read_bytes()],
            "index": [(self.model / "model.safetensors.index.json").read_bytes()],
            "config": [(self.model / "config.json").read_bytes(), *map(_config, hf_models.CONFIGS)],
            "metadata": [(self.checkpoint / ".metadata").read_bytes(), pickle.dumps(Runs(self.folder / "ran"))],
        }[reader]

    def safetensors(self, data: bytes) -> None:
        from megatron_compete.checkpoint.safetensors_reader import SafetensorsFile

        path = self.folder / "x.safetensors"
        path.write_bytes(data)
        found = {name: SafetensorsFile(path).read(name) for name in SafetensorsFile(path).tensors}
        try:
            with safe_open(path, framework="pt") as library:
                assert set(library.keys()) == set(found)
                for name in found:
                    assert library.get_tensor(name).view(torch.uint8).equal(found[name].view(torch.uint8)), name
        except SafetensorError as error:
            raise AssertionError(f"the library refuses what we read: {error}") from error

    def index(self, data: bytes) -> None:
        folder = self._with(self.model, "model.safetensors.index.json", data)
        assert HfFolder(folder).tensors == HfFolder(self.model).tensors  # or it is refused

    def config(self, data: bytes) -> None:
        (self.folder / "config.json").write_bytes(data)
        family, arguments = read_config(read_json(self.folder / "config.json"))
        assert arguments["num_layers"] and family.name in hf_models.CONFIGS

    def metadata(self, data: bytes) -> None:
        folder = self._with(self.checkpoint, ".metadata", data)
        found = inspect_torch_dist(folder)
        assert not (self.folder / "ran").exists(), "code of the index was run"
        checkpoint = TorchDistCheckpoint(folder)
        for key in checkpoint.tensors:
            value = checkpoint.read(key)
            same = key in self.whole.tensors and value.equal(self.whole.read(key))
            assert found.problems or same, f"{key} is another tensor, and the inspection says that all is whole"

    def _with(self, folder: Path, name: str, data: bytes) -> Path:
        """A folder of links with another file in it."""
        target = self.folder / "damaged"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in folder.iterdir():
            if path.name != name:
                os.link(path, target / path.name)
        (target / name).write_bytes(data)
        return target


class Runs:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def _config(family: str) -> bytes:
    return json.dumps({"model_type": family, **hf_models.CONFIGS[family]}).encode()


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    return Readers(tmp_path_factory.mktemp("fuzz"))


NAMES = ("safetensors", "index", "config", "metadata")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_damage(name: str, readers: Readers) -> None:
    read: Read = getattr(readers, name)
    for data in readers.good(name):
        if b"mkdir" not in data:
            read(data)
    assert fuzz(f"checkpoint-{name}", readers.good(name), read, INPUTS, SECONDS) > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_once_failed(name: str, readers: Readers) -> None:
    for path in kept(f"checkpoint-{name}"):
        assert failure(getattr(readers, name), path.read_bytes()) is None, path.name


def test_an_index_that_calls_a_function(readers: Readers) -> None:
    with pytest.raises(CompeteError, match="nothing of it was run"):
        TorchDistCheckpoint(readers._with(readers.checkpoint, ".metadata", pickle.dumps(Runs(readers.folder / "ran"))))
    assert not (readers.folder / "ran").exists()

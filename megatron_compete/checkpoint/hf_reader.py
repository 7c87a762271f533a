"""A Hugging Face folder: its configuration and its tensors, one at a time, from safetensors files alone.

Which files count is as in transformers: `model.safetensors`, or else those that the index names; what else lies beside
(`consolidated.safetensors`, an adapter) is passed over.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_compete.checkpoint.fused_experts import FusedSlice, unfused
from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.checkpoint.safetensors_reader import SafetensorsFile
from megatron_compete.checkpoint.safetensors_writer import INDEX
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import path_within

CONFIG = "config.json"
SINGLE = "model.safetensors"

LAYOUTS = (
    ("*.bin", "its weights as .bin, pickles that can run code", "load it with transformers and save_pretrained() it"),
    ("consolidated*.safetensors", "the layout of Mistral's own code", "take the files that transformers loads, "
     "model.safetensors or its shards"),
    ("adapter_model.safetensors", "an adapter alone", "merge it into its model with peft (merge_and_unload()) and "
     "save_pretrained() that"),
    ("*.gguf", "the layout of llama.cpp", "take the model's safetensors"),
    ("*.safetensors", "safetensors of other names and no index", "load it with transformers and save_pretrained() it"),
)  # fmt: skip
"""What a folder without a model in safetensors may be, and the way out."""


class HfFolder:
    """A model's folder as `save_pretrained` writes it and the hub has it; experts one by one, however they are stored.

    Args:
        config: of a part of the folder's model; None is the folder's.
        rename: name of a tensor within that part, None of what it has not; without it the part is all of the model.
        prefix: of the part's tensors in the folder, for errors.
        flag: that names the folder, for errors.
    Raises:
        CompeteError: no configuration, no safetensors, or files that do not belong together.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any] | None = None,
        rename: Callable[[str], str | None] = str,
        prefix: str = "",
        flag: str = "--checkpoint",
    ) -> None:
        self.folder, self.prefix = folder, prefix
        self.config = self.config_of(folder, flag) if config is None else config
        names, index = weight_files(folder)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CompeteError(f"{folder} lacks {len(missing)} of its {len(names)} files: {', '.join(missing[:4])}")
        self.files = {name: SafetensorsFile(folder / name) for name in names}
        for problem in disagreements(index, self.files):
            raise CompeteError(f"{folder}: {problem}")
        self._places: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in self.files.values():
            for place in file.tensors:
                name = rename(place)
                if name in self._places:
                    raise CompeteError(
                        f"{folder} has {self._places[name][1]} and {place}: which counts cannot be known"
                    )
                if name is not None:
                    self._places[name] = file, place
        stored = {name: file.tensors[place].info for name, (file, place) in self._places.items()}
        self._parts: dict[str, FusedSlice] = unfused(stored, str(self.config.get("model_type")))
        for name in self._parts.keys() & stored.keys():
            raise CompeteError(f"{folder} has {name} and {self._parts[name].stored}: which counts cannot be known")
        fused = {part.stored for part in self._parts.values()}
        self.tensors: Mapping[str, TensorInfo] = {
            **{name: info for name, info in stored.items() if name not in fused},
            **{name: part.info for name, part in self._parts.items()},
        }

    @staticmethod
    def config_of(folder: Path, flag: str = "--checkpoint") -> dict[str, Any]:
        """Content of a folder's config.json.

        Raises:
            CompeteError: no folder, or no configuration.
        """
        if not folder.is_dir():
            raise CompeteError(f"{flag} {folder}: no such folder; a model of the hub has to be downloaded first")
        return read_json(folder / CONFIG)

    def read(self, name: str, index: tuple[int, ...] = ()) -> Tensor:
        """The tensor `name`, or its slice at `index` along the leading axes."""
        if name not in self._parts:
            return self._read(name, index)
        part = self._parts[name]
        return part.of(self._read(part.stored, part.index))[index]

    def _read(self, name: str, index: tuple[int, ...]) -> Tensor:
        file, place = self._places[name]
        return file.read(place, index)

    @property
    def passed_over(self) -> list[str]:
        """Files of weights that do not count."""
        return passed_over(self.folder, self.files)


def weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the files that hold the model, and the index (which file has which tensor) where there is one.

    Raises:
        CompeteError: there are none, with the layout that the folder has; or a bad index.
    """
    if (folder / SINGLE).is_file():
        return [SINGLE], None
    if not (folder / INDEX).is_file():
        for pattern, layout, way_out in LAYOUTS:
            if any(folder.glob(pattern)):
                raise CompeteError(f"{folder} has neither {SINGLE} nor {INDEX}, but {layout}: only safetensors are read. To go on, {way_out}")  # fmt: skip
        raise CompeteError(f"{folder} has neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CompeteError(f"{folder / INDEX} has no weight_map of tensors to files")
    for name in weight_map.values():
        path_within(folder, name, folder / INDEX)
    return sorted(set(weight_map.values())), weight_map


def disagreements(index: Mapping[str, str] | None, files: Mapping[str, SafetensorsFile]) -> Iterator[str]:
    """Tensors that two files hold, and tensors that are elsewhere than the index says."""
    found: dict[str, str] = {}
    for name, file in files.items():
        for tensor in file.tensors:
            if tensor in found:
                yield f"{tensor} is in {found[tensor]} and in {name}: which counts cannot be known"
            elif index is not None and tensor not in index:
                yield f"{tensor} is in {name}, and {INDEX} does not have it"
            found.setdefault(tensor, name)
    for tensor, name in (index or {}).items():
        if name in files and tensor not in files[name].tensors:
            yield f"{tensor} is not in {name}, where {INDEX} has it"


def passed_over(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Safetensors of a folder that are not among those that hold the model."""
    return sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CompeteError: it is missing, or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompeteError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CompeteError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CompeteError(f"{path} is not a JSON object")
    return value

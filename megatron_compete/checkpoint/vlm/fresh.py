"""What a model that is composed of parts has of none of them: a projector, and rows for the image token."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_compete.checkpoint.chunks import part_chunks
from megatron_compete.checkpoint.families import Dimensions
from megatron_compete.checkpoint.families.projector import PROJECTOR
from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.safetensors_reader import SafetensorsFile
from megatron_compete.checkpoint.vlm.folders import of_part
from megatron_compete.common.errors import CompeteError

SEED = 1234
TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")
LAYERS = re.compile(r"(?:.*\.)?(?:mm_projector\.(0|2)|linear_(1|2))\.(weight|bias)")
"""Of a projector: LLaVA's own code numbers its three modules, transformers names the two that have weights."""


def fresh_projector(d: Dimensions, dtype: torch.dtype) -> list[Chunk]:
    """A projector to be trained: weights and biases uniform within 1 / sqrt(inputs), as torch's linear layers begin.

    LLaVA's begin so; N(0, 0.02) of Megatron's would hardly let pictures through at small widths.
    """
    shapes = {
        "linear_fc1.weight": (d.ffn, d.inputs),
        "linear_fc1.bias": (d.ffn,),
        "linear_fc2.weight": (d.hidden, d.ffn),
        "linear_fc2.bias": (d.hidden,),
    }
    inputs = {"linear_fc1": d.inputs, "linear_fc2": d.ffn}
    return [
        Chunk(key, (), (), shape, dtype, partial(_uniform, shape, inputs[key.partition(".")[0]], SEED + number, dtype))
        for number, (key, shape) in enumerate(shapes.items())
    ]


def _uniform(shape: tuple[int, ...], inputs: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator).to(dtype)


def given_projector(path: Path, d: Dimensions) -> list[Chunk]:
    """The projector of a LLaVA's folder, or of a safetensors file, in transformers' names or in those of LLaVA's own code.

    Raises:
        CompeteError: another projector, or no safetensors.
    """
    if path.is_dir():
        return list(part_chunks(HfFolder(path, {}, partial(of_part, "projector"), "multi_modal_projector.", "--projector"), PROJECTOR, d))  # fmt: skip
    if path.suffix != ".safetensors":
        raise CompeteError(
            f"--projector {path} is neither a LLaVA's folder nor a .safetensors file: a .bin is a pickle, which can run code; "
            "load it with torch.load(weights_only=True) and write it with safetensors.torch.save_file"
        )
    return list(part_chunks(_ProjectorFile(path), PROJECTOR, d))


class _ProjectorFile(HfFolder):
    """A single file as the folder of a projector."""

    def __init__(self, path: Path) -> None:
        file = SafetensorsFile(path)
        self.folder, self.prefix, self.config, self.files, self._parts = path, "", {}, {path.name: file}, {}
        self._places = {_layer_name(path, place): (file, place) for place in file.tensors}
        self.tensors = {name: file.tensors[place].info for name, (_, place) in self._places.items()}


def _layer_name(path: Path, name: str) -> str:
    found = LAYERS.fullmatch(name)
    if not found:
        raise CompeteError(
            f"--projector {path} has {name}: a projector is linear_1 and linear_2, or LLaVA's mm_projector.0 and mm_projector.2"
        )
    number = found[2] or {"0": "1", "2": "2"}[found[1]]
    return f"linear_{number}.{found[3]}"


def with_rows(chunks: Sequence[Chunk], rows: int) -> Iterator[Chunk]:
    """The language model's chunks with embedding and head of `rows` rows at least.

    No text has the new tokens, and a picture's embeddings take their place. They get the mean of the other rows: so no
    logit of theirs is ever the largest.
    """
    for chunk in chunks:
        if chunk.key in TABLES and chunk.shape[0] < rows:
            yield replace(chunk, shape=(rows, *chunk.shape[1:]), make=partial(_with_mean, chunk, rows))
        else:
            yield chunk


def _with_mean(chunk: Chunk, rows: int) -> Tensor:
    table = chunk.make()
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])

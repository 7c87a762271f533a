"""Every tensor of Megatron's model as chunks to be written: from a Hugging Face folder along a family's rules, or from a
trainer's checkpoint."""

import re
from collections.abc import Iterator, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.families import Dimensions, Family, TensorRule
from megatron_compete.checkpoint.families.tensors import MTP, StoredSlice
from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.plan import MODEL_PREFIXES
from megatron_compete.checkpoint.reader import TensorSource
from megatron_compete.checkpoint.upcycle import LAYER
from megatron_compete.common.errors import CompeteError

BUFFERS = ("rotary_emb.inv_freq",)
"""Tensors of old transformers' checkpoints that follow from the configuration."""


def hf_chunks(
    folder: HfFolder, family: Family, arguments: Mapping[str, Any], drop_mtp: bool = False
) -> Iterator[Chunk]:
    """Every tensor of Megatron's model, to be made from a Hugging Face folder.

    The vocabulary is not padded: Megatron loads its tables with another number of rows.

    Raises:
        CompeteError: a tensor is missing, has another shape than config.json says, or has no place in the model.
    """
    return part_chunks(folder, family, Dimensions.from_arguments(arguments, int(arguments["vocab_size"])), drop_mtp)


def part_chunks(folder: HfFolder, family: Family, d: Dimensions, drop_mtp: bool = False) -> Iterator[Chunk]:
    """The same of a model, or a part of one, whose sizes are known."""
    used: set[str] = set()
    names: dict[str, str] = {}
    rules = list(family.tensors(d))
    for rule in rules:
        if rule.again:
            continue
        dtype = _check_rule(folder, rule)
        used.update(rule.names)
        if rule.slot is None:
            _check_zeros(folder, rule)
            continue
        names[rule.slot.keys[0]] = rule.names[0]
        for place in rule.slot.canonical(d):
            yield from _chunks(folder, rule, place, rule.stored_dtype or dtype)
    for rule in rules:
        if rule.again and rule.slot is not None:
            used |= _check_copy(folder, rule.names[0], names[rule.slot.keys[0]])
    if drop_mtp:
        used |= {name for name in folder.tensors if is_mtp(name, folder)}
    _check_strangers(folder, used, d.tied)


def _chunks(folder: HfFolder, rule: TensorRule, place: StoredSlice, dtype: torch.dtype) -> Iterator[Chunk]:
    """A rule's tensor at one of its places: whole, or in the pieces that Megatron stores."""
    start = 0
    for name, rows in rule.pieces or (("", rule.shape[0]),):
        key = f"{place.key}.{name}" if name else place.key
        make = partial(_join, folder, rule, dtype, slice(start, start + rows))
        yield Chunk(key, place.at, place.stack, (rows, *rule.shape[1:]), dtype, make)
        start += rows


def _join(folder: HfFolder, rule: TensorRule, dtype: torch.dtype, rows: slice) -> Tensor:
    return rule.form.join([folder.read(name).to(dtype) for name in rule.names])[rows]


def is_mtp(name: str, folder: HfFolder) -> bool:
    """Whether a tensor is of a layer for multi-token prediction: behind the last one, with a projection `eh_proj`; or
    apart, as Qwen3-Next has it."""
    if name.startswith(MTP):
        return True
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return found is not None and f"model.layers.{found[1]}.eh_proj.weight" in folder.tensors


def mtp_layers(folder: HfFolder) -> int | None:
    """How many layers for multi-token prediction the folder has; None without."""
    return sum(name.endswith(".eh_proj.weight") and is_mtp(name, folder) for name in folder.tensors) or None


def _check_copy(folder: HfFolder, name: str, original: str) -> set[str]:
    """`name`, which Megatron has no place for beside `original`; empty where the folder does without."""
    if name not in folder.tensors:
        return set()
    if not folder.read(name).equal(folder.read(original)):
        raise CompeteError(
            f"{folder.folder}: {name} is not {original}, and Megatron has one tensor for both: give --drop-mtp to leave "
            "the layer for multi-token prediction out, as transformers does"
        )
    return {name}


def _check_rule(folder: HfFolder, rule: TensorRule) -> torch.dtype:
    """The dtype of a rule's tensors in Megatron: the narrowest that holds all of them."""
    for name, shape in zip(rule.names, rule.hf_shapes):
        if name not in folder.tensors:
            raise CompeteError(
                f"{folder.folder} has no {folder.prefix}{name}, which config.json asks for{_why_missing(folder, name)}"
            )
        info = folder.tensors[name]
        if info.shape != shape:
            raise CompeteError(
                f"{folder.folder}: {folder.prefix}{name} has shape {info.shape}, config.json makes it {shape}"
            )
        if info.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise CompeteError(
                f"{folder.folder}: {folder.prefix}{name} is stored as {info.dtype}: only fp32, bf16 and fp16 are imported"
            )
    return reduce(torch.promote_types, (folder.tensors[name].dtype for name in rule.names))


def _why_missing(folder: HfFolder, name: str) -> str:
    """The layout that a folder without `name` has instead, and the way out."""
    if name == "lm_head.weight":
        return ': if the head is the embedding, set "tie_word_embeddings": true in config.json'
    bare = name.removeprefix("model.")
    for other in folder.tensors:
        if other == bare:
            return ": it is a model without a head, load it with AutoModelForCausalLM and save_pretrained() that"
        if other.endswith(bare) and other != name:
            prefix = other.removesuffix(name) if other.endswith(name) else other.removesuffix(bare)
            return f": its tensors are named {prefix}..., as a wrapper saves them; save the model inside it"
    return ""


def _check_zeros(folder: HfFolder, rule: TensorRule) -> None:
    for name in rule.names:
        if folder.read(name).any():
            raise CompeteError(
                f"{folder.folder}: {folder.prefix}{name} is not zero, and Megatron has no such tensor in this model"
            )


def _check_strangers(folder: HfFolder, used: set[str], tied: bool) -> None:
    """Nothing may be left out but what is known to follow from the rest."""
    strangers = [name for name in folder.tensors if name not in used and not name.endswith(BUFFERS)]
    if tied and strangers == ["lm_head.weight"]:
        embedding = "model.embed_tokens.weight"
        if folder.read("lm_head.weight").equal(folder.read(embedding)):
            return
        raise CompeteError(f"{folder.folder}: lm_head.weight is not {embedding}, and config.json ties them")
    mtp = [name for name in strangers if is_mtp(name, folder)]
    if mtp and mtp == strangers:
        raise CompeteError(
            f"{folder.folder} has {len(mtp)} tensors for multi-token prediction ({mtp[0]}, ...), which are not imported: "
            "give --drop-mtp to leave them out, as transformers does"
        )
    if strangers:
        shown = ", ".join(folder.prefix + name for name in sorted(strangers)[:4])
        raise CompeteError(f"{folder.folder} has {len(strangers)} tensors that config.json does not ask for: {shown}")


def megatron_chunks(
    source: TensorSource, layers: int, where: Path, prefixes: tuple[str, ...] = MODEL_PREFIXES
) -> Iterator[Chunk]:
    """Every tensor of the model in a trainer's checkpoint, a layer at a time.

    Args:
        layers: of the model.
        where: the checkpoint's folder, for errors.
        prefixes: of the model's own keys.
    Raises:
        CompeteError: layers are not stacked, so they are not all alike.
    """
    for key, info in source.tensors.items():
        if not key.startswith(prefixes):
            continue
        if not key.startswith(LAYER):
            yield Chunk(key, (), (), info.shape, info.dtype, partial(source.read, key))
            continue
        if key.removeprefix(LAYER)[0].isdigit() or info.shape[0] != layers:
            raise CompeteError(f"{where} stores {key} for each layer: only models of equal layers are upcycled")
        for layer in range(layers):
            yield Chunk(key, (layer,), (layers,), info.shape[1:], info.dtype, partial(source.read, key, (layer,)))

"""`megatron-compete convert --to megatron`: a Hugging Face folder, or a dense Megatron checkpoint to upcycle, as a
`torch_dist` checkpoint that a trainer of any parallel layout loads.

Tensors go over one at a time, along the rules by which an export splits them, so that a folder that is imported and
exported again is the same bit for bit.
"""

import re
import shlex
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.families import Dimensions, Family, TensorRule, read_config
from megatron_compete.checkpoint.families.registry import unread_fields
from megatron_compete.checkpoint.families.tensors import MTP, StoredSlice
from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.checkpoint.hf_tokenizer import (
    ID_NAMES,
    copy_tokenizer,
    generation_settings,
    ids_in,
    write_generation,
)
from megatron_compete.checkpoint.import_recipe import RECIPE, model_arguments, write_recipe
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.megatron_writer import Chunk, write_release
from megatron_compete.checkpoint.options import Import, Upcycling
from megatron_compete.checkpoint.output import check_output, is_done, made_from, whole_or_nothing
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.restricted import Opaque
from megatron_compete.checkpoint.upcycle import LAYER, upcycle
from megatron_compete.common.errors import CompeteError

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.", "encoder.", "mtp.")
"""Keys of the model's own tensors in a trainer's checkpoint; the rest is the optimizer's and the trainer's."""

TOKENIZER = "tokenizer"
VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of it, as Megatron's trainer does (--make-vocab-size-divisible-by)."""

BUFFERS = ("rotary_emb.inv_freq",)
"""Tensors of old transformers' checkpoints that follow from the configuration."""


@dataclass(frozen=True)
class Imported:
    """What `import_checkpoint` wrote."""

    output: Path
    source: Path
    weights: int
    """Bytes of all tensors."""
    files: int
    seconds: float
    upcycling: Upcycling | None
    has_experts: bool
    notes: tuple[str, ...] = ()
    """What a reader should know: what was left out, and what a trainer will round."""

    def __str__(self) -> str:
        lines = [
            f"wrote {self.output} from {self.source}: {self.weights / 1e6:.1f} MB in {self.files} "
            f"file{'s' * (self.files > 1)}, in {self.seconds:.1f} s"
        ]
        lines += [f"note: {note}" for note in self.notes]
        if self.upcycling:
            lines.append(_says(self.upcycling))
        if self.has_experts:
            lines.append(
                "a first look, 100 steps; --train-iters, --lr, --global-batch-size and all else override the recipe:"
            )
            lines.append(training_command(self.output))
        else:
            lines.append("a dense model: make a mixture of experts of it with --upcycle-experts")
        return "\n".join(lines)


def training_command(output: Path) -> str:
    """How to go on with an import; recipe.yaml names the checkpoint, and what else a first look takes."""
    recipe = shlex.quote(str(output / RECIPE))
    return f"megatron-compete pretrain --recipe {recipe} --data-path DATA --save RUN --load RUN"


def _says(how: Upcycling) -> str:
    state = "the dense model's function is kept" if how.exact else "the dense model's function is NOT kept"
    return f"upcycled to {how.experts} experts, {how.k} a token, granularity {how.granularity}: {state}"


def import_checkpoint(what: Import) -> Imported:
    """Write a checkpoint that starts training at iteration 0; all of it or nothing.

    Raises:
        CompeteError: a model that Megatron cannot represent, damaged files, or an output that is in the way.
    """
    start = time.monotonic()
    check_output(what.output, what.checkpoint, what.force)
    source, arguments, chunks, tokenizer, notes = _read(what)
    if what.upcycling:
        arguments, chunks = upcycle(arguments, chunks, what.upcycling)
    with whole_or_nothing(what.output, _made_from(what)) as staged:
        if tokenizer:
            _copy_tokenizer(tokenizer, staged / TOKENIZER, arguments)
        files = write_release(staged, arguments, chunks, what.file_bytes)
        shown = model_arguments(arguments) | {"padded_vocab_size": _padded(arguments)}
        write_recipe(staged, shown, what.output.absolute(), f"From {source.name}.")
    weights = sum(chunk.nbytes for chunk in chunks)
    experts = bool(arguments.get("num_experts"))
    seconds = time.monotonic() - start
    return Imported(what.output, source, weights, files, seconds, what.upcycling, experts, tuple(notes))


def _made_from(what: Import) -> str:
    """Digest of the model and the options that shape the output, where it will lie among them: the recipe says it."""
    folder = what.checkpoint if what.source == "hf" else find_checkpoint(what.checkpoint, what.iteration)
    options = {"to": "megatron", "output": what.output.absolute()}
    return made_from(
        [folder], options | {name: getattr(what, name) for name in ("source", "upcycling", "drop_mtp", "file_bytes")}
    )


def _read(what: Import) -> tuple[Path, dict[str, Any], list[Chunk], Path | None, list[str]]:
    """Folder, arguments, chunks, the folder whose tokenizer goes along, and notes."""
    if what.source == "hf":
        folder = HfFolder(what.checkpoint)
        family, arguments = read_config(folder.config)
        predicting = arguments | {"mtp_num_layers": mtp_layers(folder)}
        if not what.drop_mtp and family.problem(predicting) is None:
            arguments = predicting
        chunks = list(hf_chunks(folder, family, arguments, what.drop_mtp))
        arguments |= _tokenizer_arguments(what, folder)
        tokenizer = what.checkpoint if arguments["tokenizer_model"] else None
        return what.checkpoint, arguments, chunks, tokenizer, list(_notes(folder, chunks))
    if what.upcycling is None:
        raise CompeteError("--from megatron --to megatron: there is nothing to convert without --upcycle-experts")
    checkpoint = TorchDistCheckpoint(find_checkpoint(what.checkpoint, what.iteration))
    return checkpoint.folder, _fresh(checkpoint.arguments), list(megatron_chunks(checkpoint)), None, []


def _notes(folder: HfFolder, chunks: Sequence[Chunk]) -> Iterator[str]:
    """What was left out, and what a trainer will round."""
    if folder.passed_over:
        yield f"passed over {', '.join(folder.passed_over)}: not of the model"
    if unread := unread_fields(folder.config):
        yield f"passed over in config.json: {', '.join(unread)}, which no code of transformers reads"
    dropped = [name for name in folder.tensors if is_mtp(name, folder)]
    if dropped and not any(chunk.key.startswith(MTP) for chunk in chunks):
        yield f"left out {len(dropped)} tensors for multi-token prediction, as transformers does"
    sizes: dict[str, int] = defaultdict(int)
    for chunk in chunks:
        sizes[str(chunk.dtype).removeprefix("torch.")] += chunk.nbytes
    if len(sizes) > 1:
        shown = ", ".join(f"{dtype} ({size / 1e6:.1f} MB)" for dtype, size in sorted(sizes.items()))
        yield f"stored as {shown}, and kept so; a trainer loads all of it in its own precision but score-correction biases"


def _padded(arguments: Mapping[str, Any]) -> int | None:
    """Rows of the embedding in training: as the source had them, or the vocabulary rounded up."""
    if arguments.get("padded_vocab_size"):
        return int(arguments["padded_vocab_size"])
    return -(-int(arguments["vocab_size"]) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def hf_chunks(
    folder: HfFolder, family: Family, arguments: Mapping[str, Any], drop_mtp: bool = False
) -> Iterator[Chunk]:
    """Every tensor of Megatron's model, to be made from a Hugging Face folder.

    The vocabulary is not padded: Megatron loads its tables with another number of rows.

    Raises:
        CompeteError: a tensor is missing, has another shape than config.json says, or has no place in the model.
    """
    d = Dimensions.from_arguments(arguments, padded_vocab=int(arguments["vocab_size"]))
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
            raise CompeteError(f"{folder.folder} has no {name}, which config.json asks for{_why_missing(folder, name)}")
        info = folder.tensors[name]
        if info.shape != shape:
            raise CompeteError(f"{folder.folder}: {name} has shape {info.shape}, config.json makes it {shape}")
        if info.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise CompeteError(
                f"{folder.folder}: {name} is stored as {info.dtype}: only fp32, bf16 and fp16 are imported"
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
            raise CompeteError(f"{folder.folder}: {name} is not zero, and Megatron has no such tensor in this model")


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
        raise CompeteError(
            f"{folder.folder} has {len(strangers)} tensors that config.json does not ask for: {', '.join(sorted(strangers)[:4])}"
        )


def megatron_chunks(checkpoint: TorchDistCheckpoint) -> Iterator[Chunk]:
    """Every tensor of the model in a trainer's checkpoint, a layer at a time.

    Raises:
        CompeteError: layers are not stacked, so they are not all alike.
    """
    layers = int(checkpoint.arguments["num_layers"])
    for key, info in checkpoint.tensors.items():
        if not key.startswith(MODEL_PREFIXES):
            continue
        if not key.startswith(LAYER):
            yield Chunk(key, (), (), info.shape, info.dtype, partial(checkpoint.read, key))
            continue
        if key.removeprefix(LAYER)[0].isdigit() or info.shape[0] != layers:
            raise CompeteError(
                f"{checkpoint.folder} stores {key} for each layer: only models of equal layers are upcycled"
            )
        for layer in range(layers):
            yield Chunk(key, (layer,), (layers,), info.shape[1:], info.dtype, partial(checkpoint.read, key, (layer,)))


def _fresh(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A run's arguments without how far it was and what its competition was, and without values whose classes are not
    loaded here: enums of Megatron's that say nothing about the model, and that could not be written again."""
    counters = (
        "consumed_train_samples",
        "consumed_valid_samples",
        "skipped_train_samples",
        "iteration",
        "curr_iteration",
    )
    dropped = (*counters, "compete_schedule", "compete_schedule_drawn")
    return {name: value for name, value in arguments.items() if name not in dropped and not _holds_opaque(value)}


def _holds_opaque(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_opaque, value))
    if isinstance(value, Mapping):
        return any(map(_holds_opaque, value.values()))
    return isinstance(value, Opaque)


def _tokenizer_arguments(what: Import, folder: HfFolder) -> dict[str, Any]:
    """Megatron's tokenizer arguments, and the special ids, which only Hugging Face keeps beside the model."""
    has_tokenizer = any(
        (what.checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    )
    ids = ids_in(folder.config, generation_settings(what.checkpoint))
    return {
        "tokenizer_type": "HuggingFaceTokenizer" if has_tokenizer else "NullTokenizer",
        "tokenizer_model": str(what.output.absolute() / TOKENIZER) if has_tokenizer else None,
        **{f"hf_{name}": value for name, value in ids.items()},
    }


def _copy_tokenizer(source: Path, target: Path, arguments: Mapping[str, Any]) -> None:
    """The tokenizer and, since training keeps no other file of the model's, its generation settings."""
    target.mkdir()
    copy_tokenizer(source, target)
    write_generation(source, target, {name: arguments[f"hf_{name}"] for name in ID_NAMES})


def run(what: Import) -> None:
    """Convert and say so, unless it is done."""
    if what.force or not is_done(what.output, _made_from(what)):
        print(import_checkpoint(what))

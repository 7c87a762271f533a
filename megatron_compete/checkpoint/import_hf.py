"""`megatron-compete convert --to megatron`: a Hugging Face folder, or a dense Megatron checkpoint to upcycle, as a
`torch_dist` checkpoint that a trainer of any parallel layout loads.

Tensors go over one at a time, along the rules by which an export splits them, so that a folder that is imported and
exported again is the same bit for bit.
"""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.chunks import hf_chunks, is_mtp, megatron_chunks, mtp_layers
from megatron_compete.checkpoint.families import read_config
from megatron_compete.checkpoint.families.llava import choose_llava, is_llava_config
from megatron_compete.checkpoint.families.registry import unread_fields
from megatron_compete.checkpoint.families.tensors import MTP
from megatron_compete.checkpoint.families.vision import is_vision_language
from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.checkpoint.hf_tokenizer import generation_settings, ids_in
from megatron_compete.checkpoint.import_recipe import RECIPE, model_arguments, write_recipe
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.megatron_writer import Chunk, write_release
from megatron_compete.checkpoint.options import Import, Upcycling
from megatron_compete.checkpoint.output import check_output, is_done, made_from, whole_or_nothing
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.restricted import Opaque
from megatron_compete.checkpoint.source import TOKENIZER, Source, copy_files, dtype_notes, tokenizer_arguments
from megatron_compete.checkpoint.upcycle import upcycle
from megatron_compete.checkpoint.vlm.reading import read_parts
from megatron_compete.checkpoint.vlm.upcycling import checkpoint_chunks, upcycle_parts
from megatron_compete.common.errors import CompeteError

VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of it, as Megatron's trainer does (--make-vocab-size-divisible-by)."""


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
    takes_pictures: bool = False
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
        if self.has_experts or self.takes_pictures:
            lines.append(
                "a first look, 100 steps; --train-iters, --lr, --global-batch-size and all else override the recipe:"
            )
            lines.append(training_command(self.output, self.takes_pictures))
        if not self.has_experts:
            lines.append("a dense model: make a mixture of experts of it with --upcycle-experts")
        return "\n".join(lines)


def training_command(output: Path, takes_pictures: bool = False) -> str:
    """How to go on with an import; recipe.yaml names the checkpoint, and what else a first look takes."""
    recipe = shlex.quote(str(output / RECIPE))
    data = "DATA.json --image-folder IMAGES" if takes_pictures else "DATA"
    return f"megatron-compete pretrain --recipe {recipe} --data-path {data} --save RUN --load RUN"


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
    source = _read(what)
    arguments, chunks = _upcycled(source, what.upcycling) if what.upcycling else (source.arguments, source.chunks)
    with whole_or_nothing(what.output, _made_from(what)) as staged:
        if source.write_files:
            (staged / TOKENIZER).mkdir()
            source.write_files(staged / TOKENIZER)
        files = write_release(staged, arguments, chunks, what.file_bytes)
        shown = model_arguments(arguments) | {"padded_vocab_size": _padded(arguments)}
        write_recipe(staged, shown, what.output.absolute(), f"From {source.folder.name}.")
    weights = sum(chunk.nbytes for chunk in chunks)
    experts = bool(arguments.get("num_experts"))
    seconds = time.monotonic() - start
    pictures = is_vision_language(arguments)
    notes = (*source.notes, *(_without_export(arguments) if pictures else ()))
    return Imported(what.output, source.folder, weights, files, seconds, what.upcycling, experts, pictures, notes)


def _upcycled(source: Source, how: Upcycling) -> tuple[dict[str, Any], list[Chunk]]:
    if is_vision_language(source.arguments):
        return upcycle_parts(source.arguments, source.chunks, how)
    if how.experts_in is not None:
        raise CompeteError(
            f"--experts-in {' '.join(how.experts_in)} is of vision-language models, and this is none: leave it out"
        )
    return upcycle(source.arguments, source.chunks, how)


def _without_export(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Said before a model is trained that no Hugging Face class takes."""
    try:
        choose_llava(arguments)
    except CompeteError as error:
        yield f"it trains, and cannot be exported: {error}"


def _made_from(what: Import) -> str:
    """Digest of the model and the options that shape the output, where it will lie among them: the recipe says it."""
    folder = what.checkpoint if what.source == "hf" else find_checkpoint(what.checkpoint, what.iteration)
    sources = [one for one in (folder, what.vision_tower, what.projector) if one is not None]
    names = (
        *("source", "upcycling", "drop_mtp", "file_bytes"),
        *("vision_tower", "projector", "vision_feature_layer", "image_token"),
    )
    options = {"to": "megatron", "output": what.output.absolute()}
    return made_from(sources, options | {name: getattr(what, name) for name in names})


def _read(what: Import) -> Source:
    if what.source == "hf":
        is_parts = what.vision_tower is not None or is_llava_config(HfFolder.config_of(what.checkpoint))
        return read_parts(what) if is_parts else _read_language(what)
    if what.upcycling is None:
        raise CompeteError("--from megatron --to megatron: there is nothing to convert without --upcycle-experts")
    checkpoint = TorchDistCheckpoint(find_checkpoint(what.checkpoint, what.iteration))
    arguments = _fresh(checkpoint.arguments)
    if is_vision_language(arguments):
        return Source(checkpoint.folder, arguments, list(checkpoint_chunks(checkpoint)))
    layers = int(arguments["num_layers"])
    return Source(checkpoint.folder, arguments, list(megatron_chunks(checkpoint, layers, checkpoint.folder)))


def _read_language(what: Import) -> Source:
    folder = HfFolder(what.checkpoint)
    family, arguments = read_config(folder.config)
    predicting = arguments | {"mtp_num_layers": mtp_layers(folder)}
    if not what.drop_mtp and family.problem(predicting) is None:
        arguments = predicting
    chunks = list(hf_chunks(folder, family, arguments, what.drop_mtp))
    ids = ids_in(folder.config, generation_settings(what.checkpoint))
    arguments |= tokenizer_arguments(what.checkpoint, what.output.absolute() / TOKENIZER, ids)
    copy = partial(copy_files, what.checkpoint, ids) if arguments["tokenizer_model"] else None
    return Source(what.checkpoint, arguments, chunks, tuple(_notes(folder, chunks)), copy)


def _notes(folder: HfFolder, chunks: Sequence[Chunk]) -> Iterator[str]:
    """What was left out, and what a trainer will round."""
    if folder.passed_over:
        yield f"passed over {', '.join(folder.passed_over)}: not of the model"
    if unread := unread_fields(folder.config):
        yield f"passed over in config.json: {', '.join(unread)}, which no code of transformers reads"
    dropped = [name for name in folder.tensors if is_mtp(name, folder)]
    if dropped and not any(chunk.key.startswith(MTP) for chunk in chunks):
        yield f"left out {len(dropped)} tensors for multi-token prediction, as transformers does"
    yield from dtype_notes(chunks)


def _padded(arguments: Mapping[str, Any]) -> int | None:
    """Rows of the embedding in training: as the source had them, or the vocabulary rounded up."""
    if arguments.get("padded_vocab_size"):
        return int(arguments["padded_vocab_size"])
    return -(-int(arguments["vocab_size"]) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


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


def run(what: Import) -> None:
    """Convert and say so, unless it is done."""
    if what.force or not is_done(what.output, _made_from(what)):
        print(import_checkpoint(what))

"""`tools/convert_checkpoint.py --to megatron`: a Hugging Face folder, or a dense Megatron checkpoint to upcycle, as a
`torch_dist` checkpoint that a trainer of any parallel layout loads.

Tensors go over one at a time, along the rules by which an export splits them, so that a folder that is imported and
exported again is the same bit for bit.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.families import Dimensions, Family, TensorRule, read_config
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
from megatron_compete.checkpoint.megatron_writer import FILE_BYTES, Piece, write_release
from megatron_compete.checkpoint.output import check_output, is_done, made_from, whole_or_nothing
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.restricted import Opaque
from megatron_compete.checkpoint.upcycle import LAYER, ROUTER_INITS, Upcycling, upcycle
from megatron_compete.errors import CompeteError

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.", "encoder.", "mtp.")
"""Keys of the model's own tensors in a trainer's checkpoint; the rest is the optimizer's and the trainer's."""

TOKENIZER = "tokenizer"
VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of it, as Megatron's trainer does (--make-vocab-size-divisible-by)."""

BUFFERS = ("rotary_emb.inv_freq",)
"""Tensors of old transformers' checkpoints that follow from the configuration."""


@dataclass(frozen=True)
class Import:
    """What to convert, and where to."""

    checkpoint: Path
    """A Hugging Face folder; with `source` "megatron" a --save folder, or one iteration's folder in it."""
    output: Path
    """Folder to write: what a trainer is given as --load or --pretrained-checkpoint."""
    source: str = "hf"
    iteration: int | None = None
    """Which iteration of a --save folder; None is the latest."""
    force: bool = False
    """Replace an earlier import."""
    upcycling: Upcycling | None = None
    """Make a mixture of experts of a dense model."""
    file_bytes: int = FILE_BYTES


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

    def __str__(self) -> str:
        lines = [
            f"wrote {self.output} from {self.source}: {self.weights / 1e6:.1f} MB in {self.files} "
            f"file{'s' * (self.files > 1)}, in {self.seconds:.1f} s"
        ]
        if self.upcycling:
            lines.append(_says(self.upcycling))
        if self.has_experts:
            lines.append(f"train: {training_command(self.output)}")
        else:
            lines.append("a dense model: make a mixture of experts of it with --upcycle-experts")
        return "\n".join(lines)


def training_command(output: Path) -> str:
    """How to go on with an import; recipe.yaml names the checkpoint."""
    return (
        f"megatron-compete pretrain --recipe {output / RECIPE} --data-path DATA --save RUN --load RUN --train-iters N "
        "--lr LR --micro-batch-size B --global-batch-size G"
    )


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
    source, arguments, pieces, tokenizer = _read(what)
    if what.upcycling:
        arguments, pieces = upcycle(arguments, pieces, what.upcycling)
    with whole_or_nothing(what.output, _made_from(what)) as staged:
        if tokenizer:
            _copy_tokenizer(tokenizer, staged / TOKENIZER, arguments)
        files = write_release(staged, arguments, pieces, what.file_bytes)
        shown = model_arguments(arguments) | {"padded_vocab_size": _padded(arguments)}
        write_recipe(staged, shown, what.output.absolute(), f"From {source.name}.")
    weights = sum(piece.nbytes for piece in pieces)
    experts = bool(arguments.get("num_experts"))
    return Imported(what.output, source, weights, files, time.monotonic() - start, what.upcycling, experts)


def _made_from(what: Import) -> str:
    """Digest of the model and the options that shape the output, where it will lie among them: the recipe says it."""
    folder = what.checkpoint if what.source == "hf" else find_checkpoint(what.checkpoint, what.iteration)
    options = {"to": "megatron", "output": what.output.absolute()}
    return made_from([folder], options | {name: getattr(what, name) for name in ("source", "upcycling", "file_bytes")})


def _read(what: Import) -> tuple[Path, dict[str, Any], list[Piece], Path | None]:
    """Folder, arguments, pieces, and the folder whose tokenizer goes along."""
    if what.source == "hf":
        folder = HfFolder(what.checkpoint)
        family, arguments = read_config(folder.config)
        tokenizer = _tokenizer_arguments(what, folder)
        return (
            what.checkpoint,
            arguments | tokenizer,
            list(hf_pieces(folder, family, arguments)),
            (what.checkpoint if tokenizer["tokenizer_model"] else None),
        )
    if what.upcycling is None:
        raise CompeteError("--from megatron --to megatron: there is nothing to convert without --upcycle-experts")
    checkpoint = TorchDistCheckpoint(find_checkpoint(what.checkpoint, what.iteration))
    return checkpoint.folder, _fresh(checkpoint.arguments), list(megatron_pieces(checkpoint)), None


def _padded(arguments: Mapping[str, Any]) -> int | None:
    """Rows of the embedding in training: as the source had them, or the vocabulary rounded up."""
    if arguments.get("padded_vocab_size"):
        return int(arguments["padded_vocab_size"])
    return -(-int(arguments["vocab_size"]) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def hf_pieces(folder: HfFolder, family: Family, arguments: Mapping[str, Any]) -> Iterator[Piece]:
    """Every tensor of Megatron's model, to be made from a Hugging Face folder.

    The vocabulary is not padded: Megatron loads its tables with another number of rows.

    Raises:
        CompeteError: a tensor is missing, has another shape than config.json says, or has no place in the model.
    """
    d = Dimensions.from_arguments(arguments, padded_vocab=int(arguments["vocab_size"]))
    used: set[str] = set()
    for rule in family.tensors(d):
        dtype = _check_rule(folder, rule)
        used.update(rule.names)
        if rule.slot is None:
            _check_zeros(folder, rule)
            continue
        for place in rule.slot.canonical(d):
            yield Piece(place.key, place.at, place.stack, rule.shape, dtype, partial(_join, folder, rule))
    _check_strangers(folder, used, d.tied)


def _join(folder: HfFolder, rule: TensorRule) -> Tensor:
    return rule.form.join([folder.read(name) for name in rule.names])


def _check_rule(folder: HfFolder, rule: TensorRule) -> torch.dtype:
    """The dtype of a rule's tensors."""
    for name, shape in zip(rule.names, rule.hf_shapes):
        if name not in folder.tensors:
            raise CompeteError(f"{folder.folder} has no {name}, which config.json asks for")
        info = folder.tensors[name]
        if info.shape != shape:
            raise CompeteError(f"{folder.folder}: {name} has shape {info.shape}, config.json makes it {shape}")
        if info.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise CompeteError(
                f"{folder.folder}: {name} is stored as {info.dtype}: only fp32, bf16 and fp16 are imported"
            )
    dtypes = {folder.tensors[name].dtype for name in rule.names}
    if len(dtypes) > 1:
        raise CompeteError(
            f"{folder.folder}: {', '.join(rule.names)} differ in their dtypes and are one tensor in Megatron"
        )
    return dtypes.pop()


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
    if strangers:
        raise CompeteError(
            f"{folder.folder} has {len(strangers)} tensors that config.json does not ask for: {', '.join(sorted(strangers)[:4])}"
        )


def megatron_pieces(checkpoint: TorchDistCheckpoint) -> Iterator[Piece]:
    """Every tensor of the model in a trainer's checkpoint, a layer at a time.

    Raises:
        CompeteError: layers are not stacked, so they are not all alike.
    """
    layers = int(checkpoint.arguments["num_layers"])
    for key, info in checkpoint.tensors.items():
        if not key.startswith(MODEL_PREFIXES):
            continue
        if not key.startswith(LAYER):
            yield Piece(key, (), (), info.shape, info.dtype, partial(checkpoint.read, key))
            continue
        if key.removeprefix(LAYER)[0].isdigit() or info.shape[0] != layers:
            raise CompeteError(
                f"{checkpoint.folder} stores {key} for each layer: only models of equal layers are upcycled"
            )
        for layer in range(layers):
            yield Piece(key, (layer,), (layers,), info.shape[1:], info.dtype, partial(checkpoint.read, key, (layer,)))


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `--to megatron`."""
    flag = parser.add_argument_group("to megatron").add_argument
    flag("--from", dest="source", choices=("hf", "megatron"), default="hf", help="what --checkpoint is (default: hf)")
    flag(
        "--upcycle-experts",
        type=int,
        metavar="E",
        help="make a mixture of E experts of a dense model (Llama, Qwen2, Qwen3)",
    )
    flag("--top-k", type=int, metavar="K", help="experts a token takes (default: 2 * granularity)")
    flag(
        "--granularity",
        type=int,
        default=1,
        metavar="G",
        help="cut each MLP into G slices, an expert holds one (default: 1)",
    )
    flag(
        "--noise",
        type=float,
        default=0.0,
        metavar="STD",
        help="noise on all copies but the first, as a share of a matrix's standard deviation; the function is then not kept (default: 0)",
    )
    flag("--router-init", choices=ROUTER_INITS, default="normal", help="how the router starts (default: normal)")
    flag("--router-std", type=float, default=0.02, metavar="STD", help="of the router's weights (default: 0.02)")
    flag("--seed", type=int, default=1234, help="of router and noise (default: 1234)")
    flag("--inexact", action="store_true", help="allow numbers with which the dense model's function is not kept")
    flag("--max-file-size", default="4GB", metavar="SIZE", help="of a file of the checkpoint (default: 4GB)")


def run(options: argparse.Namespace) -> None:
    """`tools/convert_checkpoint.py --to megatron`."""
    from megatron_compete.checkpoint.export import parse_size

    upcycling = None
    if options.upcycle_experts is not None:
        given = {field.name: getattr(options, field.name) for field in fields(Upcycling) if field.name != "experts"}
        upcycling = Upcycling(experts=options.upcycle_experts, **given)
    if options.verify and options.source != "hf":
        raise CompeteError("--verify compares with a Hugging Face folder: it goes with --from hf")
    what = Import(
        options.checkpoint,
        options.output,
        source=options.source,
        iteration=options.iteration,
        force=options.force,
        upcycling=upcycling,
        file_bytes=parse_size(options.max_file_size),
    )
    if what.force or not is_done(what.output, _made_from(what)):
        print(import_checkpoint(what))

"""`tools/convert_checkpoint.py`: a Megatron checkpoint as a Hugging Face folder."""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.mixtral import Dimensions, MixtralTensors, generation_config, mixtral_config
from megatron_compete.checkpoint.model_card import model_card
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.representable import check_mixtral
from megatron_compete.checkpoint.safetensors_writer import write_safetensors
from megatron_compete.checkpoint.tokenizer import SentencePieceModel, read_sentencepiece, write_tokenizer
from megatron_compete.checkpoint.tokenizer_proof import prove
from megatron_compete.errors import CompeteError

SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
"""--tokenizer-type under which Megatron builds a plain SentencePiece tokenizer."""

WITHOUT_TOKENIZER = "NullTokenizer"
MARK = "config.json"
"""File by which a folder is known as an export that --force may replace."""

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Export:
    """What to convert, and where to."""

    checkpoint: Path
    """A `--save` folder, or one iteration's folder in it."""
    output: Path
    """Folder to write; its parent is made where missing."""
    iteration: int | None = None
    """Which iteration of a `--save` folder; None is the latest."""
    force: bool = False
    """Replace an earlier export."""
    tokenizer_model: Path | None = None
    """SentencePiece model; None takes the path in the training arguments."""
    no_tokenizer: bool = False
    """Write weights and configuration alone."""
    verify_text: Path | None = None
    """Text on which to compare the tokenizers, beside the built-in strings."""
    max_shard_bytes: int = 5 * 10**9
    """Size of a safetensors file at most."""


@dataclass(frozen=True)
class Exported:
    """What `export_to_hf` wrote."""

    output: Path
    checkpoint: Path
    weights: int
    """Bytes of all tensors."""
    files: int
    compared: int | None
    """Strings on which the tokenizers agreed; None without a tokenizer."""
    seconds: float

    def __str__(self) -> str:
        tokenizer = "no tokenizer" if self.compared is None else f"tokenizers agree on {self.compared} strings"
        return (
            f"wrote {self.output} from {self.checkpoint}: {self.weights / 1e6:.1f} MB in {self.files} safetensors "
            f"file{'s' * (self.files > 1)}, {tokenizer}, in {self.seconds:.1f} s"
        )


def export_to_hf(export: Export) -> Exported:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; all of it or nothing.

    Raises:
        CompeteError: no usable checkpoint, a model that Mixtral cannot represent, a tokenizer without an exact equal,
            or an output that is in the way.
    """
    start = time.monotonic()
    _check_output(export)
    folder = find_checkpoint(export.checkpoint, export.iteration)
    checkpoint = TorchDistCheckpoint(folder)
    check_mixtral(checkpoint.arguments)
    sentencepiece = _sentencepiece(export, checkpoint.arguments)
    tensors = MixtralTensors(
        checkpoint,
        Dimensions.from_arguments(checkpoint.arguments),
        sentencepiece.vocab_size if sentencepiece else _vocab_size(checkpoint.arguments),
    )
    config = mixtral_config(checkpoint.arguments, tensors, *_special_ids(sentencepiece))
    compared = None
    with _whole_or_nothing(export) as staged:
        _write_json(staged / "config.json", config)
        _write_json(staged / "generation_config.json", generation_config(config))
        card = model_card(checkpoint.arguments, checkpoint.iteration, sentencepiece is not None)
        (staged / "README.md").write_text(card, encoding="utf-8")
        if sentencepiece is not None:
            write_tokenizer(sentencepiece, staged, config["max_position_embeddings"])
            compared = prove(staged, sentencepiece, export.verify_text)
        sizes = tensors.sizes()
        files = write_safetensors(staged, sizes, _progress(tensors, len(sizes)), export.max_shard_bytes)
    return Exported(export.output, folder, sum(sizes.values()), len(files), compared, time.monotonic() - start)


def _sentencepiece(export: Export, arguments: Mapping[str, Any]) -> SentencePieceModel | None:
    """The tokenizer to convert, or None for none."""
    kind = arguments.get("tokenizer_type")
    if export.no_tokenizer or (kind == WITHOUT_TOKENIZER and export.tokenizer_model is None):
        return None
    if export.tokenizer_model is None and kind not in SENTENCEPIECE_TYPES:
        raise CompeteError(
            f"trained with --tokenizer-type {kind}: only SentencePiece tokenizers can be converted. Export the weights "
            "with --no-tokenizer and put the tokenizer's own files beside them"
        )
    for name in ("tokenizer_sentencepiece_legacy", "special_tokens"):
        if arguments.get(name):
            flag = "--" + name.replace("_", "-")
            raise CompeteError(
                f"trained with {flag}: ids that the SentencePiece model does not know; use --no-tokenizer"
            )
    path = export.tokenizer_model or Path(str(arguments.get("tokenizer_model")))
    model = read_sentencepiece(path)
    if export.tokenizer_model is not None:
        _check_padding(model, arguments)
    if model.remove_extra_whitespaces and not arguments.get("tokenizer_sentencepiece_ignore_extra_whitespaces", True):
        raise CompeteError(
            "trained with extra spaces kept in Megatron's own way, which has no equal; use --no-tokenizer"
        )
    return model


def _check_padding(model: SentencePieceModel, arguments: Mapping[str, Any]) -> None:
    """A tokenizer that was named by hand has the size from which Megatron made the model's (`vocab_size_with_padding`)."""
    rows = arguments.get("padded_vocab_size")
    multiple = int(arguments.get("make_vocab_size_divisible_by") or 128) * int(
        arguments.get("tensor_model_parallel_size") or 1
    )
    if rows and -(-model.vocab_size // multiple) * multiple != rows:
        raise CompeteError(
            f"--tokenizer-model {model.path} has {model.vocab_size} ids, which does not make the model's {rows} rows "
            f"(a multiple of {multiple}): it was trained with another tokenizer"
        )


def _vocab_size(arguments: Mapping[str, Any]) -> int | None:
    """Ids in use where no tokenizer says it; None keeps the padding."""
    size = arguments.get("vocab_size")
    return int(size) if size else None


def _special_ids(model: SentencePieceModel | None) -> tuple[int | None, int | None, int | None]:
    return (model.bos_id, model.eos_id, model.pad_id) if model else (None, None, None)


def _check_output(export: Export) -> None:
    output, checkpoint = export.output.resolve(), export.checkpoint.resolve()
    if output == checkpoint or output in checkpoint.parents:
        raise CompeteError(f"--output {export.output} holds the checkpoint: choose another folder")
    if not os.path.lexists(export.output):
        return
    if not export.force:
        raise CompeteError(f"--output {export.output} exists: choose another folder, or replace it with --force")
    is_export = output.is_dir() and ((output / MARK).is_file() or not any(output.iterdir()))
    if not is_export or export.output.is_symlink():
        raise CompeteError(f"--output {export.output} is not an exported model ({MARK} is missing): remove it yourself")


@contextmanager
def _whole_or_nothing(export: Export) -> Iterator[Path]:
    """A folder beside the output that takes its place when the block ends well, and vanishes when it does not."""
    parent = export.output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=parent, prefix=f".{export.output.name}."))
    try:
        staged.chmod(0o777 & ~_umask())  # mkdtemp leaves it to its owner alone
        yield staged
        _take_place(staged, export.output.absolute())
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _take_place(staged: Path, output: Path) -> None:
    if not output.exists():
        staged.rename(output)
        return
    old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.old."))
    output.rename(old)
    staged.rename(output)
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _progress(tensors: Iterable[tuple[str, Tensor]], total: int) -> Iterable[tuple[str, Tensor]]:
    """The tensors, with a bar on a terminal."""
    if not sys.stderr.isatty():
        return tensors
    from rich.console import Console
    from rich.progress import track

    return track(tensors, "tensors", total, console=Console(stderr=True), transient=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `2GiB` or a plain number.

    Raises:
        CompeteError: not a size.
    """
    found = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", text.strip())
    if not found or found[2].upper() not in UNITS or int(found[1]) == 0:
        raise CompeteError(f"--max-shard-size {text} is not a size: give 5GB, 500MB or bytes")
    return int(found[1]) * UNITS[found[2].upper()]


def main(argv: Sequence[str] | None = None) -> None:
    """`tools/convert_checkpoint.py`."""
    options = vars(_parser().parse_args(argv))
    options.pop("to")
    options["max_shard_bytes"] = parse_size(options.pop("max_shard_size"))
    print(export_to_hf(Export(**options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Convert a Megatron torch_dist checkpoint of any parallel layout, in one process without a GPU.",
        epilog="The output loads as MixtralForCausalLM with no custom code. A model that Mixtral cannot represent "
        "exactly, or a tokenizer with no exact equal, is refused with the reason.",
    )
    flag = parser.add_argument
    flag("--to", choices=("hf",), required=True, help="hf: a Hugging Face folder")
    flag(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="folder that was --save, or an iter_XXXXXXX in it"
    )
    flag("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    flag("--iteration", type=int, metavar="N", help="which iteration of a --save folder (default: the latest)")
    flag("--force", action="store_true", help="replace an earlier export")
    flag("--tokenizer-model", type=Path, metavar="FILE", help="SentencePiece model (default: the one trained with)")
    flag("--no-tokenizer", action="store_true", help="weights and configuration alone")
    flag("--verify-text", type=Path, metavar="FILE", help=".jsonl or plain text on which the tokenizers must agree too")
    flag("--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (default: 5GB)")
    return parser

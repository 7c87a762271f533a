"""`megatron-compete convert --to hf`: a Megatron checkpoint as a Hugging Face folder."""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_compete.checkpoint.custom_code import auto_map, write_files
from megatron_compete.checkpoint.export_tokenizer import ExportTokenizer, export_tokenizer
from megatron_compete.checkpoint.families import Dimensions, Family, choose_family
from megatron_compete.checkpoint.families.tensors import MTP
from megatron_compete.checkpoint.families.vision import is_vision_language
from megatron_compete.checkpoint.hf_tokenizer import GENERATION, Ids
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.model_card import model_card
from megatron_compete.checkpoint.options import Export
from megatron_compete.checkpoint.output import check_output, is_done, made_from, whole_or_nothing
from megatron_compete.checkpoint.plan import ExportPlan, embedding
from megatron_compete.checkpoint.prepared import DTYPES, Prepared, check_rows
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.safetensors_writer import nbytes, write_safetensors
from megatron_compete.checkpoint.vlm.writing import prepare_parts
from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class Exported:
    """What `export_to_hf` wrote."""

    output: Path
    checkpoint: Path
    family: Family
    """Of the language model."""
    architecture: str
    weights: int
    """Bytes of all tensors."""
    files: int
    compared: int | None
    """Strings on which the tokenizers agreed; None where there was nothing to compare."""
    caution: str | None
    """What its reader should know."""
    seconds: float

    def __str__(self) -> str:
        has_tokenizer = (self.output / "tokenizer_config.json").is_file()
        copied = "the tokenizer's own files" if has_tokenizer else "no tokenizer"
        tokenizer = copied if self.compared is None else f"tokenizers agree on {self.compared} strings"
        return (
            f"wrote {self.output} from {self.checkpoint}: {self.architecture}, {self.weights / 1e6:.1f} MB in "
            f"{self.files} safetensors file{'s' * (self.files > 1)}, {tokenizer}, in {self.seconds:.1f} s"
            + (f"\nnote: {self.caution}" if self.caution else "")
        )


def export_to_hf(export: Export) -> Exported:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; all of it or nothing.

    Raises:
        CompeteError: no usable checkpoint, a model that no family can represent, a tokenizer without an exact equal, or
            an output that is in the way.
    """
    start = time.monotonic()
    check_output(export.output, export.checkpoint, export.force)
    folder = find_checkpoint(export.checkpoint, export.iteration)
    checkpoint = TorchDistCheckpoint(folder)
    if export.drop_mtp:
        _drop_mtp(checkpoint)
    model = (prepare_parts if is_vision_language(checkpoint.arguments) else _prepare)(checkpoint, export)
    with whole_or_nothing(export.output, _made_from(export)) as staged:
        _write_json(staged / "config.json", model.config)
        _write_json(staged / GENERATION, model.tokenizer.generation)
        model.tokenizer.write(staged, model.max_length)
        (staged / "README.md").write_text(model.card((staged / "tokenizer_config.json").is_file()), encoding="utf-8")
        write_files(model.code, staged)
        model.write_more(staged)
        compared = model.tokenizer.prove(staged, export.verify_text)
        infos = model.plan.sizes()
        files = write_safetensors(staged, infos, _progress(model.plan, len(infos)), export.max_shard_bytes)
    weights = sum(map(nbytes, infos.values()))
    (architecture,) = model.config["architectures"]
    caution = "; ".join(model.cautions) or None
    seconds = time.monotonic() - start
    return Exported(export.output, folder, model.family, architecture, weights, len(files), compared, caution, seconds)


def _prepare(checkpoint: TorchDistCheckpoint, export: Export) -> Prepared:
    """A language model, ready to be written."""
    if export.image_processor is not None:
        raise CompeteError(
            f"--image-processor {export.image_processor} is of a vision-language model, and {export.checkpoint} takes no "
            "pictures: leave it out"
        )
    arguments = checkpoint.arguments
    family = choose_family(arguments, export.family)
    tokenizer = export_tokenizer(arguments, export.tokenizer_model, export.no_tokenizer)
    dtype = DTYPES[export.dtype] if export.dtype else None
    plan = ExportPlan(checkpoint, family, _dimensions(checkpoint, tokenizer), dtype)
    config = hf_config(plan, arguments, tokenizer.ids)
    of_tokenizer = tokenizer.caution(family.name)
    return Prepared(
        family, config, plan, tokenizer, family.code, config["max_position_embeddings"],
        card=lambda has_tokenizer: model_card(family, arguments, checkpoint.iteration, has_tokenizer, of_tokenizer),
        cautions=tuple(filter(None, (family.caution(arguments), of_tokenizer))),
    )  # fmt: skip


def _drop_mtp(checkpoint: TorchDistCheckpoint) -> None:
    """Read the checkpoint as that of a model without layers for multi-token prediction, which compute nothing else."""
    checkpoint.arguments["mtp_num_layers"] = None
    for key in [key for key in checkpoint.tensors if key.startswith(MTP)]:
        del checkpoint.tensors[key]


def _made_from(export: Export) -> str:
    """Digest of the checkpoint, the tokenizer, the text that proves it, and the options that shape the output."""
    sources = (
        find_checkpoint(export.checkpoint, export.iteration),
        export.tokenizer_model,
        export.image_processor,
        export.verify_text,
    )
    names = (
        "family",
        "dtype",
        "tokenizer_model",
        "image_processor",
        "no_tokenizer",
        "verify_text",
        "drop_mtp",
        "max_shard_bytes",
    )
    return made_from(filter(None, sources), {"to": "hf"} | {name: getattr(export, name) for name in names})


def _dimensions(checkpoint: TorchDistCheckpoint, tokenizer: ExportTokenizer) -> Dimensions:
    rows = embedding(checkpoint).shape[0]
    check_rows(rows, tokenizer)
    return Dimensions.from_arguments(checkpoint.arguments, rows, tokenizer.vocab_size)


def hf_config(plan: ExportPlan, arguments: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """`config.json`: the family's fields, and those of every model."""
    family, dtype = plan.family, str(plan.dtype).removeprefix("torch.")
    code = {"auto_map": auto_map(family)} if family.code else {}
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **code,
        **family.to_config(plan.dimensions, arguments),
        **ids,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _progress(tensors: Iterable[tuple[str, Tensor]], total: int) -> Iterable[tuple[str, Tensor]]:
    """The tensors, with a bar on a terminal."""
    if not sys.stderr.isatty():
        return tensors
    from rich.console import Console
    from rich.progress import track

    return track(tensors, "tensors", total, console=Console(stderr=True), transient=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def run(export: Export) -> None:
    """Convert and say so, unless it is done."""
    if export.force or not is_done(export.output, _made_from(export)):
        print(export_to_hf(export))

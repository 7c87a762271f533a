"""`megatron-compete convert`: checkpoints from Megatron to Hugging Face and back."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.options import Export, Import, Upcycling
from megatron_compete.common.command_line import Command, add_options, flag_of, take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.verify.command import VerifyOptions, verify

SHARED = ("checkpoint", "output", "iteration", "force", "drop_mtp")
"""Fields of both directions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of both directions."""
    flag = parser.add_argument
    flag("--to", choices=("hf", "megatron"), required=True, help="hf: a Hugging Face folder; megatron: torch_dist")
    flag(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder that was --save, an iter_XXXXXXX in it, or a Hugging Face folder",
    )
    flag("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    none = argparse.SUPPRESS
    flag("--iteration", type=int, metavar="N", default=none, help="of a --save folder (default: the latest)")
    flag("--force", action="store_true", default=none, help="replace an earlier conversion")
    flag("--drop-mtp", action="store_true", default=none, help="leave out layers for multi-token prediction")
    flag("--verify", type=Path, metavar="FILE", help="text on which Megatron's logits and Hugging Face's have to agree")
    add_options(parser.add_argument_group("to hf"), Export, without=SHARED)
    group = parser.add_argument_group("to megatron")
    add_options(group, Import, without=SHARED)
    add_options(group, Upcycling, required=False)


def convert(options: argparse.Namespace) -> None:
    """Convert in the direction that --to says, and compare where --verify asks for it."""
    given = vars(options)
    to, text = given.pop("to"), given.pop("verify")
    _refuse_flags_of("megatron" if to == "hf" else "hf", to, given)
    if to == "hf":
        _export(take_options(Export, given), text)
    else:
        upcycling = take_options(Upcycling, given) if "experts" in given else None
        _refuse_flags_without_experts(given)
        _import(take_options(Import, given, upcycling=upcycling), text)


def _export(export: Export, text: Path | None) -> None:
    from megatron_compete.checkpoint.export import run  # torch: seconds to import
    from megatron_compete.checkpoint.location import find_checkpoint

    run(export)
    if text is not None:
        tokenizer = None if export.tokenizer_model is None else str(export.tokenizer_model)
        checkpoint = find_checkpoint(export.checkpoint, export.iteration)
        verify(VerifyOptions(checkpoint, export.output, text, tokenizer_model=tokenizer))


def _import(what: Import, text: Path | None) -> None:
    from megatron_compete.checkpoint.import_hf import run

    if text is not None and what.source != "hf":
        raise CompeteError("--verify compares with a Hugging Face folder: it goes with --from hf")
    if text is not None and what.vision_tower is not None:
        raise CompeteError(
            "--verify compares with a Hugging Face folder, and a model put together has none: leave it out"
        )
    run(what)
    if text is not None:
        verify(VerifyOptions(what.output, what.checkpoint, text))


def _refuse_flags_of(other: str, to: str, given: dict[str, Any]) -> None:
    for options in (Export,) if other == "hf" else (Import, Upcycling):
        for field in fields(options):
            if field.name in given and field.name not in SHARED:
                raise CompeteError(f"{flag_of(options, field.name)} belongs to --to {other}, and this is --to {to}")


def _refuse_flags_without_experts(given: dict[str, Any]) -> None:
    for field in fields(Upcycling):
        if field.name in given:
            raise CompeteError(f"{flag_of(Upcycling, field.name)} says how to upcycle: it goes with --upcycle-experts")


main = Command(
    name="convert",
    description="Convert between a Megatron torch_dist checkpoint of any parallel layout and a Hugging Face folder, "
    "in one process without a GPU.",
    epilog="What the target cannot represent exactly is refused with the argument's name.",
    example="--to hf --checkpoint runs/demo/checkpoints --output runs/demo/hf",
    add_arguments=add_arguments,
    run=convert,
)

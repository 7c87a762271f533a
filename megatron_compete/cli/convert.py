"""`tools/convert_checkpoint.py`: checkpoints from Megatron to Hugging Face and back."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_compete.checkpoint import export, import_hf
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.common.errors import CompeteError

ADD_ARGUMENTS = {"hf": export.add_arguments, "megatron": import_hf.add_arguments}
RUN = {"hf": export.run, "megatron": import_hf.run}


def main(argv: Sequence[str] | None = None) -> None:
    """Convert in the direction that --to says."""
    parser = _parser()
    own = {to: _flags_of(add, parser) for to, add in ADD_ARGUMENTS.items()}
    options = parser.parse_args(argv)
    for to, flags in own.items():
        for flag in flags if to != options.to else ():
            if getattr(options, flag.dest) != flag.default:
                raise CompeteError(f"{flag.option_strings[0]} belongs to --to {to}, and this is --to {options.to}")
    RUN[options.to](options)
    if options.verify:
        _verify(options)


def _verify(options: argparse.Namespace) -> None:
    """Compare logits of both sides of the conversion; that they differ is an error."""
    from megatron_compete.verify import conversion as verify  # builds models: Megatron takes seconds to import

    if options.to == "hf":
        checkpoint, folder = find_checkpoint(options.checkpoint, options.iteration), options.output
        more = ["--tokenizer-model", str(options.tokenizer_model)] if options.tokenizer_model else []
    else:
        checkpoint, folder, more = options.output, options.checkpoint, []
    verify.main(["--checkpoint", str(checkpoint), "--hf", str(folder), "--text", str(options.verify), *more])


def _flags_of(add: Callable[[argparse.ArgumentParser], None], parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add a direction's flags; which they are."""
    before = list(parser._actions)
    add(parser)
    return [flag for flag in parser._actions if flag not in before]


def _parser() -> argparse.ArgumentParser:
    """Flags of both directions."""
    parser = argparse.ArgumentParser(
        description="Convert between a Megatron torch_dist checkpoint of any parallel layout and a Hugging Face folder, "
        "in one process without a GPU.",
        epilog="What the target cannot represent exactly is refused with the argument's name.",
    )
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
    flag("--iteration", type=int, metavar="N", help="which iteration of a --save folder (default: the latest)")
    flag("--force", action="store_true", help="replace an earlier conversion")
    flag("--verify", type=Path, metavar="FILE", help="text on which Megatron's logits and Hugging Face's have to agree")
    return parser

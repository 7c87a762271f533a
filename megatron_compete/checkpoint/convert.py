"""`tools/convert_checkpoint.py`: checkpoints from Megatron to Hugging Face and back."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_compete.checkpoint import export, import_hf


def main(argv: Sequence[str] | None = None) -> None:
    """Convert in the direction that --to says."""
    options = _parser().parse_args(argv)
    {"hf": export.run, "megatron": import_hf.run}[options.to](options)


def _parser() -> argparse.ArgumentParser:
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
    export.add_arguments(parser)
    import_hf.add_arguments(parser)
    return parser

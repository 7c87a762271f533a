"""Short runs of vision-language models, for comparison with their plans: every sample has one picture, as a plan takes it."""

import json
import tempfile
from pathlib import Path

from megatron_compete.data.digit_pictures import write_digit_pictures
from megatron_compete.data.digit_processor import write_digit_processor
from tests.plan.built import Held, trained
from tests.plan.jobs import VISION, recipe_of
from tests.ranks import run_ranks

SEEING = (
    f"{VISION} --vision-hidden-size 64 --vision-ffn-hidden-size 48 --img-h 32 --img-w 32 --seq-length 96 "
    "--max-position-embeddings 96 --hidden-size 48 --num-layers 2 --vocab-size 35 --router topk "
    "--tokenizer-type HuggingFaceTokenizer --vision-num-layers 2"
)
"""64 patches a picture, whose rows outweigh counters and padding, without competition."""


def seeing_ranks(flags: str, ranks: int) -> list[Held]:
    """Every rank of a short run of `SEEING` with these flags. Call it through `shared`."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(f"{SEEING} {flags} {_data(Path(folder))}")
        return run_ranks(ranks, trained, recipe)


def _data(folder: Path) -> str:
    """Pictures of digits and the flags that name them."""
    pictures = write_digit_pictures(folder / "pictures", train=60, heldout=4, seed=3)
    write_digit_processor(folder / "tokenizer")
    records = json.loads(pictures.train_path.read_text())
    pictures.train_path.write_text(json.dumps([record for record in records if "image" in record]))
    return (
        f"--train-data-path {pictures.train_path} --image-folder {pictures.image_folder} --tokenizer-model "
        f"{folder}/tokenizer --conversation-workers 1"
    )

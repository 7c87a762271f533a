"""Short training runs of a vision-language model by the real entry, on pictures of digits."""

from pathlib import Path

from megatron_compete.data.digit_pictures import write_digit_pictures
from megatron_compete.data.digit_processor import write_digit_processor
from tests.ranks import run_ranks
from tests.training.runs import train_on_rank

MODEL = """
--vision-model-type siglip --vision-num-layers 2 --vision-hidden-size 32 --vision-ffn-hidden-size 48
--vision-num-attention-heads 4 --projector-ffn-hidden-size 40 --img-h 16 --img-w 16 --patch-dim 8
--num-layers 2 --hidden-size 48 --num-attention-heads 4 --ffn-hidden-size 64 --seq-length 24 --max-position-embeddings 24
--swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
--untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0 --init-method-std 0.05
--num-experts 4 --moe-router-topk 2 --moe-token-dispatcher-type alltoall --calculate-per-token-loss
--micro-batch-size 2 --global-batch-size 8 --lr 4e-3 --lr-decay-style constant --weight-decay 0
--tokenizer-type HuggingFaceTokenizer --make-vocab-size-divisible-by 1
--num-workers 0 --eval-iters 0 --log-interval 1 --conversation-workers 1
--compete-rate 0.4 --compete-max-active-layers 2 --compete-diversity-coeff 0.1 --compete-distill-coeff 1.0
"""
"""A tower of two layers, a projector and a decoder of two, which compete often and with heavy losses."""


def write_data(folder: Path) -> str:
    """Pictures with questions, a third of them without a picture; the flags that name them."""
    pictures = write_digit_pictures(folder / "pictures", train=120, heldout=24, seed=3)
    write_digit_processor(folder / "processor")
    return (
        f"--train-data-path {pictures.train_path} --valid-data-path {pictures.heldout_path} --image-folder "
        f"{pictures.image_folder} --tokenizer-model {folder}/processor --image-processor {folder}/processor"
    )


def train(world_size: int, arguments: str, timeout: float = 240.0) -> None:
    """Run the trainer entry with `MODEL` and `arguments` on `world_size` CPU ranks."""
    run_ranks(world_size, train_on_rank, [*MODEL.split(), *arguments.split()], timeout=timeout)

"""Short training runs of the real entry, and what their TensorBoard logs hold."""

import sys
from pathlib import Path

from megatron_compete.common import comparison
from megatron_compete.report.scalars import read_scalars
from tests.ranks import run_ranks

MODEL = """
--num-layers 4 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 48 --moe-ffn-hidden-size 48
--num-experts 4 --moe-router-topk 2 --seq-length 32 --max-position-embeddings 32
--swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
--untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
--micro-batch-size 2 --global-batch-size 8 --lr 1e-2 --lr-decay-style constant --weight-decay 0
--mock-data --tokenizer-type NullTokenizer --vocab-size 127 --make-vocab-size-divisible-by 64
--num-workers 0 --eval-iters 0 --log-interval 1 --moe-token-dispatcher-type alltoall
--compete-rate 0.4 --compete-max-active-layers 2 --compete-diversity-coeff 0.1 --compete-distill-coeff 1.0
"""
"""A model of a few thousand parameters in fp32, competing often and with heavy losses."""


def train_on_rank(arguments: list[str]) -> None:
    from megatron_compete.training import pretrain

    sys.argv = ["pretrain", *arguments]
    try:
        pretrain.main()
    except SystemExit as error:
        if error.code not in (0, None):
            raise


def train(world_size: int, arguments: str, timeout: float = 240.0) -> None:
    """Run the trainer entry with `MODEL` and `arguments` on `world_size` CPU ranks."""
    run_ranks(world_size, train_on_rank, [*MODEL.split(), *arguments.split()], timeout=timeout)


def losses(folder: Path) -> dict[int, float]:
    return read_scalars(folder)["lm loss"]


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest absolute difference over the iterations both have; they must have some in common."""
    common = sorted(one.keys() & other.keys())
    return comparison.largest_difference([one[step] for step in common], [other[step] for step in common], "curves")

"""Small jobs for the planner's tests, as recipes of flags."""

from pathlib import Path

from megatron_compete.launch.recipe import Recipe, parse_overrides, read_recipe
from megatron_compete.plan.job import Job, read_job
from megatron_compete.plan.layers import LayerKind

MOE_LAYER, DENSE_LAYER = LayerKind("attention", "moe"), LayerKind("attention", "mlp")
PUBLIC = Path(__file__).parents[1] / "recipes/public"
WITHOUT_REFUSED = (
    "--tp-comm-overlap=false", "--cross-entropy-fusion-impl", "native", "--no-weight-decay-cond-type=false",
    "--linear-attention-type=false", "--offload-optimizer-states=false",
)  # fmt: skip
"""Userbuffers without sequence parallelism, a loss of Transformer Engine's that is off in 0.19.2, flags by other names."""
EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = """
--num-layers 4 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 48 --moe-ffn-hidden-size 24
--num-experts 8 --moe-router-topk 2 --seq-length 32 --max-position-embeddings 32 --position-embedding-type rope
--swiglu --normalization RMSNorm --disable-bias-linear --untie-embeddings-and-output-weights
--hidden-dropout 0 --attention-dropout 0 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --train-iters 10
--tokenizer-type NullTokenizer --vocab-size 127 --make-vocab-size-divisible-by 64 --compete-rate 0.25
--compete-max-active-layers 2 --moe-token-dispatcher-type alltoall
"""

TENSOR = "--tensor-model-parallel-size 2 --sequence-parallel"
STAGES = "--pipeline-model-parallel-size 2"
EXPERTS = "--expert-model-parallel-size 2"
DISTRIBUTED = "--use-distributed-optimizer"
TIED = "--untie-embeddings-and-output-weights=false"
DENSE = "--router topk --num-experts=false --moe-ffn-hidden-size=false"
"""No experts at all: the baseline that a mixture is compared with or upcycled from."""
WIDER = (
    "--hidden-size 128 --ffn-hidden-size 128 --moe-ffn-hidden-size 96 --seq-length 64 --max-position-embeddings 64 "
    "--router topk"
)
"""A model whose weights and hidden states outweigh counters and padding, without competition."""
VISION = """
--vision-model-type siglip --vision-num-layers 3 --vision-hidden-size 24 --vision-num-attention-heads 2
--vision-ffn-hidden-size 40 --projector-ffn-hidden-size 28 --img-h 16 --img-w 12 --patch-dim 4
"""
"""Before `MODEL` a tower and a projector with as many experts, the decoder being dense; 12 patches a tile."""


def recipe_of(flags: str) -> Recipe:
    """`MODEL` with these flags over it."""
    recipe = Recipe({}, parse_overrides(MODEL.split()))
    recipe.override(flags.split())
    return recipe


def job_of(flags: str = "", gpus: int = 1) -> Job:
    """The job of `MODEL` with these flags."""
    return read_job(recipe_of(flags), gpus)


def public(name: str, flags: str = "") -> Recipe:
    """A recipe of tests/recipes/public/ with these flags over it, and without what Megatron-Core 0.19.2 itself refuses."""
    recipe = read_recipe(PUBLIC / f"{name}.yaml")
    recipe.override([*WITHOUT_REFUSED, *flags.split()])
    if "linear-conv-kernel-dim" in recipe.arguments:
        recipe.override(["--experimental-attention-variant", "gated_delta_net"])
    if recipe.arguments.get("mock-data"):
        recipe.override(["--data-path=false"])
    if "train-samples" in recipe.arguments and "train-iters" in recipe.arguments:
        recipe.override(["--train-iters=false"])
    return recipe


def example(name: str, flags: str = "", gpus: int | None = None) -> Job:
    """The job of a recipe in examples/."""
    return read_job(example_recipe(name, flags), gpus)


def example_recipe(name: str, flags: str = "") -> Recipe:
    """A recipe in examples/ with these flags over it."""
    recipe = read_recipe(EXAMPLES / f"{name}.yaml")
    recipe.override(flags.split())
    return recipe

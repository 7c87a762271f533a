"""A public recipe as megatron-core 0.19.2 takes it: what it refuses of older versions, changed as its own words say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe, read_recipe
from megatron_compete.plan.recipe_check import check_recipe

Arguments = dict[str, Any]


def _without(name: str) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        del arguments[name]

    return change


def _with(name: str, value: object) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        arguments[name] = value

    return change


def _renamed(old: str, new: str) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        arguments[new] = arguments.pop(old)

    return change


def _instead(old: str, new: str) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        del arguments[old]
        arguments[new] = True

    return change


WAYS_OUT: dict[str, Callable[[Arguments], None]] = {
    "Megatron refuses these arguments: Tensor parallel communication/GEMM overlap can happen only when sequence "
    "parallelism is enabled": _without("tp-comm-overlap"),
    "Megatron refuses these arguments: Transformer Engine cross entropy loss fusion is disabled due to stability issues. "
    "Use --cross-entropy-fusion-impl native, or omit --cross-entropy-loss-fusion.": _with("cross-entropy-fusion-impl", "native"),
    "argument --no-weight-decay-cond-type: invalid choice: 'qwen3_next'": _instead("no-weight-decay-cond-type", "apply-wd-to-qk-layernorm"),
    "unrecognized arguments: --linear-attention-type": _renamed("linear-attention-type", "experimental-attention-variant"),
    "unrecognized arguments: --offload-optimizer-states": _without("offload-optimizer-states"),
    "--mock-data and --data-path both say what is read: keep one (Megatron: a single data source)": _without("data-path"),
    "Megatron refuses these arguments: expected iteration-based training": _without("train-iters"),
    "unrecognized arguments: --external-cuda-graph": _without("external-cuda-graph"),
}  # fmt: skip
"""How a refusal begins, and the change that it asks for."""


def updated(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe as it is taken, and the refusals on the way.

    Raises:
        CompeteError: a refusal that is not of `WAYS_OUT`, or is met twice.
    """
    recipe, said = read_recipe(path), []
    while True:
        try:
            check_recipe(recipe)
        except CompeteError as error:
            begins = next((words for words in WAYS_OUT if str(error).startswith(words)), None)
            if begins is None or begins in said:
                raise
            said.append(begins)
            WAYS_OUT[begins](recipe.arguments)
        else:
            return recipe, tuple(said)

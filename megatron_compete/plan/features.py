"""`megatron-compete plan --features`: what a recipe asks for, and what is known of each together with competition."""

import argparse
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from megatron_compete.plan.feature_table import MEANINGS, Feature, features_of
from megatron_compete.plan.recipe_check import check_recipe
from megatron_compete.plan.transformer_engine import NeededVersion, needed_version

WIDTH = 170


@dataclass(frozen=True)
class Examined:
    """A recipe that Megatron takes."""

    args: argparse.Namespace
    """Validated."""
    features: tuple[Feature, ...]
    refusal: CompeteError | None
    """What competition refuses; None where the job would train."""
    transformer_engine: NeededVersion | None


def examine(recipe: Recipe, gpus: int | None) -> Examined:
    """Check a recipe as the trainer does and look up what it asks for.

    Raises:
        CompeteError: Megatron, or a rule that it would trip over later, refuses the job: then nothing is known of it.
    """
    seen: list[argparse.Namespace] = []
    refusal = None
    try:
        check_recipe(recipe, gpus, validated=seen.append)
    except CompeteError as error:
        if not seen:
            raise
        refusal = error
    return Examined(seen[0], features_of(seen[0]), refusal, needed_version(seen[0]))


def print_features(found: Examined, recipe: str, file: TextIO) -> None:
    """The table, what the job needs, and whether it would train."""
    console = Console(file=file, highlight=False)
    console.width = max(console.width, WIDTH)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=recipe, title_justify="left")
    for column in ("feature", "with competition", "shown by, or why not"):
        table.add_column(column)
    for feature in found.features:
        table.add_row(feature.name, feature.status, shown(feature))
    console.print(table)
    for status, meaning in MEANINGS.items():
        if any(feature.status == status for feature in found.features):
            console.print(f"  {status}: {meaning}")
    if found.transformer_engine is not None:
        console.print(f"needs {found.transformer_engine}")
    if found.refusal is None:
        console.print("the trainer takes this job")


def shown(feature: Feature) -> str:
    """What a row rests on."""
    if feature.status == "untested":
        return f"priced alone: {feature.evidence}" + (f"\non a GPU: {feature.on_gpu}" if feature.on_gpu else "")
    return feature.evidence + (f"\non a GPU: {feature.on_gpu}" if feature.on_gpu else "")


def features_document(found: Examined, recipe: str) -> dict[str, object]:
    """The same as plain values."""
    return {
        "format": 1,
        "recipe": recipe,
        "refused": None if found.refusal is None else str(found.refusal),
        "transformer_engine": None if found.transformer_engine is None else found.transformer_engine.version,
        "features": [
            {"name": one.name, "status": one.status, "evidence": one.evidence, "gpu_test": one.on_gpu or None}
            for one in found.features
        ],
    }

"""Every row of the table is true: its test exists, its example shows it, and what is refused is refused."""

import ast
import functools
import os
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.plan.feature_table import FEATURES, MEANINGS, SECTIONS, Feature, features_of
from megatron_compete.plan.features import examine
from tests.plan.jobs import PUBLIC, public, recipe_of

ROOT = Path(__file__).parents[2]


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """Names of a test file's functions."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and (name == "*" or name in names_in(path))


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_evidence_exists(feature: Feature) -> None:
    if feature.status != "refused":
        assert exists(feature.evidence), feature.evidence
    if feature.on_gpu:
        assert exists(feature.on_gpu), feature.on_gpu
        marked = (ROOT / feature.on_gpu.partition("::")[0]).read_text()
        assert "pytest.mark.gpu" in marked


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_its_example_shows_it_and_the_trainers_check_says_the_same(
    feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "fsdp" in feature.flags:
        monkeypatch.setitem(os.environ, "CUDA_DEVICE_MAX_CONNECTIONS", "8")  # Megatron's condition
    found = examine(recipe_of(f"{feature.flags} --global-batch-size 16"), gpus=4)
    assert feature in found.features
    if feature.status == "refused":
        flag = next(
            word for word in reversed(feature.flags.split()) if word.startswith("--") and word[2:] in str(found.refusal)
        )
        assert f"{flag}" in str(found.refusal) and "does not work with competition routing" in str(found.refusal)
    else:
        assert found.refusal is None, str(found.refusal)


def test_a_plain_mixture_asks_for_little() -> None:
    names = [feature.name for feature in examine(recipe_of(""), gpus=1).features]
    assert names == ["softmax scores", "all-to-all dispatch"]


def test_rows_are_different_and_every_status_has_a_meaning() -> None:
    assert len({feature.name for feature in FEATURES}) == len(FEATURES) == sum(map(len, SECTIONS.values()))
    assert {feature.status for feature in FEATURES} == set(MEANINGS)


@pytest.mark.parametrize("name", sorted(path.stem for path in PUBLIC.glob("*.yaml")))
def test_public_recipes_are_accepted_or_refused_by_a_row(name: str) -> None:
    """Without what Megatron itself refuses: competition joins each, or a row of the table says why not."""
    found = examine(public(name), gpus=None)
    assert len(found.features) > 5
    refused = [feature.name for feature in found.features if feature.status == "refused"]
    assert bool(refused) == (found.refusal is not None), str(found.refusal)
    assert set(refused) <= {"Transformer Engine's op fuser", "NVFP4", "CUDA graphs of whole steps"}


def test_what_megatron_refuses_has_no_table() -> None:
    with pytest.raises(CompeteError, match=r"^Megatron refuses these arguments: Tensor parallel communication"):
        examine(read_recipe(PUBLIC / "DeepSeek-V3.yaml"), gpus=None)


def test_features_are_read_from_validated_arguments() -> None:
    """Older names of flags come out as the newer ones."""
    found = examine(public("run-dsv3-h100.1"), gpus=None)
    assert "padding of rows for FP8" in [feature.name for feature in found.features]
    assert features_of(found.args) == found.features

"""Recipes to command lines."""

from pathlib import Path

import pytest

from megatron_compete.errors import CompeteError
from megatron_compete.recipe import parse_overrides, read_recipe

RECIPE = """
launch: {nproc-per-node: 4}
arguments:
  num-layers: 4
  lr: 2.5e-4
  swiglu: true
  bf16: false
  data-path: [0.5, a, 0.5, b]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_values_become_flags(path: Path) -> None:
    command = " ".join(read_recipe(path).command())
    assert command.startswith("--nproc-per-node 4 --standalone -m megatron_compete.training.pretrain ")
    assert "--num-layers 4 --lr 0.00025 --swiglu --data-path 0.5 a 0.5 b" in command
    assert "bf16" not in command


def test_overrides_replace_by_name(path: Path) -> None:
    recipe = read_recipe(path)
    recipe.override(["--num-layers=8", "--nnodes", "2", "--rdzv-endpoint", "host:1", "--swiglu=false", "--bf16", "--lr", "1", "--data-path", "c"])  # fmt: skip
    assert recipe.command() == [
        "--nproc-per-node",
        "4",
        "--nnodes",
        "2",
        "--rdzv-endpoint",
        "host:1",
        "-m",
        "megatron_compete.training.pretrain",
        "--num-layers",
        "8",
        "--lr",
        "1",
        "--bf16",
        "--data-path",
        "c",
    ]


def test_a_recipe_stands_over_its_base(path: Path) -> None:
    over = path.parent / "deeper" / "over.yaml"
    over.parent.mkdir()
    over.write_text("base: ../recipe.yaml\nlaunch: {nnodes: 2}\narguments: {lr: 1.0, bf16: true}\n")
    recipe, base = read_recipe(over), read_recipe(path)
    assert recipe.launch == base.launch | {"nnodes": 2}
    assert recipe.arguments == base.arguments | {"lr": 1.0, "bf16": True}


def test_a_recipe_that_is_its_own_base_or_has_none_is_refused(path: Path) -> None:
    path.write_text("base: other.yaml")
    with pytest.raises(CompeteError, match=r"other\.yaml cannot be read"):
        read_recipe(path)
    (path.parent / "other.yaml").write_text("base: recipe.yaml")
    with pytest.raises(CompeteError, match=r"recipe\.yaml is its own base"):
        read_recipe(path)


def test_negative_numbers_are_values() -> None:
    assert parse_overrides(["--a", "-1", "--b"]) == {"a": "-1", "b": True}


@pytest.mark.parametrize(
    ("content", "says"),
    [("[1]", "needs the sections"), ("other: {}", "needs the sections"), ("a: [", "is not YAML")]
    + [("launch: {gpus: 1}", "launch option 'gpus'"), ("arguments: {a: {b: 1}}", "the value of a is a dict")],
)
def test_bad_recipes_are_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(CompeteError, match=says):
        read_recipe(path)


def test_a_missing_recipe_and_a_stray_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(CompeteError, match="'stray' does not follow a flag"):
        parse_overrides(["stray"])

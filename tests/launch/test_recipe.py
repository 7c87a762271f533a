"""Recipes to command lines."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import LAUNCH_OPTIONS, MEETING, OF_THIS_ENTRY, parse_overrides, read_recipe

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


def test_a_preset_is_a_base_by_its_name(path: Path) -> None:
    path.write_text("base: recommended\narguments: {compete-rate: 0.5}\n")
    over = path.with_name("over.yaml")
    over.write_text("base: recipe.yaml\n")
    assert read_recipe(path) == read_recipe(over)
    assert read_recipe(over).arguments == {"compete-preset": "recommended", "compete-rate": 0.5}
    path.write_text("\nbase: recomended\n")
    with pytest.raises(
        CompeteError,
        match=r"recipe\.yaml:2: base recomended is neither .* preset .did you mean recommended..: they are paper, paper-vlm, recommended",
    ):
        read_recipe(path)


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
    ("content", "line", "says"),
    [
        ("[1]", 1, "the file is a list, not a mapping"),
        ("", 1, "is empty: a recipe has the sections launch and arguments"),
        ("launch: {}\nother: {}", 2, "other is no key here: known are base, launch, arguments"),
        ("a: [", 1, "is not YAML"),
        ("launch:\n  gpus: 1", 2, "launch option 'gpus' is none of nnodes"),
        ("launch: {nproc-per-node: 1,\n nproc_per_node: 2}", 2, "launch option nproc_per_node is given twice"),
        ("arguments:\n  a: {b: 1}", 2, "a has a mapping as a value"),
        ("arguments:\n  a: [1, [2]]", 2, "a has a list as a value"),
        ("arguments:\n  a: [x, true]", 2, "a has true as a value"),
        ("arguments:\n  a: [x, null]", 2, "a has empty as a value"),
        ("arguments:\n  --lr: 1", 2, "'--lr' is no name of an argument"),
        ("arguments: 3", 1, "arguments is a number, not a mapping"),
        ("arguments:\n- lr", 1, "arguments is a list, not a mapping"),
        ("launch: [1]", 1, "launch is a list, not a mapping"),
        ("launch: false", 1, "launch is false, not a mapping"),
        ("arguments:\n  lr: 1\n  lr: 2", 3, "lr is given twice"),
        ("base: [a]", 1, "base is ['a']: give a valid string"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused(tmp_path: Path, content: str, line: int, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(CompeteError) as error:
        read_recipe(path)
    assert f"--recipe {path}:{line}: {says}" in str(error.value)


def test_torchruns_options_are_those_of_torchrun() -> None:
    """torch is not there on every login node: what the list lacks would go to the trainer."""
    from torch.distributed.run import get_args_parser

    options = {option for action in get_args_parser()._actions for option in action.option_strings}
    names = {option[2:].replace("_", "-") for option in options if option.startswith("--")} - {"help"}
    assert names == {*LAUNCH_OPTIONS, *OF_THIS_ENTRY} and set(MEETING) < set(LAUNCH_OPTIONS)


def test_torchruns_options_go_to_torchrun(path: Path) -> None:
    from torch.distributed.run import parse_args

    recipe = read_recipe(path)
    recipe.override(["--rdzv-conf", "join_timeout=900", "--local-addr=10.0.0.1", "--nproc_per_node", "2", "--log_dir", "x", "--standalone=false"])  # fmt: skip
    parsed = parse_args(recipe.command())
    assert (parsed.rdzv_conf, parsed.local_addr, parsed.nproc_per_node, parsed.log_dir) == (
        "join_timeout=900",
        "10.0.0.1",
        "2",
        "x",
    )
    assert not {"rdzv", "local", "log"} & {word.strip("-").partition("-")[0] for word in parsed.training_script_args}
    with pytest.raises(CompeteError, match="--signals-to-handle is set by this entry"):
        recipe.override(["--signals-to-handle", "SIGTERM"])


def test_a_rendezvous_option_alone_keeps_the_free_port(path: Path) -> None:
    recipe = read_recipe(path)
    recipe.override(["--rdzv-conf", "join_timeout=900"])
    assert "--standalone" in recipe.command()


def test_a_missing_recipe_and_a_stray_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(CompeteError, match="'stray' does not follow a flag"):
        parse_overrides(["stray"])

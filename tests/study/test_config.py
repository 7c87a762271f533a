"""Studies as files: what is read, and what is refused with the key's name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_compete.common.errors import CompeteError
from megatron_compete.study.config import read_study
from tests.study.fabricated import CONTENT, study_of

STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"


def test_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    study = study_of(tmp_path, finalists={"variants": ["paper"], "seeds": [1, 2, 3, 4]})
    assert study.seeds_of("paper") == (1, 2, 3, 4) and study.seeds_of("topk") == (1, 2, 3)
    assert (study.probe.interval, study.probe.sequences, study.clock, study.jobs) == (10, 64, "processor", 1)
    assert study.corpus.source == "stdlib" and study.seed_arguments == ("seed", "compete-seed")
    assert study.label_of("paper") == "paper" and study.baseline_of("slow") == "topk"


def test_variants_may_have_steps_of_their_own(tmp_path: Path) -> None:
    study = study_of(tmp_path, variants={"topk": {}, "long": {"steps": 80}})
    assert study.steps_of("topk") == 40 and study.steps_of("long") == 80


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({}, ["topk", "paper", "slow"]),
        ({"task": "regions"}, ["topk", "paper", "slow"]),
        ({"arguments": {"lr-decay-style": "constant"}}, []),
        ({"arguments": {"lr-decay-style": "constant"}, "variants": {"topk": {}, "paper": {"arguments": {"lr-decay-style": "WSD"}}}}, ["paper"]),
    ],
)  # fmt: skip
def test_whose_learning_rate_decays(tmp_path: Path, changes: dict[str, Any], decay: list[str]) -> None:
    study = study_of(tmp_path, **changes)
    assert [name for name in study.variants if study.decays(name)] == decay


def test_comparisons_are_with_the_baseline_unless_they_say_otherwise(tmp_path: Path) -> None:
    study = study_of(
        tmp_path, comparisons=[{"variant": "paper"}, {"variant": "slow", "against": "paper", "at": "flops"}]
    )
    assert [(one.variant, study.other_of(one), one.at) for one in study.comparisons] == [
        ("paper", "topk", "steps"),
        ("slow", "paper", "flops"),
    ]


def test_headroom_is_one_section_or_one_for_each_baseline(tmp_path: Path) -> None:
    (one,) = study_of(tmp_path, headroom={"dense-gradient": "slow", "hash": "paper"}).headroom
    assert one.baseline is None and list(one.arms.items()) == [("hash", "paper"), ("dense-gradient", "slow")]
    variants = {"topk": {}, "paper": {}, "two": {"baseline": "two"}, "slow": {"baseline": "two"}}
    both = study_of(tmp_path, variants=variants, headroom=[{"hash": "paper"}, {"baseline": "two", "oracle": "slow"}])
    assert [(section.baseline, section.arms) for section in both.headroom] == [
        (None, {"hash": "paper"}),
        ("two", {"oracle": "slow"}),
    ]
    assert study_of(tmp_path).headroom == ()


def test_arguments_beside_a_recipe_override_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("launch: {nproc-per-node: 2}\narguments: {lr: 1.0e-3, num-layers: 4}\n")
    study = study_of(tmp_path, recipe="base.yaml", arguments={"num-layers": 2})
    assert study.recipe.launch == {"nproc-per-node": 2}
    assert study.recipe.arguments == {"lr": 1e-3, "num-layers": 2}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"step": 3}, "step is no key here (did you mean steps?): known are title"),
    "no steps": ({"steps": None}, "steps is missing"),
    "steps of the wrong kind": ({"steps": "many"}, "steps is 'many': give a valid integer"),
    "true is no number": ({"steps": True}, "steps is True: give a valid integer"),
    "too few steps": ({"steps": 0}, "steps is 0: give at least 1"),
    "seeds": ({"seeds": [1, "2"]}, "seeds.1 is '2': give a valid integer"),
    "a seed twice": ({"seeds": [1, 1]}, "name each one once"),
    "baseline": ({"baseline": "smoe"}, "baseline is 'smoe', which is no variant: choose from topk, paper, slow"),
    "finalists": ({"finalists": {"variants": ["best"]}}, "finalists.variants names 'best'"),
    "ciphers of a dataset": ({"corpus": {"ciphers": 4, "train": "a", "heldout": "b"}}, "corpus.ciphers goes with text that is made here, in bytes, not with a dataset"),
    "ciphers and pieces": ({"corpus": {"ciphers": 4, "vocab-size": 500}}, "not with vocab-size, whose pieces would tell the cipher: leave one out"),
    "alphabet without ciphers": ({"corpus": {"cipher-alphabet": "letters"}}, "corpus.cipher-alphabet permutes nothing without ciphers"),
    "no ciphers": ({"corpus": {"ciphers": 0}}, "corpus.ciphers is 0: give at least 1"),
    "no variants": ({"variants": {}}, "variants is missing or empty"),
    "variant's key": ({"variants": {"topk": {"args": {}}}}, "variants.topk.args is no key"),
    "start": ({"variants": {"topk": {"start": "dense"}}}, "variants.topk.start is 'dense': the starts are none"),
    "folder name": ({"variants": {"top k": {}}}, "variants.top k is no name"),
    "text of a task without text": ({"task": "regions", "corpus": {}}, "corpus is of language models; task: regions has no text"),
    "ranks of a task of one process": ({"task": "regions", "launch": {"nproc-per-node": 2}}, "task: regions has no ranks"),
    "checkpoints of a task of seconds": ({"task": "regions", "save-interval": 10}, "save-interval is of language models; task: regions has no checkpoints"),
    "a start's file": ({"arguments": {"initial": "x"}}, "arguments.initial is set by the study itself"),
    "own argument": ({"arguments": {"save": "x"}}, "arguments.save is set by the study itself"),
    "nested argument": ({"arguments": {"lr": {"a": 1}}}, "lr has a mapping as a value"),
    "launch": ({"launch": {"gpus": 1}}, "launch option 'gpus' is none of"),
    "clock": ({"clock": "sun"}, "clock is 'sun': give 'processor' or 'wall'"),
    "save interval": ({"save-interval": 15}, "save-interval is 15: make it a multiple of probe.interval, 10"),
    "corpus": ({"corpus": {"train": "a"}}, "corpus names one of train and heldout"),
    "start without experts": ({"starts": {"dense": {"steps": 1, "upcycle": {}}}}, "starts.dense.upcycle.experts is missing"),
    "a number as a name": ({"variants": {"topk": {}, "7": {}, "8": 3}}, "variants.8 is a number, not a mapping"),
    "false is no mapping": ({"starts": False}, "starts is false, not a mapping"),
    "finalists are names": ({"finalists": {"variants": [["topk"]]}}, "finalists.variants.0 is ['topk']: give a valid string"),
    "seed arguments are names": ({"seed-arguments": [1]}, "seed-arguments.0 is 1: give a valid string"),
    "an option of sbatch that is the study's": ({"slurm": {"array": "0-3"}}, "slurm.array is what the study itself tells"),
    "an option of sbatch with several words": ({"slurm": {"gres": ["a", "b"]}}, "slurm.gres is a list"),
    "headroom": ({"headroom": {"hash": "ash"}}, "headroom.hash is 'ash', which is no variant: choose from topk"),
    "a part of headroom": ({"headroom": {"hashed": "topk"}}, "headroom.hashed is no key here"),
    "headroom without arms": ({"headroom": {"baseline": "topk"}}, "headroom names no variant: give hash"),
    "headroom in a list": ({"headroom": [{"hash": "slow"}, {"frozn": "topk"}]}, "headroom.1.frozn is no key here"),
    "headroom's baseline": ({"headroom": [{"baseline": "top", "hash": "slow"}]}, "headroom.0.baseline is 'top', which is no variant"),
    "headroom of itself": ({"headroom": {"hash": "topk"}}, "headroom.hash is 'topk', the baseline itself"),
    "headroom of another baseline": (
        {"headroom": {"baseline": "paper", "hash": "slow"}},
        "headroom.hash is 'slow', which is compared with 'topk' and not with 'paper'",
    ),
    "comparison": ({"comparisons": [{"variant": "best"}]}, "comparisons.0.variant is 'best', which is no variant"),
    "compared with itself": ({"comparisons": [{"variant": "topk"}]}, "comparisons.0 compares 'topk' with itself"),
    "axis": ({"comparisons": [{"variant": "paper", "at": "tokens"}]}, "comparisons.0.at is 'tokens': give 'steps', 'flops'"),
    "task": ({"task": "vision"}, "task is 'vision': give 'language' or 'regions'"),
    "start without upcycling": ({"starts": {"dense": {"steps": 1}}}, "starts.dense.upcycle is missing: say how"),
    "upcycling of regions": (
        {"task": "regions", "starts": {"one": {"steps": 1, "upcycle": {"experts": 2}}}},
        "starts.one.upcycle is of language models",
    ),
    "a mapping": ({"probe": [1]}, "probe is a list, not a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    changes, says = REFUSED[name]
    with pytest.raises(CompeteError) as refusal:
        study_of(tmp_path, **changes)
    assert says in str(refusal.value) and "study.yaml" in str(refusal.value)


def test_a_time_is_what_is_written(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    path = tmp_path / "timed.yaml"
    path.write_text((tmp_path / "study.yaml").read_text() + "slurm: {time: 12:00:00, begin: 16:00}\n")
    assert read_study(path).slurm.options == {"time": "12:00:00", "begin": "16:00"} and not study.slurm.options


def test_a_mistake_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("steps: 3\nvariants:\n  topk:\n    star: dense\n")
    with pytest.raises(CompeteError, match=r"s\.yaml:4: variants\.topk\.star is no key"):
        read_study(path)


def test_variants_without_a_common_seed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"variants\.paper shares no seed with its baseline 'topk'"):
        study_of(tmp_path, finalists={"variants": ["paper"], "seeds": [7]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="cannot be read"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(CompeteError, match="is not YAML"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(CompeteError, match="the file is a list"):
        read_study(tmp_path / "list.yaml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_ship_are_valid(path: Path) -> None:
    assert read_study(path).baseline in yaml.safe_load(path.read_text())["variants"]


def test_the_fabricated_study_is_valid(tmp_path: Path) -> None:
    assert list(study_of(tmp_path).variants) == list(CONTENT["variants"])

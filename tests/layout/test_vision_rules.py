"""Rules of vision-language models: each is broken once."""

import pytest

from megatron_compete.layout.rules import broken_rules
from megatron_compete.plan.recipe_check import _parse
from tests.plan.jobs import recipe_of

TOWER = (
    "--vision-model-type siglip --vision-num-layers 2 --vision-hidden-size 32 --vision-num-attention-heads 4 --img-h 16 "
    "--img-w 16 --patch-dim 8"
)

BROKEN = {
    "no layers": ("--vision-num-layers=false", 1, "--vision-model-type siglip needs --vision-num-layers"),
    "patches": ("--patch-dim 17", 1, "--img-h 16 is below --patch-dim 17"),
    "channels": ("--num-channels 1", 1, "--num-channels 1: Megatron's towers take pictures of 3 channels"),
    "tensor parallel": ("--tensor-model-parallel-size 2 --sequence-parallel", 2, "excludes --tensor-model-parallel-size 2: "),
    "context parallel": ("--context-parallel-size 2", 2, "--vision-model-type siglip excludes --context-parallel-size 2: "),
    "virtual stages": ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", 2, "excludes virtual pipeline stages: "),
    "decoder's length": ("--decoder-seq-length 64", 1, "excludes --decoder-seq-length: "),
    "no experts": ("--num-experts=false --router topk --experts-in vision", 1, "need --num-experts: add it"),
    "experts of a patch": ("--vision-num-experts 2 --vision-router-topk 3", 1, "--vision-router-topk 3 is more than --vision-num-experts 2"),
    "no expert of a patch": ("--experts-in language --vision-num-experts 2", 1, "have no effect without vision or projector in --experts-in"),
    "ranks of experts": ("--vision-num-experts 3 --expert-model-parallel-size 2", 2, "--vision-num-experts 3 does not divide over --expert-model-parallel-size 2"),
    "dense decoder": ("--moe-layer-freq 2", 1, "--moe-layer-freq is about the decoder, which has no experts"),
    "shared experts": ("--moe-shared-expert-intermediate-size 8", 1, "experts of tower and projector have biases"),
    "schedule": ("--compete-rate 0.9", 1, "--compete-max-active-layers 2 is below rate * layers = 0.9 * 3"),
}  # fmt: skip


def broken(flags: str, gpus: int) -> tuple[str, ...]:
    return broken_rules(_parse(recipe_of(f"{TOWER} {flags}"), gpus), gpus_per_node=8)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_names_flag_value_and_way_out(name: str) -> None:
    flags, gpus, expected = BROKEN[name]
    rules = broken(flags, gpus)
    assert any(expected in rule for rule in rules), rules


def test_a_sound_model_breaks_none() -> None:
    assert broken("", 1) == ()
    assert broken("--experts-in vision language --expert-model-parallel-size 2 --moe-layer-freq 2", 2) == ()
    assert broken("--pipeline-model-parallel-size 2", 2) == ()


def test_a_tower_is_no_part_of_a_language_model() -> None:
    (rule,) = broken_rules(_parse(recipe_of("--vision-num-layers 2"), 1), gpus_per_node=8)
    assert rule == "--vision-num-layers is about a vision tower: give --vision-model-type, or leave it out"

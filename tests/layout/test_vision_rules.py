"""Rules of vision-language models: each is broken once."""

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.layout.rules import broken_rules
from megatron_compete.plan.recipe_check import _parse
from megatron_compete.training.arguments import check_arguments
from tests.plan.jobs import recipe_of

TOWER = (
    "--vision-model-type siglip --vision-num-layers 2 --vision-hidden-size 32 --vision-num-attention-heads 4 --img-h 16 "
    "--img-w 16 --patch-dim 8"
)

BROKEN = {
    "no layers": ("--vision-num-layers=false", 1, "--vision-model-type siglip needs --vision-num-layers"),
    "patches": ("--patch-dim 17", 1, "--img-h 16 is below --patch-dim 17"),
    "channels": ("--num-channels 1", 1, "--num-channels 1: Megatron's towers take pictures of 3 channels"),
    "tensor parallel": ("--tensor-model-parallel-size 2 --sequence-parallel", 2, "--tensor-model-parallel-size 2 does not work with a vision-language model: "),
    "context parallel": ("--context-parallel-size 2", 2, "--context-parallel-size 2 does not work with a vision-language model: "),
    "virtual stages": ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", 2, "--num-virtual-stages-per-pipeline-rank does not work with"),
    "virtual stages by layers": ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1", 2, "--num-layers-per-virtual-pipeline-stage does not work with"),
    "virtual stages by layout": ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|t|t|tL", 2, "--pipeline-model-parallel-layout 'Et|t|t|tL' on 2 stages does not work with"),
    "decoder's length": ("--decoder-seq-length 64", 1, "--decoder-seq-length does not work with"),
    "no experts": ("--num-experts=false --router topk --experts-in vision", 1, "need --num-experts: add it"),
    "experts of a patch": ("--vision-num-experts 2 --vision-router-topk 3", 1, "--vision-router-topk or --moe-router-topk 3 is more than the 2 experts in vision"),
    "no expert of a patch": ("--experts-in language --vision-num-experts 2", 1, "have no effect without vision or projector in --experts-in"),
    "ranks of experts": ("--vision-num-experts 3 --expert-model-parallel-size 2", 2, "3 experts in vision do not divide among --expert-model-parallel-size 2"),
    "dense decoder": ("--moe-layer-freq 2", 1, "--moe-layer-freq is about the decoder, which has no experts"),
    "dense decoder's latent experts": ("--moe-latent-size 16", 1, "--moe-latent-size 16 is about the decoder, which has no experts"),
    "dense decoder's probabilities": ("--moe-apply-probs-on-input", 1, "--moe-apply-probs-on-input is about the decoder"),
    "dense decoder's recomputation": ("--recompute-granularity selective --recompute-modules moe", 1, "--recompute-modules moe is about experts, and the decoder has none: add --recompute-vision"),
    "shared experts": ("--moe-shared-expert-intermediate-size 8", 1, "experts of tower and projector have biases"),
    "schedule": ("--compete-rate 0.9", 1, "--compete-max-active-layers 2 is below rate * layers = 0.9 * 3"),
}  # fmt: skip


NOT_FOR_PICTURES = (
    "--rotary-seq-len-interpolation-factor 2", "--position-embedding-type mrope", "--logits-load-dir d", "--logits-save-dir d",
    "--vision-pretraining", "--sft", "--mock-data", "--fim-data", "--eod-mask-loss", "--reset-position-ids",
    "--reset-attention-mask", "--dataloader-inter-document-masking", "--multiple-validation-sets",
    "--per-dataset-sequences-path f", "--object-storage-cache-path d", "--dataloader-fast-cache-load",
    "--dataloader-defer-npy-index-mmap", "--no-mmap-bin-files",
)  # fmt: skip
"""What a language model takes, and a vision-language model would ignore or trip over."""


def broken(flags: str, gpus: int) -> tuple[str, ...]:
    return broken_rules(_parse(recipe_of(f"{TOWER} {flags}"), gpus), gpus_per_node=8)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_names_flag_value_and_way_out(name: str) -> None:
    flags, gpus, expected = BROKEN[name]
    rules = broken(flags, gpus)
    assert any(expected in rule for rule in rules), rules


@pytest.mark.parametrize("flag", NOT_FOR_PICTURES)
def test_what_would_have_no_effect_is_refused_by_name(flag: str) -> None:
    name = flag if "mrope" in flag else flag.split()[0]
    (rule,) = (rule for rule in broken(flag, 1) if "does not work with a vision-language model" in rule)
    assert rule.startswith(f"{name} does not work with a vision-language model: ") and rule.endswith("; leave it out")
    with pytest.raises(CompeteError, match=name):  # of a job whose other arguments a checkpoint completes
        check_arguments(_parse(recipe_of(f"{TOWER} {flag}"), 1))
    assert not any("vision-language" in rule for rule in broken_rules(_parse(recipe_of(flag), 1), gpus_per_node=8))


def test_a_sound_model_breaks_none() -> None:
    assert broken("", 1) == ()
    assert broken("--experts-in vision language --expert-model-parallel-size 2 --moe-layer-freq 2", 2) == ()
    assert broken("--pipeline-model-parallel-size 2", 2) == ()
    assert broken("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|tttL", 2) == ()
    assert broken("--recompute-granularity selective --recompute-modules moe --recompute-vision", 1) == ()
    assert broken("--recompute-granularity selective --recompute-modules core_attn", 1) == ()
    assert broken("--experts-in vision language --moe-latent-size 16", 1) == ()


def test_a_tower_is_no_part_of_a_language_model() -> None:
    (rule,) = broken_rules(_parse(recipe_of("--vision-num-layers 2"), 1), gpus_per_node=8)
    assert rule == "--vision-num-layers is about a vision tower: give --vision-model-type, or leave it out"

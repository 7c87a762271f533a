"""A job is the cluster's, whatever this host is; and it is priced in seconds at any size."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.plan.hardware import PRESETS, preset
from megatron_compete.plan.job import read_job
from megatron_compete.plan.job_plan import plan_job
from megatron_compete.plan.parameters import count_parameters
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.training import presets
from tests.plan.jobs import EXAMPLES, PUBLIC, VISION, example, example_recipe, job_of, public, recipe_of

FULL_SIZE = (
    "competesmoe_679m",
    "moe_30b_a3b",
    "moe_235b_a22b",
    "moe_80b_a3b",
    "moe_671b_a37b",
    "hybrid_30b_a3b",
    "vlm_siglip_qwen2_1.5b",
)


def test_this_host_does_not_change_the_job() -> None:
    args = example("moe_30b_a3b").args
    assert args.transformer_impl == "transformer_engine" and args.distributed_backend == "nccl"
    assert args.gradient_accumulation_fusion and args.moe_permute_fusion and args.apply_rope_fusion
    assert cpu.is_needed() == (not torch.cuda.is_available())
    assert not torch.distributed.is_initialized()


def test_pretending_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.cuda.is_available(), torch.cuda.get_device_capability, dict(os.environ)
    with pytest.raises(RuntimeError), pretended_gpu():
        assert torch.cuda.is_available()
        print("Megatron's arguments")
        raise RuntimeError
    job_of()
    assert (torch.cuda.is_available(), torch.cuda.get_device_capability, dict(os.environ)) == before
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host needs no pretending")
def test_pretending_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when Megatron checks a GPU job's arguments on any host, and `plan/pretend.py` can go."""
    import contextlib

    from megatron_compete.plan import recipe_check

    monkeypatch.setattr(recipe_check, "pretended_gpu", contextlib.nullcontext)
    with pytest.raises((CompeteError, AssertionError, RuntimeError)):
        example("moe_30b_a3b")


def test_gpus_come_from_the_recipe_or_the_caller() -> None:
    assert example("moe_30b_a3b").sizes.world == 128
    assert example("moe_30b_a3b", gpus=64).sizes.world == 64
    assert example("demo", "--tokenizer-type NullTokenizer --vocab-size 2047").sizes.world == 4
    with pytest.raises(CompeteError, match="--nnodes 1:4 is no number"):
        example("moe_30b_a3b", "--nnodes 1:4")


def test_no_named_file_is_needed() -> None:
    files = "--data-path /nowhere/data --tokenizer-type SentencePieceTokenizer --tokenizer-model /nowhere/tokenizer"
    assert job_of(files).args.padded_vocab_size == 128


def test_nor_a_named_folder_of_pictures() -> None:
    files = "--train-data-path /no/train.json --image-folder /no/pictures --image-processor /no/processor"
    assert job_of(f"{VISION} {files}").vision is not None


def test_a_vocabulary_that_is_not_said_is_assumed() -> None:
    job = job_of("--vocab-size=false --tokenizer-type HuggingFaceTokenizer --tokenizer-model org/name")
    assert job.args.padded_vocab_size == 128_000
    assert job.assumed == (
        "a vocabulary of 128,000, for the recipe does not say: give --vocab-size, as the tokenizer has it",
    )
    assert job_of().assumed == ()


def test_what_is_not_counted_is_refused_with_the_reason() -> None:
    with pytest.raises(CompeteError, match="--optimizer is not in the planner's formulas: its state and products"):
        job_of("--router topk --optimizer soap")


@pytest.mark.parametrize("name", sorted(path.stem for path in PUBLIC.glob("*.yaml")))
def test_public_recipes_are_priced(name: str) -> None:
    """All of them, without what Megatron itself refuses; whether competition can join them is tests/plan/test_features.py's."""
    plan = plan_job(read_job(public(name, "--router topk")), preset("gb200"))
    assert np.isfinite([plan.times.forward_PV, plan.times.backward_PV]).all() and plan.times.forward_PV.max() > 0
    assert 0 < plan.fullest.normal < 400e9 and 0 < plan.times.once < 60
    assert sum(len(plan.job.layers.run_by(stage, chunk)) for stage in range(plan.job.sizes.pp) for chunk in range(plan.job.sizes.vp)) == (
        plan.job.transformer.num_layers + plan.job.layers.mtp_depths
    )  # fmt: skip
    assert plan.job.transformer_engine is not None


REFUSED_BY_MEGATRON = {
    "Qwen3-235B-A22B": "Megatron refuses these arguments: Transformer Engine cross entropy loss fusion is disabled",
    "DeepSeek-V3": "Megatron refuses these arguments: Tensor parallel communication/GEMM overlap can happen only when",
    "Qwen3-Next-80B-A3B": "argument --no-weight-decay-cond-type: invalid choice: 'qwen3_next'",
    "run-kimi-gb200.1": "unrecognized arguments: --offload-optimizer-states",
}


@pytest.mark.parametrize("name", REFUSED_BY_MEGATRON)
def test_word_for_word_megatron_refuses_in_its_own_words(name: str) -> None:
    """Our rules once refused Qwen3-235B for layers that Megatron takes: embedding and loss count as one each."""
    with pytest.raises(CompeteError) as error:
        read_job(read_recipe(PUBLIC / f"{name}.yaml"))
    assert str(error.value).startswith(REFUSED_BY_MEGATRON[name])


def test_what_competition_refuses_is_refused() -> None:
    with pytest.raises(CompeteError, match="--moe-enable-routing-replay does not work with competition"):
        job_of("--moe-enable-routing-replay")
    assert job_of("--moe-enable-routing-replay --router topk").compete is None


def test_a_preset_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"compete_kind": "utility", "compete_rate": 0.1, "moe_aux_loss_coeff": 0.01}
    monkeypatch.setitem(presets.PRESETS, "useful", settings)
    recipe = example_recipe("competesmoe_154m")
    recipe.arguments["compete-preset"] = "useful"
    job = read_job(recipe)
    assert job.by_utility and job.transformer.moe_aux_loss_coeff == 0.01
    assert job.schedule is not None and job.schedule.rate == 0.1
    recipe.override(["--compete-rate", "0.05", "--compete-max-active-layers", "2"])
    schedule = read_job(recipe).schedule
    assert schedule is not None and (schedule.rate, schedule.max_active) == (0.05, 2)
    settings["compete_rate"] = 0.5
    recipe.override(["--compete-rate=false"])
    with pytest.raises(CompeteError, match=r"--compete-max-active-layers 2 is below rate \* layers = 0.5 \* 16"):
        read_job(recipe)


def test_a_baseline_router_is_planned_as_topk_and_refused_where_it_would_be() -> None:
    assert job_of("--router xmoe").compete is None
    with pytest.raises(CompeteError, match="--router-dim 1 with --num-experts 8"):
        job_of("--router xmoe --router-dim 1")
    with pytest.raises(CompeteError, match=r"--router-temperature 0\.2 has no effect with --router topk"):
        job_of("--router topk --router-temperature 0.2")


def test_unknown_flags_are_one_line() -> None:
    with pytest.raises(CompeteError, match="unrecognized arguments: --no-such-flag"):
        job_of("--no-such-flag")


@pytest.mark.parametrize("name", FULL_SIZE)
def test_recipes_fit_80_gigabytes(name: str) -> None:
    plan = plan_job(example(name), preset("h100"))
    assert plan.fits
    assert plan.fullest.competition > 0
    assert not replace(plan, hardware=replace(plan.hardware, memory_bytes=plan.fullest.competing)).fits


def test_every_recipe_is_tried() -> None:
    recipes = {path.stem for path in Path(EXAMPLES).glob("*.yaml") if not path.stem.startswith("chain_")}
    smaller = {"demo", "competesmoe_154m", "byte_level", "hybrid_byte_level", "vlm_digits"}
    assert recipes == {*FULL_SIZE, *smaller, "vlm_siglip_qwen2_1.5b_projector"}


def test_the_authors_model_has_its_published_size() -> None:
    assert plan_job(example("competesmoe_679m"), preset("h100")).parameters.total == pytest.approx(679e6, rel=0.002)


def test_tower_and_decoder_of_the_papers_tuning_have_their_published_sizes() -> None:
    """Qwen2-1.5B's 1,543,714,304 parameters; SigLIP-SO400M's 428,225,600 without what LLaVA leaves out: the last layer, the
    norm after it and the pooling head."""
    kinds = count_parameters(example("vlm_siglip_qwen2_1.5b_projector")).by_kind
    sizes = {
        part: sum(size for kind, size in kinds.items() if kind.startswith(part)) for part in ("tower", "projector")
    }
    layer, head, norm = 15_239_504, 15_238_352, 2 * 1152
    assert sizes["tower"] == 428_225_600 - layer - head - norm
    assert sizes["projector"] == 1152 * 1536 + 1536 + 1536 * 1536 + 1536
    assert sum(kinds.values()) - sum(sizes.values()) == 1_543_714_304


def test_the_papers_tuning_is_a_job_whose_27_layers_compete() -> None:
    job, before = example("vlm_siglip_qwen2_1.5b"), example("vlm_siglip_qwen2_1.5b_projector")
    assert [part.part for part in job.competing_parts] == 26 * ["vision"] + ["projector"]
    assert job.args.compete_preset == "paper-vlm" and job.args.group_by_modality
    assert [part.trains for part in before.parts] == [False, True, False] and before.compete is None
    same = ("hidden_size", "num_layers", "vision_num_layers", "projector_ffn_hidden_size", "img_h", "rotary_base")
    assert all(getattr(job.args, name) == getattr(before.args, name) for name in same)


def test_utilization_is_operations_over_the_peak() -> None:
    plan = plan_job(job_of(), preset("h100"))
    assert plan.utilization(989.4e12, 2.0) == pytest.approx(0.5)
    assert plan_job(job_of("--fp8-format hybrid --bf16"), preset("h100")).utilization(1978.9e12, 1.0) == 1.0


def test_ten_thousand_gpus() -> None:
    """Ranks are listed once a kind of group, never in pairs, so this is as quick as a small job's plan."""
    plan = plan_job(read_job(example_recipe("moe_235b_a22b", "--global-batch-size 2496"), 9984), preset("h100"))
    assert plan.job.sizes.dp == 312 and plan.job.microbatches == 8
    assert {kind.purpose for kind in plan.traffic} == {"tp", "ep", "pp", "dp-cp", "edp", "competition"}
    assert 0 < plan.times.once < np.inf


@pytest.mark.parametrize("hardware", PRESETS, ids=lambda hardware: hardware.name)
def test_presets(hardware) -> None:  # type: ignore[no-untyped-def]
    assert preset(hardware.name.upper()) is hardware
    assert hardware.network_bandwidth < hardware.link_bandwidth < hardware.memory_bandwidth
    assert hardware.expert_share(0) < hardware.expert_share(768) < hardware.expert_share(4096)
    assert set(hardware.assumptions()) >= {"gemm_efficiency", "kernel_seconds", "usable_memory"}
    assert all(0 < share <= 1 for name, share in hardware.assumptions().items() if "efficiency" in name)


def test_unknown_hardware_is_named() -> None:
    with pytest.raises(CompeteError, match="--gpu tpu is unknown: choose from a100, h100"):
        preset("tpu")


def test_recipes_are_not_changed_by_reading() -> None:
    recipe = recipe_of("")
    before = dict(recipe.arguments)
    read_job(recipe, 1)
    assert recipe.arguments == before

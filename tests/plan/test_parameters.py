"""Planned parameter tensors against those of models that Megatron built."""

import pytest

from megatron_compete.plan.job import read_job
from megatron_compete.plan.parameters import MTP, count_parameters
from tests.plan.built import built
from tests.plan.jobs import DENSE, VISION, example, job_of, public, recipe_of
from tests.plan.test_flops import GDN, MLA
from tests.ranks import run_ranks

OLD_STYLE = (
    "--swiglu=false --normalization LayerNorm --disable-bias-linear=false --position-embedding-type learned_absolute "
    "--untie-embeddings-and-output-weights=false --moe-layer-freq 2"
)
NEW_STYLE = (
    "--group-query-attention --num-query-groups 2 --kv-channels 12 --qk-layernorm --add-qkv-bias "
    "--moe-shared-expert-intermediate-size 16 --moe-shared-expert-gate --moe-layer-freq [0,1,1,1]"
)
HYBRID = (
    "--num-layers=false --mamba-state-dim 8 --mamba-head-dim 8 --mamba-num-groups 2 --mamba-num-heads 8 "
    + GDN.partition("--linear-attention-freq 2 ")[2]
)
TENSOR = "--tensor-model-parallel-size 2 --sequence-parallel"
MODELS = {
    "biases, tied, positions": (1, OLD_STYLE),
    "grouped queries, shared experts": (1, NEW_STYLE),
    "relu": (1, "--swiglu=false --relu"),
    "stock router": (1, "--router topk"),
    "sharded": (2, f"{NEW_STYLE} {TENSOR}"),
    "experts over ranks of tensors": (2, f"{NEW_STYLE} {TENSOR} --expert-model-parallel-size 2 --expert-tensor-parallel-size 1"),
    "whole experts, split attention": (2, f"{OLD_STYLE} {TENSOR} --expert-tensor-parallel-size 1"),
    "stages, tied": (2, f"{OLD_STYLE} --pipeline-model-parallel-size 2"),
    "chunks": (2, f"{NEW_STYLE} --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"),
    "uneven": (2, f"{NEW_STYLE} --pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 1"),
    "embedding counted": (2, "--num-layers 6 --pipeline-model-parallel-size 2 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split"),
    "dense": (1, f"{OLD_STYLE} {DENSE}"),
    "dense, split without sequence parallelism": (2, f"{NEW_STYLE.partition(' --moe')[0]} --tensor-model-parallel-size 2 {DENSE}"),
    "dense, stages": (2, f"--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 {DENSE}"),
    "latent attention": (1, f"{MLA} --qk-layernorm"),
    "latent attention, split": (2, f"{MLA} {TENSOR}"),
    "queries without a latent": (1, MLA.partition(" --q-lora")[0]),
    "output gate, learned sink": (1, "--attention-output-gate --softmax-type learnable"),
    "fewer groups than ranks": (2, f"{TENSOR} --group-query-attention --num-query-groups 1"),
    "multi-token prediction": (1, "--mtp-num-layers 2"),
    "multi-token prediction with the loss": (2, "--pipeline-model-parallel-size 2 --mtp-num-layers 1 --qk-layernorm"),
    "multi-token prediction, tied": (2, "--pipeline-model-parallel-size 2 --mtp-num-layers 1 --untie-embeddings-and-output-weights=false"),
    "multi-token prediction, a stage of its own": (3, "--pipeline-model-parallel-size 3 --mtp-num-layers 1 --pipeline-model-parallel-layout Ett|ttm|L"),
    "one depth repeated": (1, "--mtp-num-layers 2 --mtp-use-repeated-layer"),
    "gated delta nets": (1, f"{GDN} --attention-output-gate --moe-shared-expert-intermediate-size 16 --moe-shared-expert-gate"),
    "gated delta nets, split": (2, f"{GDN} {TENSOR}"),
    "hybrid": (1, f"{HYBRID} --hybrid-layer-pattern M*-EGE"),
    "hybrid, split": (2, f"{HYBRID} --hybrid-layer-pattern M*-EGE {TENSOR}"),
    "hybrid, stages, multi-token prediction": (2, f"{HYBRID} --hybrid-layer-pattern M*-E|GEME/*E/*E --pipeline-model-parallel-size 2"),
    "siglip, experts before the decoder": (1, VISION),
    "siglip, dense, frozen tower": (1, f"{VISION} {DENSE} --freeze-ViT"),
    "clip, experts in the tower alone, positions": (1, f"{VISION} --vision-model-type clip --experts-in vision --position-embedding-type learned_absolute --max-position-embeddings 64"),
    "tower, stages, experts": (4, f"{VISION} --vision-num-experts 4 --experts-in vision projector language --pipeline-model-parallel-size 2 --expert-model-parallel-size 2"),
    "layout": (2, f"{OLD_STYLE} --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|tt|t|L"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_that_megatron_builds(name: str) -> None:
    ranks, flags = MODELS[name]
    recipe = recipe_of(flags)
    parameters = count_parameters(read_job(recipe, ranks))
    for stage, chunks in run_ranks(ranks, built, recipe):
        for planned, sizes in zip(parameters.tensors_PV[stage], chunks, strict=True):
            assert sorted(item.elements for item in planned for _ in range(item.count)) == sizes


@pytest.mark.parametrize("flags", [OLD_STYLE, NEW_STYLE])
@pytest.mark.parametrize(
    "layout",
    [
        "--tensor-model-parallel-size 4 --sequence-parallel --expert-model-parallel-size 4 --expert-tensor-parallel-size 1",
        "--pipeline-model-parallel-size 4 --expert-model-parallel-size 2",
    ],
)
def test_the_total_does_not_depend_on_the_layout(flags: str, layout: str) -> None:
    if "query-groups 2" in flags and "parallel-size 4 --seq" in layout:
        layout = layout.replace("--tensor-model-parallel-size 4", "--tensor-model-parallel-size 2")
    alone, split = (
        count_parameters(job_of(f"{flags} --global-batch-size 16 --vocab-size 255 {more}", 8)) for more in ("", layout)
    )
    assert (alone.total, alone.active, alone.by_kind | {"output": 0}) == (
        split.total, split.active, split.by_kind | {"output": 0},
    )  # fmt: skip


def test_active_parameters_are_those_of_k_experts() -> None:
    """A token meets K of E experts; the same model with K experts in all has as many, but for its router."""
    many, few = (count_parameters(job_of(f"--num-experts {experts}")) for experts in (8, 2))
    assert many.active - few.active == 4 * (8 - 2) * 32  # four routers of H = 32
    assert few.active == few.total


def test_a_token_meets_all_of_a_dense_model() -> None:
    parameters = count_parameters(job_of(DENSE))
    assert parameters.active == parameters.total
    assert set(parameters.by_kind) == {"embedding", "norm", "attention", "mlp", "output"}


PUBLISHED = {
    "DeepSeek-V3": (129_280, (670.5, 671.5), (36.5, 37.5)),  # arXiv 2412.19437: 671B, 37B active
    "DeepSeek-V2-Lite": (102_400, (15.65, 15.75), (2.35, 2.46)),  # arXiv 2405.04434: 15.7B, 2.4B
    "Qwen3-235B-A22B": (151_936, (234.5, 235.5), (21.5, 22.5)),  # arXiv 2505.09388: 235B, 22B
    "Qwen3-30B-A3B": (151_936, (30.45, 30.55), (3.25, 3.36)),  # the same: 30.5B, 3.3B
    "Mixtral-8x7B": (32_000, (46.65, 46.75), (12.85, 12.95)),  # arXiv 2401.04088: 46.7B, 12.9B
    "run-kimi-gb200.1": (163_840, (950, 1050), (31.5, 32.5)),  # its model card: 1T, 32B
    "Qwen3-Next-80B-A3B": (151_936, (79.5, 80.5), (2.5, 3.5)),  # its model card: 80B, 3B
}
"""Vocabulary, and in 10^9 what the rounded numbers of reports stand for: parameters, and active ones (a hundredth beyond
where a report seems to have cut the digits off)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_models_have_their_published_sizes(name: str) -> None:
    """Some reports count the vocabulary's matrices among the active parameters, one of them, or none."""
    vocabulary, (least, most), (least_active, most_active) = PUBLISHED[name]
    padding = "--make-vocab-size-divisible-by 128" if name == "Mixtral-8x7B" or name == "DeepSeek-V2-Lite" else ""
    parameters = count_parameters(read_job(public(name, f"--vocab-size {vocabulary} --router topk {padding}")))
    assert least * 1e9 < parameters.total - parameters.by_kind.get(MTP, 0) < most * 1e9
    matrix = parameters.by_kind["output"]
    without, with_one, with_both = (parameters.active - taken * matrix for taken in (2, 1, 0))
    assert any(least_active * 1e9 < count < most_active * 1e9 for count in (without, with_one, with_both))


def test_multi_token_prediction_of_deepseek_v3() -> None:
    """14B in the checkpoint, of which 1.85B are its own copies of embedding and output head (arXiv 2412.19437's model card)."""
    parameters = count_parameters(read_job(public("run-dsv3-h100.1", "--vocab-size 129280 --router topk")))
    copies = parameters.by_kind["embedding"] + parameters.by_kind["output"]
    assert parameters.by_kind[MTP] + copies == pytest.approx(14e9, rel=0.05)


def test_published_sizes() -> None:
    """The recipes are the models that they say: 30.5B parameters with 3.3B active, 235B with 22B (Qwen3's reports)."""
    for name, total, active in (("moe_30b_a3b", 30.5e9, 3.3e9), ("moe_235b_a22b", 235e9, 22e9)):
        parameters = count_parameters(example(name))
        assert parameters.total == pytest.approx(total, rel=0.01)
        assert parameters.active == pytest.approx(active, rel=0.03)

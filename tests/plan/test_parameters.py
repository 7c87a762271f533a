"""Planned parameter tensors against those of models that Megatron built."""

import pytest

from megatron_compete.plan.job import read_job
from megatron_compete.plan.parameters import MTP, count_parameters
from tests.plan.built import built
from tests.plan.jobs import DENSE, example, job_of, public, recipe_of
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
    "latent attention, split": (2, f"{MLA} {TENSOR} --transformer-impl local --no-persist-layer-norm"),
    "queries without a latent": (1, MLA.partition(" --q-lora")[0]),
    "output gate, learned sink": (1, "--attention-output-gate --softmax-type learnable"),
    "fewer groups than ranks": (2, f"{TENSOR} --group-query-attention --num-query-groups 1"),
    "multi-token prediction": (1, "--mtp-num-layers 2"),
    "multi-token prediction with the loss": (2, "--pipeline-model-parallel-size 2 --mtp-num-layers 1 --qk-layernorm"),
    "multi-token prediction, tied": (2, "--pipeline-model-parallel-size 2 --mtp-num-layers 1 --untie-embeddings-and-output-weights=false"),
    "multi-token prediction, a stage of its own": (2, "--pipeline-model-parallel-size 2 --mtp-num-layers 1 --pipeline-model-parallel-layout Et|tt|tm|L"),
    "one depth repeated": (1, "--mtp-num-layers 2 --mtp-use-repeated-layer"),
    "gated delta nets": (1, f"{GDN} --attention-output-gate --moe-shared-expert-intermediate-size 16 --moe-shared-expert-gate"),
    "gated delta nets, split": (2, f"{GDN} {TENSOR}"),
    "hybrid": (1, f"{HYBRID} --hybrid-layer-pattern M*-EGE"),
    "hybrid, split": (2, f"{HYBRID} --hybrid-layer-pattern M*-EGE {TENSOR}"),
    "hybrid, stages, multi-token prediction": (2, f"{HYBRID} --hybrid-layer-pattern M*-E|GEME/*E/*E --pipeline-model-parallel-size 2"),
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
    "DeepSeek-V3": (129_280, 671e9, 37e9),  # arXiv 2412.19437
    "DeepSeek-V2-Lite": (102_400, 15.7e9, 2.4e9),  # arXiv 2405.04434
    "Qwen3-235B-A22B": (151_936, 235e9, 22e9),  # arXiv 2505.09388
    "Qwen3-30B-A3B": (151_936, 30.5e9, 3.3e9),
    "Mixtral-8x7B": (32_000, 46.7e9, 12.9e9),  # arXiv 2401.04088
    "run-kimi-gb200.1": (163_840, 1.04e12, 32e9),  # arXiv 2507.20534
    "Qwen3-Next-80B-A3B": (151_936, 80e9, 3e9),
}
"""Vocabulary, parameters and active parameters that the models' reports say. Active ones are counted without the two
matrices of the vocabulary by some and with them by others."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_models_have_their_published_sizes(name: str) -> None:
    vocabulary, total, active = PUBLISHED[name]
    parameters = count_parameters(read_job(public(name, f"--vocab-size {vocabulary} --router topk")))
    extra = parameters.by_kind.get(MTP, 0)
    assert parameters.total - extra == pytest.approx(total, rel=0.01)
    ends = parameters.by_kind["embedding"] + parameters.by_kind["output"]
    assert parameters.active - ends <= active * 1.03 and active * 0.97 <= parameters.active
    if name in ("DeepSeek-V3", "Kimi-K2"):
        assert not extra


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

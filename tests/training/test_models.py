"""Every kind of model through the trainer: stock at rate 0, one rank against many, resumed against uninterrupted."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars as scalars
from tests.training.runs import largest_difference, train

STEPS, MIDDLE = 5, 2

MLA = (
    "--multi-latent-attention --q-lora-rank 16 --kv-lora-rank 16 --qk-head-dim 8 --qk-pos-emb-head-dim 4 --v-head-dim 8 "
    "--qk-layernorm"
)
DELTA = (
    "--linear-num-key-heads 2 --linear-num-value-heads 4 --linear-key-head-dim 8 --linear-value-head-dim 8 "
    "--linear-conv-kernel-dim 4"
)
MAMBA = "--mamba-num-heads 4 --mamba-head-dim 16 --mamba-state-dim 8 --mamba-num-groups 2"
BIAS = "--moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-2"

MODELS = {
    "deepseek": f"--num-layers 3 --moe-layer-freq [0,1,1] --mtp-num-layers 1 {MLA} {BIAS}",
    "delta-nets": f"--num-layers 4 --experimental-attention-variant gated_delta_net --linear-attention-freq 4 {DELTA} "
    "--attention-output-gate --qk-layernorm --apply-layernorm-1p",
    "hybrid": f"--hybrid-layer-pattern ME*E-E --qk-layernorm {MAMBA}",
    "hybrid-mtp": f"--hybrid-layer-pattern GE*E/*E --mtp-num-layers 1 {DELTA} "
    "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2",
    "sinks": "--num-layers 2 --softmax-type learnable --window-size 8,0 --window-attn-skip-freq 2 --no-rope-freq 2",
}
"""Flags by kind; all but the last are what some published model is made of."""

EP2, TP2 = "--expert-model-parallel-size 2", "--tensor-model-parallel-size 2 --sequence-parallel"
PP2, LAYOUT = "--pipeline-model-parallel-size 2", "--pipeline-model-parallel-layout"
LAYOUTS: dict[str, tuple[str, int, str]] = {
    "deepseek-ep2": ("deepseek", 2, EP2),
    "deepseek-pp2-mtp-apart": ("deepseek", 2, f"{PP2} {LAYOUT} Et|t|t|mL"),
    "deepseek-pp3-loss-apart": ("deepseek", 3, f"--pipeline-model-parallel-size 3 {LAYOUT} Ett|tm|L"),
    "deepseek-pp2-vp2-ep2": ("deepseek", 4, f"{PP2} {LAYOUT} Et|t|t|mL {EP2}"),
    "deepseek-tp2": ("deepseek", 2, TP2),
    "delta-nets-tp2-ep2": ("delta-nets", 2, f"{TP2} {EP2} --expert-tensor-parallel-size 1"),
    "delta-nets-pp2": ("delta-nets", 2, PP2),
    "hybrid-ep2": ("hybrid", 2, EP2),
    "hybrid-tp2": ("hybrid", 2, TP2),
    "hybrid-pp2": ("hybrid", 2, f"{PP2} --hybrid-layer-pattern ME*|E-E"),
    "hybrid-pp2-vp2": ("hybrid", 2, f"{PP2} --hybrid-layer-pattern M|E*|E-|E"),
    "hybrid-mtp-pp2": ("hybrid-mtp", 2, f"{PP2} --hybrid-layer-pattern GE*|E/*E"),
    "hybrid-mtp-stage-without-experts": ("hybrid-mtp", 2, f"{PP2} --hybrid-layer-pattern G|E*E/*E"),
    "sinks-tp2": ("sinks", 2, TP2),
}
SLOW = (
    "deepseek-tp2",
    "deepseek-pp3-loss-apart",
    "delta-nets-pp2",
    "hybrid-tp2",
    "hybrid-pp2",
    "hybrid-mtp-pp2",
    "sinks-tp2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def uninterrupted(model: str, folder: Path) -> dict[str, dict[int, float]]:
    """One rank, all steps, with a checkpoint in the middle that the other runs start from."""
    if not (folder / model).exists():
        save = f"--save {folder}/ckpt-{model} --save-interval {MIDDLE}"
        train(1, f"{MODELS[model]} --train-iters {STEPS} {save} --tensorboard-dir {folder}/{model}")
        (folder / f"ckpt-{model}/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return scalars(folder / model)


def run(name: str, world: int, flags: str, folder: Path) -> dict[str, dict[int, float]]:
    if not (folder / name).exists():
        train(world, f"{flags} --train-iters {STEPS} --tensorboard-dir {folder}/{name}")
    return scalars(folder / name)


@pytest.mark.parametrize("model", MODELS)
def test_rate_0_is_megatrons_model_bit_for_bit(model: str, folder: Path) -> None:
    stock = run(f"{model}-stock", 1, f"{MODELS[model]} --router topk", folder)
    never = run(f"{model}-never", 1, f"{MODELS[model]} --compete-rate 0", folder)
    losses = [name for name in stock if "loss" in name or name == "grad-norm"]
    assert "lm loss" in losses and len(stock["lm loss"]) == STEPS
    for name in losses:
        assert never[name] == stock[name], name


@pytest.mark.parametrize("model", MODELS)
def test_resumed_run_equals_uninterrupted_one(model: str, folder: Path) -> None:
    whole = uninterrupted(model, folder)
    assert max(whole["competition/active-layers"].values()) > 0
    resumed = run(f"{model}-resumed", 1, f"{MODELS[model]} --load {folder}/ckpt-{model}", folder)
    assert set(resumed["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    for name, values in resumed.items():
        if name == "lm loss" or name.startswith("competition/"):
            assert values == {step: value for step, value in whole[name].items() if step > MIDDLE}, name


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAYOUTS])
def test_layout_equals_one_rank(name: str, folder: Path) -> None:
    model, world, flags = LAYOUTS[name]
    uninterrupted(model, folder)
    start = f"{MODELS[model]} --load {folder}/ckpt-{model} --no-load-optim"
    one = run(f"{model}-one", 1, start, folder)
    many = run(name, world, f"{start} {flags}", folder)
    assert set(many["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    assert one["competition/active-layers"] == many["competition/active-layers"]
    for loss in (name for name in one if name == "lm loss" or "mtp" in name or name == "load_balancing_loss"):
        assert largest_difference(one[loss], many[loss]) <= 1e-4, loss
    assert largest_difference(one["competition/agreement"], many["competition/agreement"]) <= 1e-3

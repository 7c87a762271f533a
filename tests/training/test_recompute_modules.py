"""Recomputed activations in the trainer, of every kind that a CPU has: not a bit of training changes where layers compete."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.training.runs import train

STEPS = 4
FLAGS = f"""
--train-iters {STEPS} --bf16 --tensorboard-log-interval 1 --expert-model-parallel-size 2 --moe-layer-freq [0,1,1,1]
--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01 --moe-shared-expert-intermediate-size 32
"""
SELECTIVE = "--recompute-granularity selective --recompute-modules"
KINDS = {
    "response": "",
    "utility": "--compete-kind utility --compete-distill-coeff 0 --compete-diversity-coeff 0",
}
LATENT = """
--multi-latent-attention --q-lora-rank 16 --kv-lora-rank 16 --qk-head-dim 8 --qk-pos-emb-head-dim 8 --v-head-dim 8
"""
RECOMPUTED = {
    "core_attn": ("", f"{SELECTIVE} core_attn"),
    "layernorm": ("", f"{SELECTIVE} layernorm"),
    "mlp": ("", f"{SELECTIVE} mlp"),
    "moe": ("", f"{SELECTIVE} moe"),
    "shared_experts": ("", f"{SELECTIVE} shared_experts"),
    "several": ("", f"{SELECTIVE} core_attn layernorm mlp shared_experts"),
    "layernorm-moe": ("", f"{SELECTIVE} layernorm moe"),
    "full": ("", "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2"),
    "mla_up_proj": (LATENT, f"{SELECTIVE} mla_up_proj"),
}
"""Flags of both runs, and of the one that recomputes. `moe_act` needs grouped experts: tests/moe/te_on_cpu.py."""
COVERING = (("utility", "several"), ("response", "layernorm-moe"))
CASES = [
    pytest.param(kind, name, marks=() if (kind, name) in COVERING else pytest.mark.slow)
    for kind in KINDS
    for name in RECOMPUTED
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


def without_recomputation(kind: str, flags: str, folder: Path) -> dict[str, dict[int, float]]:
    """Run once for all that recompute something of it."""
    board = folder / f"{kind}-{'latent' if flags else 'plain'}"
    if not board.exists():
        train(2, f"{FLAGS} {KINDS[kind]} {flags} --tensorboard-dir {board}")
    return read_scalars(board)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_recomputation_changes_no_bit(kind: str, name: str, folder: Path, tmp_path: Path) -> None:
    flags, recompute = RECOMPUTED[name]
    kept = without_recomputation(kind, flags, folder)
    train(2, f"{FLAGS} {KINDS[kind]} {flags} {recompute} --tensorboard-dir {tmp_path}")
    again = read_scalars(tmp_path)
    assert len(kept["lm loss"]) == STEPS and max(kept["competition/active-layers"].values()) > 0
    for metric in ("lm loss", "grad-norm", "load_balancing_loss", "competition/agreement"):
        assert again[metric] == kept[metric], metric

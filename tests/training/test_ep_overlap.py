"""Megatron's EP-overlap schedule: forward of one microbatch between the parts of another's backward, and not a bit of
training changes where a layer competes."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.training.runs import train

STEPS = 3
FLAGS = f"""
--train-iters {STEPS} --bf16 --tensorboard-log-interval 1 --expert-model-parallel-size 2
--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01 --moe-z-loss-coeff 0.01
"""
OVERLAP = "--overlap-moe-expert-parallel-comm"
UTILITY = "--compete-kind utility --compete-distill-coeff 0 --compete-diversity-coeff 0"
PP2_VPP2 = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"
NORMS_AGAIN = "--recompute-granularity selective --recompute-modules layernorm core_attn"
SIGMOID = "--moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-dtype fp32"
SAMPLED = "--compete-token-fraction 0.3"
SHARED = "--moe-shared-expert-intermediate-size 32"

RUNS = {
    "response": (2, ""),
    "utility": (2, UTILITY),
    "response-pp2-vpp2-shared": (4, f"{PP2_VPP2} {SHARED}"),
    "utility-pp2-vpp2-mtp": (4, f"{UTILITY} {PP2_VPP2} --mtp-num-layers 1"),
    "response-shared-layernorm": (2, f"{SHARED} {NORMS_AGAIN}"),
    "response-sampled": (2, SAMPLED),
    "utility-sampled-pp2-vpp2": (4, f"{UTILITY} {SAMPLED} {PP2_VPP2}"),
    "response-latent": (2, "--moe-latent-size 16"),
    "utility-latent-sigmoid": (2, f"{UTILITY} --moe-latent-size 16 {SIGMOID}"),
    "utility-missing-layernorm": (2, f"{UTILITY} --compete-utility-gradient missing {NORMS_AGAIN}"),
}  # fmt: skip
"""Ranks and flags. Every run has 4 layers, and 2 or 4 microbatches a step."""
COVERING = ("utility-pp2-vpp2-mtp", "response-shared-layernorm", "response-sampled")


@pytest.mark.parametrize("name", [name if name in COVERING else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])  # fmt: skip
def test_interleaved_microbatches_train_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    world, flags = RUNS[name]
    scalars = {}
    for schedule, flag in (("plain", ""), ("overlapped", OVERLAP)):
        train(world, f"{FLAGS} {flags} {flag} --tensorboard-dir {tmp_path / schedule}")
        scalars[schedule] = {
            metric: values for metric, values in read_scalars(tmp_path / schedule).items() if "time" not in metric
        }
    plain, overlapped = scalars["plain"], scalars["overlapped"]
    assert len(plain["lm loss"]) == STEPS and max(plain["competition/active-layers"].values()) > 0
    for metric in ("lm loss", "grad-norm", "load_balancing_loss", "z_loss", "competition/agreement"):
        assert overlapped[metric] == plain[metric], metric

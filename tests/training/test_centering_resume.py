"""Running statistics live in the checkpoint: a resumed run goes on with them, in fp32 and bf16."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.training.runs import train

STEPS, MIDDLE = 6, 3


@pytest.mark.parametrize(
    "precision",
    [pytest.param("", id="fp32", marks=pytest.mark.slow), pytest.param("--bf16", id="bf16")],
)
def test_running_statistics_are_resumed(precision: str, tmp_path: Path) -> None:
    common = f"--train-iters {STEPS} --compete-response-centering ema --expert-model-parallel-size 2 {precision}"
    train(2, f"{common} --save {tmp_path}/ckpt --save-interval {MIDDLE} --tensorboard-dir {tmp_path}/whole")
    (tmp_path / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    train(2, f"{common} --load {tmp_path}/ckpt --tensorboard-dir {tmp_path}/resumed")
    whole, resumed = read_scalars(tmp_path / "whole"), read_scalars(tmp_path / "resumed")
    for name in ("lm loss", "competition/agreement", "competition/distillation-loss"):
        assert resumed[name] and resumed[name] == {k: v for k, v in whole[name].items() if k > MIDDLE}

"""A preset in the trainer: what it says at its start, and what its checkpoint and a model card keep."""

import contextlib
import io
from pathlib import Path

from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.model_card import model_card
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.training.presets import PRESETS
from tests.ranks import run_rank
from tests.training.runs import MODEL, train_on_rank

FLAGS = "--compete-preset recommended --compete-distill-coeff 0 --compete-diversity-coeff 0"
"""`MODEL` has weights for losses of competition by response."""


def printed(arguments: list[str]) -> str:
    """Standard output of a run."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        train_on_rank(arguments)
    return output.getvalue()


def test_a_run_names_its_preset_and_keeps_its_settings(tmp_path: Path) -> None:
    flags = f"{MODEL} {FLAGS} --train-iters 1 --save {tmp_path} --save-interval 1 --no-save-optim --no-save-rng"
    lines = [line for line in run_rank(printed, flags.split()).splitlines() if "--compete-preset" in line]
    assert len(lines) == 1
    assert lines[0].startswith("megatron-compete: --compete-preset recommended, except --compete-rate 0.4 (not ")
    assert "--compete-kind" not in lines[0] and "--moe-aux-loss-coeff" not in lines[0]
    saved = TorchDistCheckpoint(tmp_path / "iter_0000001").arguments
    given = {"compete_rate", "compete_max_active_layers", "compete_distill_coeff", "compete_diversity_coeff"}
    expected = {name: value for name, value in PRESETS["recommended"].items() if name not in given}
    assert {name: saved[name] for name in expected} == expected
    card = model_card(FAMILIES["mixtral"], saved, 1, has_tokenizer=False)
    assert "| `--compete-preset` | recommended |" in card and "| `--compete-rate` | 0.4 |" in card
    assert f"| `--moe-aux-loss-coeff` | {PRESETS['recommended'].get('moe_aux_loss_coeff', 0.0)} |" in card


def test_a_vision_preset_trains_a_language_model_and_a_longer_run_keeps_its_warm_up(tmp_path: Path) -> None:
    """5% of 40 steps are 2, of 200 steps 10; the checkpoint's schedule goes on."""
    flags = f"{MODEL} --compete-preset paper-vlm --save {tmp_path} --save-interval 1 --load {tmp_path}"
    said = []
    for steps, last in ((40, 1), (200, 3)):
        output = run_rank(printed, f"{flags} --train-iters {steps} --exit-interval {last}".split())
        said += [line for line in output.splitlines() if line.startswith("megatron-compete:")]
    text = "\n".join(said)
    assert text.count("after 2 steps") == text.count("after 10 steps") == 1, text
    assert "the checkpoint's competition schedule goes on: --compete-warmup-steps 10 -> 2" in text

"""One value of every scalar at every step, whatever a run went back to."""

import inspect
from pathlib import Path

from megatron.training.training import training_log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_compete.resilience.resuming.event_log import BY_SAMPLES, SAMPLES
from tests.training.runs import train


def steps_shown(folder: Path, name: str) -> list[int]:
    """Steps of a scalar, as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def test_a_resumed_run_shows_no_step_twice(tmp_path: Path) -> None:
    """Four steps, then the last two again; then others from the beginning."""
    logs, checkpoints = tmp_path / "tb", tmp_path / "ckpt"
    first = f"--train-iters 4 --tensorboard-dir {logs} --save {checkpoints} --save-interval 2"
    train(1, first)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    train(1, f"{first} --load {checkpoints}")
    for name in ("lm loss", "moe/load-max"):
        assert steps_shown(logs, name) == [1, 2, 3, 4], name
    batch = 8  # samples of a step
    assert steps_shown(logs / SAMPLES, "lm loss vs samples") == [batch, 2 * batch, 3 * batch, 4 * batch]
    train(1, f"--train-iters 2 --tensorboard-dir {logs}")
    for name in ("lm loss", "moe/load-max"):
        assert steps_shown(logs, name) == [1, 2], name


def test_upstream_still_logs_by_samples_through_the_same_writer() -> None:
    source = inspect.getsource(training_log)
    assert f"writer.add_scalar('learning-rate{BY_SAMPLES}', learning_rate, args.consumed_train_samples)" in source

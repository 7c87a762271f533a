"""How a rank of the real trainer leaves: exit codes, outcomes, failures and progress.json."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.run_files import read_steps
from megatron_compete.resilience.progress import last_saved
from tests.failures import read_failures
from tests.ranks import run_ranks
from tests.training.runs import MODEL, losses

pytestmark = pytest.mark.slow

PIPELINE = "--pipeline-model-parallel-size 2 --exit-signal-handler --log-interval 2 --train-iters 8"


def at_iteration(wanted: int, act: Any) -> None:
    """Have `act` called on this rank when that iteration is logged, in the midst of the trainer."""
    from megatron_compete.upstream import wrap_symbol

    def log(upstream: Any, *args: Any, **kwargs: Any) -> Any:
        if args[3] == wanted:
            act()
        return upstream(*args, **kwargs)

    wrap_symbol("megatron.training.training:training_log", log)


def told_twice() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def time_is_up() -> None:
    from megatron.training import training

    training._TRAIN_START_TIME = 0.0


def broken() -> None:
    raise RuntimeError("out of luck\nin two lines")


def refused() -> None:
    raise CompeteError("--luck 0 is too little: raise it")


def bare_exit() -> None:
    print("the weather is bad, exiting")
    sys.exit()


def exit_with_0() -> None:
    sys.exit(0)


def exit_with_75() -> None:
    sys.exit(75)


def stops_short() -> None:
    """A loop that returns as if all were done."""
    from megatron.training import training

    training.train = lambda *args, **kwargs: (3, 0)


ACTS = {
    "nothing": lambda: None, "told": told_twice, "time": time_is_up, "broken": broken, "refused": refused,
    "bare exit": bare_exit, "exit with 0": exit_with_0, "exit with 75": exit_with_75,
}  # fmt: skip


def leave_on_rank(run: str, flags: str, iteration: int, act: str, only: int | None) -> Any:
    """Exit code of the trainer on this rank, or the exception that it ends with."""
    from megatron.training import training

    from megatron_compete.resilience.stopping import leave as leave_module
    from megatron_compete.training import pretrain

    leave_module.PATIENCE_SECONDS = 2.0
    training._TRAIN_START_TIME = time.time()  # not that of the warm process it was forked from

    os.environ.update(COMPETE_RUN=run, COMPETE_ATTEMPT="1")
    if only in (None, int(os.environ["RANK"])):
        at_iteration(iteration, ACTS[act])
    sys.argv = ["pretrain", *MODEL.split(), *flags.split()]
    try:
        pretrain.main()
    except SystemExit as error:
        return error.code
    except Exception as error:
        return repr(error)
    return 0


def leave(
    run: Path, flags: str, act: str = "nothing", iteration: int = 0, only: int | None = None, ranks: int = 2
) -> Any:
    return run_ranks(ranks, leave_on_rank, str(run), flags, iteration, act, only)


def outcome(run: Path) -> str:
    return (run / "outcomes/1").read_text()


def progress(run: Path) -> dict[str, Any]:
    return json.loads((run / "progress.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both pipeline stages, all steps."""
    run = tmp_path_factory.mktemp("whole")
    assert leave(run, f"{PIPELINE} --tensorboard-dir {run}/tensorboard") == [0, 0]
    return run


def test_finished(whole: Path) -> None:
    assert outcome(whole) == "finished\n"
    logged = progress(whole)
    speed = logged.pop("tokens_per_second"), logged.pop("seconds_per_step")
    assert speed[1] > 0 and speed[0] == pytest.approx(8 * 32 / speed[1])
    assert logged.pop("loss") == pytest.approx(losses(whole / "tensorboard")[8], rel=1e-6)
    assert logged.pop("time") > 0
    assert logged == {
        "attempt": 1, "iteration": 8, "train_iters": 8, "consumed_tokens": 8 * 8 * 32, "world_size": 2, "log_interval": 2,
        "checkpoint": None,
    }  # fmt: skip


def test_told_to_stop_saves_leaves_with_75_and_goes_on(whole: Path, tmp_path: Path) -> None:
    """One rank gets the signal, twice; both leave after that step, and the same command goes on at the next."""
    flags = (
        f"{PIPELINE} --save {tmp_path}/ckpt --load {tmp_path}/ckpt --save-interval 100 --tensorboard-dir {tmp_path}/tb"
    )
    assert leave(tmp_path, flags, "told", iteration=3, only=1) == [75, 75]
    assert outcome(tmp_path) == "stopped\nafter iteration 3\n"
    assert last_saved(f"{tmp_path}/ckpt") == 3
    assert (progress(tmp_path)["iteration"], progress(tmp_path)["checkpoint"]) == (2, 3)
    assert leave(tmp_path, flags) == [0, 0]
    assert outcome(tmp_path) == "finished\n" and progress(tmp_path)["checkpoint"] == 8
    assert losses(tmp_path / "tb") == losses(whole / "tensorboard")
    steps = read_steps(tmp_path)
    assert [step["iteration"] for step in steps] == [2, 4, 6, 8] == [step["iteration"] for step in read_steps(whole)]
    assert [step["loss"] for step in steps] == [step["loss"] for step in read_steps(whole)]


def test_time_is_up(tmp_path: Path) -> None:
    assert leave(tmp_path, f"{PIPELINE} --exit-duration-in-mins 1", "time", iteration=3) == [75, 75]
    assert outcome(tmp_path) == "stopped\nafter iteration 3\n"


@pytest.mark.parametrize("act", ["nothing", "told"])
def test_the_users_own_exit_interval_is_the_end(act: str, tmp_path: Path) -> None:
    """Also where the signal comes at that very step."""
    assert leave(tmp_path, f"{PIPELINE} --exit-interval 3", act, iteration=3) == [0, 0]
    assert outcome(tmp_path) == "finished\n"


def test_a_failure_is_recorded_by_the_rank_that_has_it(tmp_path: Path) -> None:
    codes = leave(tmp_path, PIPELINE, "broken", iteration=3)
    assert codes == [repr(RuntimeError("out of luck\nin two lines"))] * 2
    assert not (tmp_path / "outcomes").exists()
    failures = read_failures(tmp_path)
    assert sorted((each.rank, each.local_rank, each.exit_code) for each in failures) == [(0, 0, 1), (1, 1, 1)]
    assert {each.message for each in failures} == {"RuntimeError: out of luck"}


@pytest.mark.parametrize("act", ["bare exit", "exit with 0", "exit with 75"])
def test_an_exit_without_an_error_code_is_no_end(act: str, tmp_path: Path) -> None:
    """Also within the training loop: nothing there has decided that it ends. Nor is our code in another's mouth."""
    assert leave(tmp_path, PIPELINE, act, iteration=3) == [1, 1]
    assert not (tmp_path / "outcomes").exists()
    function = act.replace(" ", "_")
    said = {each.message.partition(": the")[0].partition(" (")[2] for each in read_failures(tmp_path)}
    assert said == {f"{function})"} and len(read_failures(tmp_path)) == 2
    if act == "bare exit":
        message = read_failures(tmp_path)[0].message
        assert message.startswith("SystemExit without a code") and "at test_leave.py:" in message
        assert message.endswith("(bare_exit): the weather is bad, exiting")


def test_megatron_s_own_exits_are_failures(tmp_path: Path) -> None:
    """They end with code 0 upstream."""
    assert leave(tmp_path, f"{PIPELINE} --load {tmp_path}/none --exit-on-missing-checkpoint") == [1, 1]
    messages = {each.rank: each.message for each in read_failures(tmp_path)}
    assert "checkpointing.py:" in messages[0] and "checkpointing.py:" in messages[1]
    assert messages[0].endswith(": >> '--exit-on-missing-checkpoint' set ... exiting. <<")
    assert not (tmp_path / "outcomes").exists()
    other = tmp_path / "other"
    other.mkdir()
    assert leave(other, "--train-iters 3 --checkpoint-activations", ranks=1) == [1]
    assert "--checkpoint-activations is no longer valid" in read_failures(other)[0].message


def test_a_loop_that_returns_early_is_no_end(tmp_path: Path) -> None:
    from tests.resilience.stopping import test_leave

    assert run_ranks(1, test_leave.leave_early, str(tmp_path)) == [1]
    assert [each.message for each in read_failures(tmp_path)] == ["training ended after iteration 3 of 8"]
    assert not (tmp_path / "outcomes").exists()


def leave_early(run: str) -> Any:
    stops_short()
    return leave_on_rank(run, "--train-iters 8", 0, "nothing", None)


def test_what_has_nothing_left_to_do_has_finished(tmp_path: Path) -> None:
    """A checkpoint with all steps, and an evaluation alone."""
    flags = f"--train-iters 2 --save {tmp_path}/ckpt --load {tmp_path}/ckpt --save-interval 2"
    assert leave(tmp_path, flags, ranks=1) == [0]
    for again in (flags, f"{flags} --skip-train", f"--skip-train --train-iters 8 --load {tmp_path}/ckpt"):
        (tmp_path / "outcomes/1").unlink()
        assert leave(tmp_path, again, ranks=1) == [0]
        assert outcome(tmp_path) == "finished\n"


def test_help_is_no_outcome(tmp_path: Path) -> None:
    """argparse leaves with 0 once it has shown it."""
    from megatron_compete.resilience.stopping.exits import Exit, LastWords

    def left(code: Any = None) -> Exit:
        try:
            argparse.ArgumentParser().exit(code)
        except SystemExit as error:
            return Exit(error, LastWords())
        raise AssertionError

    assert left(0).is_help() and not left(2).is_help()


@pytest.mark.parametrize(("iteration", "expected"), [(1, 75), (2, "RuntimeError")], ids=["first", "later"])
def test_an_exception_after_the_signal(iteration: int, expected: Any, tmp_path: Path) -> None:
    """In the first step peers may have left already, and there is nothing to save; later it is a failure."""
    from tests.resilience.stopping import test_leave

    codes = run_ranks(1, test_leave.leave_told_and_broken, str(tmp_path), iteration)
    if expected == 75:
        assert codes == [75] and outcome(tmp_path).startswith("stopped\n") and read_failures(tmp_path) == []
    else:
        assert codes[0].startswith(expected) and len(read_failures(tmp_path)) == 1


def leave_told_and_broken(run: str, iteration: int) -> Any:
    ACTS["both"] = lambda: (told_twice(), broken())
    # A stop signal that is looked for when the step has ended; the exception comes first.
    return leave_on_rank(run, "--exit-signal-handler --log-interval 2 --train-iters 8", iteration, "both", None)


def test_refused(tmp_path: Path) -> None:
    assert leave(tmp_path, PIPELINE, "refused", iteration=2, ranks=2) == [2, 2]
    assert outcome(tmp_path).startswith("refused\n") and outcome(tmp_path).endswith(
        "--luck 0 is too little: raise it\n"
    )
    assert leave(tmp_path, "--train-iters 3 --compete-rate 7", ranks=1) == [2]
    assert "compete-rate" in outcome(tmp_path)


def test_without_a_run_folder_nothing_is_written(tmp_path: Path) -> None:
    assert run_ranks(1, leave_without_run, str(tmp_path)) == [0]
    assert list(tmp_path.iterdir()) == []


def leave_without_run(folder: str) -> Any:
    from megatron_compete.training import pretrain

    os.chdir(folder)
    os.environ.pop("COMPETE_RUN", None)
    sys.argv = ["pretrain", *MODEL.split(), "--train-iters", "1"]
    pretrain.main()
    return 0


def test_upstream_still_gathers_the_signal_from_all_ranks_at_every_step() -> None:
    """Megatron reads one number a rank from the device; once it no longer does, our reduction can go."""
    assert run_ranks(2, signal_answers) == [(2, 1, 1), (2, 1, 1)]


def signal_answers() -> tuple[int, int, int]:
    import torch
    from megatron.training.dist_signal_handler import DistributedSignalHandler

    from megatron_compete.launch import cpu_backend as cpu
    from megatron_compete.resilience.stopping.leave import watched_exit

    cpu.deactivate()
    torch.distributed.init_process_group("gloo")
    with DistributedSignalHandler() as handler:
        upstream = len(handler.signals_received())
        with watched_exit():
            quiet = handler.signals_received()
            if torch.distributed.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            heard = handler.signals_received()
    assert quiet == [False] and heard == [True]
    return upstream, len(quiet), len(heard)

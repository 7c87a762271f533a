import shlex
from pathlib import Path

import pytest

from megatron_compete.cluster.sbatch import Job, batch_script, submit
from megatron_compete.cluster.settings import Settings
from megatron_compete.common.errors import CompeteError
from tests.cluster.stand_in import LoginNode


def script(*arguments: str, run: str = "/runs/one", **settings: str) -> str:
    values = {"COMPETE_GPUS_PER_NODE": "8"} | {f"COMPETE_{name}": value for name, value in settings.items()}
    return batch_script(Job("pretrain", Path(run), 2, Settings.of(values), arguments, Path("/work")))


def options(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return dict(tuple(line.split("=", 1)) if "=" in line else (line, "") for line in lines)


def test_what_slurm_is_asked_for() -> None:
    text = script(
        TIME="24:00:00", PARTITION="gpu", ACCOUNT="p1", QOS="low", CPUS_PER_TASK="12", SBATCH="--exclusive --mem=0"
    )
    assert options(text) == {
        "job-name": "one", "nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "12",
        "time": "24:00:00", "partition": "gpu", "account": "p1", "qos": "low", "exclusive": "", "mem": "0",
        "chdir": "/work", "output": "/runs/one/logs/%j.log", "open-mode": "append", "requeue": "",
        "signal": "B:TERM@300",
    }  # fmt: skip
    assert text.startswith("#!/bin/bash\n") and text.endswith('exec bash "$COMPETE_RUN/code/slurm/pretrain.sbatch"\n')


def test_without_gpus_and_a_limit_none_is_asked_for() -> None:
    asked = options(script(GPUS_PER_NODE="0", TASKS_PER_NODE="2", SIGNAL_SECONDS="20"))
    assert asked["ntasks-per-node"] == "2" and asked["signal"] == "B:TERM@20"
    assert not {"gpus-per-node", "time", "partition", "cpus-per-task"} & set(asked)


def test_arguments_with_spaces_arrive_whole() -> None:
    last = script("--input", "a b", "*.jsonl").splitlines()[-1]
    assert shlex.split(last)[-3:] == ["--input", "a b", "*.jsonl"]


def test_a_part_of_a_chain_is_named_after_it() -> None:
    assert options(script(run="/runs/big/2-pretrain"))["job-name"] == "big-2-pretrain"


@pytest.mark.parametrize(("limit", "seconds"), [("5", "300"), ("00:01:00", "60")])
def test_a_limit_must_leave_time_before_the_signal(limit: str, seconds: str) -> None:
    with pytest.raises(CompeteError, match=f"--time {limit} is over before COMPETE_SIGNAL_SECONDS={seconds}"):
        script(TIME=limit, SIGNAL_SECONDS=seconds)


def test_submitting(login_node: LoginNode, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "CALLS"):
        monkeypatch.setenv(name, login_node.environment[name])
    assert submit(Path("x.sbatch"), None) == "101"
    submit(Path("x.sbatch"), "afterok:101")
    flags = "--parsable --dependency=afterok:101 --kill-on-invalid-dep=yes"
    assert login_node.submitted() == ["sbatch --parsable x.sbatch", f"sbatch {flags} x.sbatch"]
    monkeypatch.setenv("REFUSE", "Batch job submission failed: Invalid account")
    with pytest.raises(CompeteError, match=r"^sbatch x\.sbatch: Batch job submission failed: Invalid account$"):
        submit(Path("x.sbatch"), None)

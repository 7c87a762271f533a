"""torchrun as the job runs it: real agents of one and two nodes on this host, with ranks that stand in for a trainer."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_compete.launch.ports import free_port
from tests.failures import first_failure, read_failures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
AGENT = "import sys; from megatron_compete.launch.launchers import run_torchrun; run_torchrun(sys.argv[1:])"
RANK = "tests/launch/stand_in_rank.py"
ONE_NODE = ("--standalone", "--nproc-per-node", "2", RANK)


class Agent:
    """A node's torchrun as a process of its own."""

    def __init__(self, *command: str, run: Path | None = None, host: str = "n1") -> None:
        environment = os.environ | {"SLURMD_NODENAME": host, "OMP_NUM_THREADS": "1"}
        if run is not None:
            environment |= {"COMPETE_RUN": str(run), "COMPETE_ATTEMPT": "3"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT, *command],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.seen = ""

    def read_until(self, text: str, times: int) -> None:
        assert self.process.stdout is not None
        while self.seen.count(text) < times:
            line = self.process.stdout.readline()
            assert line, f"no {text!r} in\n{self.seen}"
            self.seen += line

    def ended(self) -> int:
        self.seen += self.process.communicate(timeout=120)[0]
        return self.process.returncode


def wait_for_listener(port: int) -> None:
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at {port}")


def two_nodes(*wishes: str, run: Path) -> list[Agent]:
    """Two agents with two ranks each, which meet as the batch script lets them."""
    command = (
        "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "7",
        "--rdzv-endpoint", f"localhost:{free_port()}", RANK, *wishes,
    )  # fmt: skip
    return [Agent(*command, run=run, host=host) for host in ("n1", "n2")]


def test_sigterm_is_handed_on_once_and_the_ranks_are_waited_for() -> None:
    agent = Agent(*ONE_NODE)
    agent.read_until("waits", 2)
    agent.process.send_signal(signal.SIGTERM)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.ended() == 75
    assert agent.seen.count("got SIGTERM 1 times") == 2
    assert "Traceback" not in agent.seen and "failed" not in agent.seen


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [(("0=0", "1=0"), 0), (("0=75", "1=75"), 75), (("0=2", "1=wait"), 2), (("0=stop", "1=3"), 1)],
    ids=["finished", "stopped", "refused", "failed"],
)
def test_exit_code_says_how_the_ranks_left(wishes: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    agent = Agent(*ONE_NODE, *wishes, run=tmp_path)
    assert agent.ended() == expected
    failures = read_failures(tmp_path)
    if expected == 1:
        assert [(each.attempt, each.rank, each.exit_code, each.message) for each in failures] == [(3, 1, 3, "exit code 3")]  # fmt: skip
    else:
        assert failures == [] and "failed" not in agent.seen


def test_a_killed_rank_is_named_in_one_line_and_its_peers_are_ended(tmp_path: Path) -> None:
    """The peer does not leave on SIGTERM, as one that waits in a collective."""
    agent = Agent(*ONE_NODE, "1=-9", "0=wait", run=tmp_path)
    assert agent.ended() == 1
    said = [line for line in agent.seen.splitlines() if "failed" in line]
    assert said == ["megatron-compete: rank 1 on host n1 failed: ended by SIGKILL"]
    assert [(each.host, each.rank, each.local_rank, each.exit_code) for each in read_failures(tmp_path)] == [("n1", 1, 1, -9)]  # fmt: skip


def test_two_nodes_stop_together(tmp_path: Path) -> None:
    agents = two_nodes(run=tmp_path)
    for agent in agents:
        agent.read_until("waits", 2)
    for agent in agents:
        agent.process.send_signal(signal.SIGTERM)
    assert [agent.ended() for agent in agents] == [75, 75]
    assert read_failures(tmp_path) == []


def test_the_cause_is_found_among_what_followed_from_it(tmp_path: Path) -> None:
    """A rank of one node is killed; those of the other node fail because of it, and say so themselves."""
    agents = two_nodes("1=-11", "2=dependent", "3=dependent", run=tmp_path)
    agents[0].read_until("waits", 2)
    assert [agent.ended() for agent in agents] == [1, 1]
    failures = read_failures(tmp_path)
    cause = first_failure(tmp_path, attempt=3)
    assert cause is not None and (cause.exit_code, cause.message) == (-11, "ended by SIGSEGV")
    assert cause == failures[0]
    followed = [each for each in failures if each.exit_code == 1]
    assert {each.host for each in followed} == {"n1", "n2"} - {cause.host}


def test_sigterm_ends_an_agent_that_waits_for_another_node() -> None:
    port = free_port()
    agent = Agent("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", RANK)
    wait_for_listener(port)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.ended() == 75
    assert agent.seen == "megatron-compete: told to stop before training began: there is nothing to save\n"

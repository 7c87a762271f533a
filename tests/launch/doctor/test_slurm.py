"""What is said about Slurm, and the report from all nodes, with commands that stand in for a cluster's."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.doctor import nodes, slurm

JOB = {"SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": "1"}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put shell commands first on the path."""

    def put(**bodies: str) -> None:
        for name, body in bodies.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    return put


def test_no_slurm_is_one_line(tmp_path: Path) -> None:
    (only,) = slurm.slurm_findings({"PATH": str(tmp_path)}, "MPICH 5.0.2")
    assert only.state == "missing" and only.serves == ("slurm",)
    without_commands, job = slurm.slurm_findings({"PATH": str(tmp_path)} | JOB, "")
    assert "not in this container" in without_commands.value
    assert job.value == "job 41, 2 nodes (n[1-2]), 1 restarts"


def test_a_cluster_shows_version_partitions_and_how_mpi_starts(commands) -> None:
    commands(
        sinfo='if [ "$1" = --version ]; then echo slurm-wlm 24.05.4; else echo "gpu* 128"; echo "cpu 4"; fi',
        srun='echo "MPI plugin types are..." >&2; printf "\\tcray_shasta\\n\\tpmi2\\n\\tpmix\\n\\tnone\\n" >&2',
    )
    cluster, start = slurm.slurm_findings(dict(os.environ), "Open MPI v5.0.3")
    assert cluster.state == "ok" and cluster.value == "24.05.4; partitions gpu (128 nodes), cpu (4 nodes)"
    assert start.state == "ok" and start.value == "Open MPI v5.0.3: srun --mpi=pmix (of cray_shasta, pmi2, pmix, none)"


def test_a_cluster_that_does_not_answer_is_missing_with_its_last_word(commands) -> None:
    commands(sinfo='echo "sinfo: error: resolve" >&2; echo "sinfo: fatal: no configuration" >&2; exit 1', srun="exit 1")
    (only,) = slurm.slurm_findings(dict(os.environ), "MPICH 5.0.2")
    assert only.state == "missing" and "(sinfo: fatal: no configuration)" in only.value


@pytest.mark.parametrize(
    ("library", "plugins", "start"),
    [
        ("Open MPI v5.0.3", ["none", "pmi2"], ""),
        ("Open MPI v4.1.7", ["none", "pmi2"], "pmi2"),
        ("Open MPI v4.1.7", ["pmix_v4", "pmi2"], "pmix"),
        ("MPICH 5.0.2", ["pmix", "pmi2"], "pmi2"),
        ("Intel(R) MPI Library 2021.14", ["none"], ""),
    ],
)
def test_mpi_needs_a_plugin_that_it_knows(library: str, plugins: list[str], start: str) -> None:
    finding = slurm.mpi_start_finding(library, plugins)
    assert finding.state == ("ok" if start else "missing")
    assert f"srun --mpi={start} " in finding.value if start else "mpirun" in finding.advice


def report(host: str, **states: str) -> str:
    findings = [
        {
            "group": "G",
            "name": name,
            "state": state.split()[0],
            "value": state,
            "per_node": name == "disk",
            "serves": ["mpi"],
        }
        for name, state in states.items()
    ]
    works = "problem" not in " ".join(states.values())
    return json.dumps({"host": host, "required": ["mpi", "training"], "works": works, "findings": findings})


def compared(commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *reports: str) -> dict:
    (tmp_path / "out").write_text("prolog says hello\n" + "\n".join(reports) + "\n")
    commands(srun=f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/out; echo "srun: error: n2: exit code 1" >&2; exit 1')
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    return nodes.compare_nodes("training,mpi", 60.0)


def test_nodes_that_differ_are_named(commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = compared(
        commands, monkeypatch, tmp_path, report("n2", torch="ok 2.11", disk="ok 7 GiB", GPUs="problem ECC"),
        report("n1", torch="ok 2.11", disk="ok 5 GiB", GPUs="ok 8 x H100"), report("n3", torch="ok 2.11", disk="note full"),
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--nodes 3 --ntasks 3 --ntasks-per-node 1 ") and sys.executable in asked
    assert asked.endswith("doctor --json --require training,mpi --timeout 60\n")
    out = io.StringIO()
    nodes.print_differences(found, out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "n3: G, disk: note; 2 nodes: ok", "free space may differ, its being short may not"
    assert lines[1:3] == [
        "n2: G, GPUs: problem, problem ECC; 1 nodes: ok, ok 8 x H100",
        "n3: G, GPUs: absent; 1 nodes: ok, ok 8 x H100",
    ]
    assert lines[3] == "3 nodes, 3 differences; what is required does not work on n2 (GPUs)"


def test_a_node_that_does_not_answer_is_an_error(commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="2 of 3 nodes answered \\(n1, n2\\), srun: srun: error: n2"):
        compared(commands, monkeypatch, tmp_path, report("n1", torch="ok"), report("n2", torch="ok"))


def test_nodes_outside_an_allocation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CompeteError, match="--nodes needs a Slurm allocation"):
        nodes.compare_nodes("training", 60.0)

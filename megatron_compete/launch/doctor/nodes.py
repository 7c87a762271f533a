"""The same report from every node of an allocation, and in what the nodes differ."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from typing import Any, TextIO

from megatron_compete.common.errors import CompeteError

Report = dict[str, Any]

START_SECONDS = 300.0
"""For srun to start its tasks, on top of what the probes may take."""


def compare_nodes(require: str, timeout_seconds: float) -> dict[str, Report]:
    """Run `doctor --json` once on every node of this allocation.

    Returns:
        host -> its report, as `report.report_document` makes it.
    Raises:
        CompeteError: not in an allocation, or not every node answered.
    """
    nodes = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES")
    if nodes is None:
        raise CompeteError("--nodes needs a Slurm allocation: salloc --nodes 4 megatron-compete doctor --nodes")
    command = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--overlap", "--quiet"]
    doctor = [sys.executable, "-m", "megatron_compete", "doctor", "--json", "--require", require]
    try:
        result = subprocess.run(
            [*command, *doctor, "--timeout", f"{timeout_seconds:g}"], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_seconds * 2 + START_SECONDS, check=False,
        )  # fmt: skip
    except OSError as error:
        raise CompeteError(f"--nodes needs srun: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CompeteError("srun did not come back: see squeue, and sinfo for nodes that are down") from None
    reports = dict(sorted(_reports(result.stdout)))
    if len(reports) != int(nodes):
        last = result.stderr.strip().splitlines()[-1:] or ["srun said nothing"]
        answered = ", ".join(reports) or "none"
        raise CompeteError(f"{len(reports)} of {nodes} nodes answered ({answered}), srun: {last[0]}")
    return reports


def _reports(output: str) -> list[tuple[str, Report]]:
    found = []
    for line in output.splitlines():
        try:
            report = json.loads(line)
        except ValueError:
            continue  # a prolog's or a module's words
        if isinstance(report, dict) and "findings" in report:
            found.append((report["host"], report))
    return found


def print_differences(nodes: dict[str, Report], file: TextIO) -> None:
    """One line for each finding that is not the same on all nodes, naming the nodes of each value but the commonest."""
    lines = []
    for (group, name), values in _by_finding(nodes).items():
        if len(values) == 1:
            continue
        commonest = max(values, key=lambda value: len(values[value]))
        for value, hosts in values.items():
            if value != commonest:
                lines.append(
                    f"{', '.join(hosts)}: {group}, {name}: {value}; {len(values[commonest])} nodes: {commonest}"
                )
    for line in lines:
        print(line, file=file)
    unfit = [f"{host} ({_failing(report)})" for host, report in nodes.items() if not report["works"]]
    verdict = f"what is required does not work on {', '.join(unfit)}" if unfit else "what is required works on all"
    print(f"{len(nodes)} nodes, {len(lines)} differences; {verdict}", file=file)


def _failing(report: Report) -> str:
    """Names of the findings that keep a node from what is required of it."""
    required = set(report["required"])
    return ", ".join(
        one["name"] for one in report["findings"] if one["state"] == "problem" and required & set(one["serves"])
    )


def _by_finding(nodes: dict[str, Report]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(group, name) -> state and value -> hosts; a finding that a host lacks counts as `absent` there."""
    keys = dict.fromkeys((one["group"], one["name"]) for report in nodes.values() for one in report["findings"])
    found: dict[tuple[str, str], dict[str, list[str]]] = {key: defaultdict(list) for key in keys}
    for host, report in nodes.items():
        own = {(one["group"], one["name"]): one for one in report["findings"]}
        for key in keys:
            found[key][_shown(own.get(key))].append(host)
    return found


def _shown(finding: dict[str, Any] | None) -> str:
    if finding is None:
        return "absent"
    return finding["state"] if finding["per_node"] else f"{finding['state']}, {finding['value']}"

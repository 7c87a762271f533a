"""The findings as a table for people and as JSON for scripts."""

import json
import os
import platform
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_compete import __version__
from megatron_compete.launch.doctor.finding import CAPABILITIES, Finding, failing, settle, works

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}

WIDTH = 118
"""Columns that the table needs; a narrower terminal breaks its lines, a pipe never does."""


def print_report(findings: list[Finding], required: set[str], file: TextIO) -> None:
    """Write one table, grouped, and a last line with the verdict."""
    console = Console(file=file, highlight=False)
    console.width = max(console.width, WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    for title, is_text in (("", False), ("", False), ("found", True), ("what to do", True)):
        table.add_column(title, ratio=1 if is_text else None, no_wrap=not is_text, overflow="fold")
    for group, members in groupby(settle(findings, required), key=lambda finding: finding.group):
        table.add_row("", Text(group, style="bold"), "", "")
        for finding in members:
            state = Text(finding.state, style=STYLES[finding.state])
            table.add_row(state, Text(f"  {finding.name}"), Text(finding.value), Text(finding.advice))
    with console.capture() as capture:
        console.print(table, "", Text(verdict(findings, required)), sep="\n")
    file.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def verdict(findings: list[Finding], required: set[str]) -> str:
    """One line: whether everything required works, and what else is a problem."""
    failed = failing(findings, required)
    others = [finding.name for finding in findings if finding.state == "problem" and finding not in failed]
    names = ", ".join(name for name in CAPABILITIES if name in required)
    line = f"{names}: " + (f"no ({', '.join(finding.name for finding in failed)})" if failed else "yes")
    return line + (f"; problems elsewhere: {', '.join(others)}" if others else "")


def report_document(findings: list[Finding], required: set[str]) -> dict[str, Any]:
    """The same as JSON; the keys are stable, names and values are for people."""
    return {
        "format": 1,
        "megatron_compete": __version__,
        "host": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "required": sorted(required),
        "works": not failing(findings, required),
        "capabilities": {name: works(findings, name) for name in CAPABILITIES},
        "findings": [
            {
                "group": finding.group,
                "name": finding.name,
                "state": finding.state,
                "value": finding.value,
                "advice": finding.advice,
                "serves": list(finding.serves),
                "per_node": finding.per_node,
            }
            for finding in settle(findings, required)
        ],
    }


def print_json(document: dict[str, Any], file: TextIO) -> None:
    """Readable on a terminal, one line elsewhere."""
    print(json.dumps(document, indent=2 if file.isatty() else None, ensure_ascii=False), file=file)

"""Steps of a demo: each a command that a user would type, shown while it runs."""

import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from megatron_compete.common.errors import CompeteError

ROOT = Path(__file__).resolve().parent.parent
PROGRESS = re.compile(r"iteration\s+(\d+)/\s*(\d+) .*?lm loss: (\S+)")

console = Console(highlight=False)


@dataclass(frozen=True)
class Run:
    """Where everything of a demo lies: `run.hf` is the folder of that name in it, of those that it has."""

    folder: Path
    names: tuple[str, ...]

    def __getattr__(self, name: str) -> Path:
        if name in self.names:
            return self.folder / name
        raise AttributeError(name)


def run(title: str, command: list[str], log: Path) -> None:
    """Run one command with its output in `log`; training steps are shown as they come."""
    console.print(f"[bold]{title}[/bold]  [dim]{_short(command)}[/dim]")
    began = time.monotonic()
    with log.open("w") as output:
        output.write(f"$ {shlex.join(command)}\n")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            step = PROGRESS.search(line)
            if step and int(step[1]) % 50 == 0:
                console.print(f"  step {step[1]:>4} of {step[2]}   loss {float(step[3]):.3f}")
    if process.wait() != 0:
        console.print("".join(log.read_text().splitlines(keepends=True)[-25:]), markup=False)
        raise CompeteError(f"'{title}' failed with exit code {process.returncode}: see {log}")
    console.print(f"  [green]done[/green] in {time.monotonic() - began:.0f} s")


def _short(command: list[str]) -> str:
    """The tool's or verb's name; its log's first line has the whole command."""
    return " ".join(part for part in command[1:6] if not part.startswith(("-", "/", "runs")))

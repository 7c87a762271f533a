"""`examples/core_loop.py`: competition in a loop of Megatron-Core alone, on one rank and on two."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.config import CompeteConfig
from megatron_compete.schedule import CompetitionSchedule
from tests.ranks import run_ranks

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "core_loop.py"
LINE = re.compile(r"step (\d+): loss (\S+), (\d) layers compete, agreement (\S+)")


def run(*arguments: str) -> list[tuple[str, ...]]:
    """Step, loss, competing layers and agreement of each step that rank 0 printed."""
    sys.argv = [str(SCRIPT), *arguments]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return LINE.findall(printed.getvalue())


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_learns_and_competes_as_scheduled(ranks: int) -> None:
    steps = run_ranks(ranks, run, "--steps", "12")[0]
    assert [int(step) for step, *_ in steps] == list(range(1, 13))
    assert float(steps[-1][1]) < 0.6 * float(steps[0][1])
    schedule = CompetitionSchedule.of(CompeteConfig(rate=0.4, max_active_layers=2), ((0, 0),) * 4)
    assert [int(layers) for _, _, layers, _ in steps] == schedule.table(0, 12).sum(axis=1).tolist()
    assert all((agreement == "nan") == (layers == "0") for _, _, layers, agreement in steps)


def test_a_saved_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = run_ranks(2, run, "--steps", "6")[0]
    first = run_ranks(2, run, "--steps", "3", "--save", str(tmp_path / "saved"))[0]
    rest = run_ranks(2, run, "--steps", "6", "--load", str(tmp_path / "saved"))[0]
    assert first + rest == whole
    with pytest.raises(AssertionError, match=r"--compete-rate 0\.4 -> 0\.2"):
        run_ranks(2, run, "--steps", "6", "--load", str(tmp_path / "saved"), "--rate", "0.2")


def test_it_needs_no_trainer_of_megatrons() -> None:
    """On a GPU: the CPU stand-in is one for Megatron's trainer."""
    code = (
        f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); "
        "assert not [name for name in sys.modules if name.startswith('megatron.training')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=100)

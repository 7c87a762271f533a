"""`examples/studies/theorem.py`: densities, distances and exponents against plain references, and the command's log."""

import itertools
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.studies import theorem
from examples.studies.theorem_profile import Case, Profile, draw_truth, least_distance
from examples.studies.theorem_report import exponent, write_report
from megatron_compete.common.errors import CompeteError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "studies" / "theorem.py"
PUBLISHED = ROOT / "benchmarks" / "studies" / "theorem"
CASES = [
    Case("linear", "softmax", True, "intercept"),
    Case("tanh", "softmax", False, "gate-slope", truth=1),
    Case("gelu", "response", True, "both", truth=3, experts=3),
    Case("relu", "response", False, "opposite", truth=2),
    Case("linear", "softmax", True, "variance", truth=1, atoms=3),
    Case("tanh", "share", False, "slope", truth=1),
]


def drawn(profile: Profile, scale: float = 0.1) -> torch.Tensor:
    """Free parameters [Z] near the truth."""
    return scale * torch.randn(len(profile.free_ZPE), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_density(case: Case, table_PE: np.ndarray, x: float, y_Y: np.ndarray) -> np.ndarray:
    """The mixture as its module states it, one input at a time."""
    slope_E, intercept_E, variance_E, gate_slope_E, gate_bias_E = table_PE
    z_E = x * slope_E + intercept_E
    mean_E = {"linear": z_E, "tanh": 2 * np.tanh(z_E), "relu": 2 * np.maximum(z_E, 0)}[case.expert]
    response_E = np.log1p(np.exp(mean_E))
    scores = {"softmax": x * gate_slope_E, "response": response_E, "share": np.log(response_E)}
    gate_E = np.exp(scores[case.gate] + gate_bias_E)
    parts_YE = np.exp(-((y_Y[:, None] - mean_E) ** 2) / (2 * np.exp(variance_E))) / np.sqrt(
        2 * np.pi * np.exp(variance_E)
    )
    return parts_YE @ (gate_E / gate_E.sum())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_densities_integrate_to_one(case: Case) -> None:
    profile = Profile(case, 0.1)
    for free_Z in (torch.zeros(len(profile.free_ZPE), dtype=torch.float64), drawn(profile)):
        density_XY = profile.log_parts(profile.features(profile.table(free_Z))).logsumexp(dim=-1).exp()
        step = profile.y_Y[1] - profile.y_Y[0]
        assert (density_XY.sum(dim=1) * step).numpy() == pytest.approx(1, abs=1e-10)
        assert float((profile.root_weight_XY**2 * density_XY).sum()) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_jacobian_is_that_of_finite_differences(case: Case) -> None:
    profile = Profile(case, 0.1)
    free_Z, step = drawn(profile), 1e-5
    columns = [
        (profile.residuals(free_Z + step * unit) - profile.residuals(free_Z - step * unit)) / (2 * step)
        for unit in torch.eye(len(free_Z), dtype=torch.float64)
    ]
    expected = torch.stack(columns, dim=1)
    kinks = 1e-3 if case.expert == "relu" else 1e-7  # where one lies within a step of a node
    assert (profile.jacobian(free_Z) - expected).abs().max() < kinks * expected.abs().max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_truth_is_at_no_distance_and_what_is_held_stays(case: Case) -> None:
    assert not Profile(case, 0.0).residuals(torch.zeros(len(Profile(case, 0.0).free_ZPE), dtype=torch.float64)).any()
    profile = Profile(case, 0.3)
    table_PE = profile.table(drawn(profile)) - profile.truth_PE
    held = {"intercept": (1, 0.3), "gate-slope": (3, 0.3), "slope": (0, 0.3), "both": (0, 0.3 / math.sqrt(2)), "opposite": (0, 0.3 / math.sqrt(2)), "variance": (2, 0.3)}  # fmt: skip
    row, difference = held[case.split]
    assert float(table_PE[row, 0] - table_PE[row, 1]) == pytest.approx(difference, abs=1e-12)
    if case.split in ("both", "opposite"):
        sign = 1 if case.split == "both" else -1
        assert float(table_PE[1, 0] - table_PE[1, 1]) == pytest.approx(sign * difference, abs=1e-12)
    assert table_PE[4, : case.atoms].numpy() == pytest.approx(float(table_PE[4, 0]))
    assert not table_PE[3:, -1].any(), "the last expert's gate is the reference"


@pytest.mark.parametrize("case", [CASES[0], *CASES[3:]], ids=lambda case: case.name)
def test_the_distance_is_that_of_a_dense_grid(case: Case) -> None:
    profile = Profile(replace(case, refined=2), 0.2)
    free_Z = drawn(profile, 0.05)
    y_Y = np.linspace(-12, 12, 1201)
    middles = (np.arange(1200) + 0.5) / 300 - 2
    squares = []
    for x in middles:
        fitted, true = (
            plain_density(case, table.numpy(), x, y_Y) for table in (profile.table(free_Z), profile.truth_PE)
        )
        squares.append(((np.sqrt(fitted) - np.sqrt(true)) ** 2).sum() * (y_Y[1] - y_Y[0]) / 2)
    expected = math.sqrt(np.mean(squares))
    assert math.sqrt(float((profile.residuals(free_Z) ** 2).sum()) / 2) == pytest.approx(expected, rel=1e-5)


def test_drawn_truths_are_told_apart_by_their_seed() -> None:
    (first, share), (again, _), (other, _) = draw_truth(1, 2), draw_truth(1, 2), draw_truth(2, 2)
    assert (first == again).all() and (first != other).any()
    assert 0.3 <= share <= 0.7
    assert (np.abs(first[1] / first[0]) < 2).all(), "kinks are within the input"


def test_the_exponent_of_a_power() -> None:
    eps = theorem.DISTANCES
    found = exponent(eps, [0.7 * one**3 if at < 4 else 1.0 for at, one in enumerate(eps)])
    assert found.fitted == pytest.approx(3) and found.local == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("linear", "share", False, "intercept"), 2),
        (Case("relu", "response", True, "opposite"), 1.5),
        (Case("linear", "softmax", True, "intercept"), 4),
        (Case("linear", "response", True, "intercept"), 2),
        (Case("tanh", "softmax", True, "intercept"), 2),
        (Case("linear", "softmax", False, "intercept", atoms=3), 6),
    ],
    ids=lambda one: one.name if isinstance(one, Case) else str(one),
)
def test_exponents_of_some_cells(case: Case, expected: float) -> None:
    small, large = theorem.distances_of(case)[:2] if case.atoms == 2 else (0.1, 0.2)
    slope = math.log(min(least_distance(case, large)) / min(least_distance(case, small))) / math.log(large / small)
    assert slope == pytest.approx(expected, abs=0.05)


def test_planned_profiles_have_names_of_their_own() -> None:
    names = [case.name for case in theorem.planned()]
    assert len(names) == len(set(names)) == 276
    assert {
        f"linear/{gate}/intercept/truth-0" for gate in ("softmax", "softmax-bias", "response", "response-bias")
    } < set(names)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--only", "linear/response*/intercept/truth-[01]"]
    log = tmp_path / "distances.jsonl"
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (log.exists() and log.read_bytes().count(b"\n")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = log.read_bytes().splitlines(keepends=True)[0]
    log.write_bytes(first + first[:100])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = log.read_bytes().splitlines(keepends=True)
    assert lines[0] == first and len(lines) == 4
    assert {Case(**json.loads(line)["case"]).name for line in lines} == {
        f"linear/{gate}/intercept/truth-{truth}"
        for gate, truth in itertools.product(("response", "response-bias"), (0, 1))
    }
    assert f"3 of 3: {theorem.read_lines(log)[-1].case.name}" in done.stdout
    assert "| intercepts | linear |  |  | 2.00 [" in (tmp_path / "report.md").read_text()


def test_input_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["theorem.py", "--out", str(tmp_path), *flags])
        theorem.main()

    with pytest.raises(CompeteError, match=r"--only cubic/\* is no profile's name"):
        run("--only", "cubic/*")
    with pytest.raises(CompeteError, match="has no finished profile: run the command without --report-only"):
        run("--report-only")
    for flags in (["--jobs", "0"], ["--report-only", "--only", "linear/*"]):
        with pytest.raises(SystemExit):
            run(*flags)
    log = tmp_path / "distances.jsonl"
    log.write_text('{"case": {"expert": "linear"}}\n')
    with pytest.raises(CompeteError, match="line 1 is no finished profile"):
        run("--report-only")
    entry = json.loads((PUBLISHED / "distances.jsonl").read_text().partition("\n")[0])
    log.write_text(json.dumps(entry | {"eps": [0.5]}) + "\n")
    with pytest.raises(CompeteError, match="line 1 has other distances"):
        run("--report-only")


def test_the_published_report_follows_from_its_log(tmp_path: Path) -> None:
    lines = theorem.read_lines(PUBLISHED / "distances.jsonl")
    planned = theorem.planned()
    assert {line.case for line in lines} == set(planned)
    write_report(lines, len(planned), tmp_path)
    for name in ("exponents.csv", "report.md"):
        assert (tmp_path / name).read_text() == (PUBLISHED / name).read_text()

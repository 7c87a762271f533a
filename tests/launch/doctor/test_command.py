"""The verb as a user and a script call it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.launch.doctor.finding import CAPABILITIES, Finding, failing, settle, works
from megatron_compete.launch.doctor.report import print_report, report_document, verdict

ROOT = Path(__file__).resolve().parents[3]


def doctor(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment.pop("PYTHONWARNINGS", None)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, filter(None, (path, ROOT))))
    return subprocess.run(
        [sys.executable, "-m", "megatron_compete", "doctor", *arguments],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=500,
    )  # fmt: skip


def test_this_environment_can_train() -> None:
    result = doctor("--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("\n") == 1, "one line where nobody looks"
    report = json.loads(result.stdout)
    assert report["works"] and report["capabilities"]["training"] and report["required"] == ["training"]
    assert set(report["capabilities"]) == set(CAPABILITIES)
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert states["PyTorch"] == states["Megatron-Core"] == states["trainer entry"] == "ok"
    assert set(states.values()) <= {"ok", "note", "problem"}


def test_a_recipe_instead() -> None:
    result = doctor("--recipe", "examples/moe_30b_a3b.yaml", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["refused"] is None and "softmax scores" in [feature["name"] for feature in document["features"]]
    assert doctor("--recipe", "nowhere.yaml").returncode == 2


def test_a_segfaulting_te_is_a_line_of_the_table_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    result = doctor(path=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    words = " ".join(result.stdout.split())
    assert "Transformer Engine its import ended the process" in words and "SIGSEGV" in words
    last = result.stdout.splitlines()[-1]
    assert last.startswith("training: no (") and "Transformer Engine" in last and "Megatron-Core" in last


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--require", "training,warp"), "error: --require training,warp: choose from training, gpu, "),
        (("--timeout", "0"), "error: --timeout 0 is out of range"),
        (("now",), "error: doctor takes no argument now"),
    ],
)
def test_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    result = doctor(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(said) and result.stderr.count("\n") == 1


FINDINGS = [
    Finding("Software", "PyTorch", "ok", "2.11", serves=("training", "gpu")),
    Finding("Software", "Transformer Engine", "missing", "not installed", "install it", ("fp8",)),
    Finding("GPUs", "links", "note", "3 of 6 pairs", "keep groups inside"),
    Finding("Network", "InfiniBand", "problem", "0 of 2 devices active", "see ibstat", ("infiniband",)),
]


def test_what_is_missing_is_a_problem_only_where_it_is_required() -> None:
    assert [finding.state for finding in settle(FINDINGS, {"training"})] == ["ok", "note", "note", "problem"]
    assert [finding.state for finding in settle(FINDINGS, {"fp8"})] == ["ok", "problem", "note", "problem"]
    assert failing(FINDINGS, {"training", "gpu"}) == []
    assert failing(FINDINGS, {"fp8", "infiniband"}) == [FINDINGS[1], FINDINGS[3]]


def test_a_capability_works_if_something_serves_it_and_nothing_fails_it() -> None:
    assert works(FINDINGS, "training") and not works(FINDINGS, "fp8") and not works(FINDINGS, "infiniband")
    assert not works(FINDINGS, "slurm"), "nothing was found that serves it"


def test_the_verdict_names_what_fails_and_what_else_is_a_problem() -> None:
    assert verdict(FINDINGS, {"training"}) == "training: yes; problems elsewhere: InfiniBand"
    assert verdict(FINDINGS, {"infiniband", "fp8"}) == "fp8, infiniband: no (Transformer Engine, InfiniBand)"


def test_table_and_document_say_the_same() -> None:
    out = io.StringIO()
    print_report(FINDINGS, {"fp8"}, out)
    words = " ".join(out.getvalue().split())
    document = report_document(FINDINGS, {"fp8"})
    assert document["works"] is False and document["required"] == ["fp8"]
    for finding in document["findings"]:
        assert " ".join((finding["state"], finding["name"], finding["value"], finding["advice"])).strip() in words
    assert out.getvalue().splitlines()[-1] == "fp8: no (Transformer Engine); problems elsewhere: InfiniBand"
    assert not any(line.endswith(" ") for line in out.getvalue().splitlines())

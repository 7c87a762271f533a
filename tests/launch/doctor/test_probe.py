"""A package whose import fails, crashes or hangs is one answer; the report lives on."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest

from megatron_compete.launch.doctor import child
from megatron_compete.launch.doctor.probe import probe, probe_all

PATIENCE_SECONDS = 120.0


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package of this name with this source before all others, for child processes only."""

    def put(name: str, source: str) -> None:
        package = tmp_path / "path" / name
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]))

    return put


def test_what_is_there_answers_and_what_is_not_is_missing(stand_in) -> None:
    stand_in("deep_ep", "print('noise on stdout')\nclass Buffer: pass\n")
    found = probe_all(["torch", "deep_ep", "mpi4py"], PATIENCE_SECONDS)
    assert found["torch"].state == "there" and found["torch"].facts["computes"] == ""
    assert found["deep_ep"].facts == {"buffer": True, "hybrid": False}
    assert found["mpi4py"].state == "there" and found["mpi4py"].facts["library"]


def test_nothing_of_that_name_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(child.PROBES, "apex", ("no_such_package_at_all", child.apex_facts))
    assert child.answer("apex") == {"state": "missing"}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "raise OSError('libcudnn.so.9: cannot open shared object file')",
            "OSError: libcudnn.so.9: cannot open shared",
        ),
        ("import no_such_module_of_theirs", "ModuleNotFoundError: No module named 'no_such_module_of_theirs'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its import ended the process with SIGSEGV"),
        ("import os; os.write(2, b'out of wit\\n'); os._exit(3)", "with exit code 3: out of wit"),
        ("import sys; sys.exit('go away')", "SystemExit: go away"),
    ],
    ids=("library", "dependency", "segfault", "exit", "sys-exit"),
)
def test_a_broken_import_says_how(stand_in, source: str, why: str) -> None:
    stand_in("transformer_engine", source)
    found = probe("transformer_engine", PATIENCE_SECONDS)
    assert found.state == "broken" and why in found.why and "\n" not in found.why


def hangs(name: str, seconds: float) -> bool:
    found = probe(name, seconds)
    return found.state == "broken" and found.why == f"its import did not end within {seconds:g} s"


def test_a_hanging_import_is_ended_with_all_that_it_started(stand_in, tmp_path: Path) -> None:
    note = tmp_path / "child"
    stand_in(
        "apex",
        "import subprocess, time\n"
        f"open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
        "time.sleep(600)\n",
    )
    patience_seconds = next(seconds for seconds in (5, 20, 80) if hangs("apex", seconds) and note.exists())
    assert patience_seconds
    status = Path(f"/proc/{note.read_text()}/stat")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline, "the import's own child outlived it"
        time.sleep(0.05)


def test_te_without_a_gpu_says_why_of_each_recipe(stand_in) -> None:
    stand_in("transformer_engine", "__version__ = '2.14'")
    package = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) / "transformer_engine"
    (package / "pytorch.py").write_text(
        "def is_fp8_available(return_reason=False): return (True, '')\n"
        "def is_mxfp8_available(return_reason=False): return (False, 'Device compute capability 10.0 or higher')\n"
        "def is_fp8_block_scaling_available(return_reason=False): raise RuntimeError('Found no NVIDIA driver')\n"
    )
    recipes = probe("transformer_engine", PATIENCE_SECONDS).facts["recipes"]
    assert recipes == {
        "delayed": "",
        "tensorwise": "",
        "blockwise": "Found no NVIDIA driver",
        "mxfp8": "Device compute capability 10.0 or higher",
    }


def test_megatron_has_every_fact_that_the_report_reads() -> None:
    """Each name is where `MEGATRON_FACTS` says; an upstream that moves one fails here, not silently."""
    optional = {"rope"}  # not defined at all without Transformer Engine
    for fact, (module, attribute) in child.MEGATRON_FACTS.items():
        assert hasattr(importlib.import_module(module), attribute) or fact in optional, f"{module}.{attribute} is gone"
    facts = probe("megatron", PATIENCE_SECONDS).facts
    assert facts["version"].startswith("0.19") and set(child.MEGATRON_FACTS) < set(facts)
    json.dumps(facts)


def test_every_probe_names_a_package() -> None:
    assert all(package.isidentifier() and callable(ask) for package, ask in child.PROBES.values())

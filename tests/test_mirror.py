"""Tests lie where what they test lies: `megatron_compete/a/b.py` is tested in `tests/a/`, by `test_b.py` where it has one.

A file that only works within its neighbour's may be tested through it: then a test of the room imports from it.
"""

import ast
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import megatron_compete

PACKAGE = Path(megatron_compete.__file__).parent
TESTS = Path(__file__).parent

THROUGH = {
    "checkpoint/chunks.py": ("checkpoint/test_import_hf.py", "chunks of imported models, bit for bit"),
    "checkpoint/prepared.py": ("checkpoint/test_export.py", "what an export decides first"),
    "checkpoint/source.py": ("checkpoint/test_import_hf.py", "what an import has read"),
    "checkpoint/vlm/card.py": ("checkpoint/vlm/test_writing.py", "the README of an exported model"),
    "checkpoint/vlm/fresh.py": ("checkpoint/vlm/test_reading.py", "models that are put together"),
    "checkpoint/families/*.py": (
        "checkpoint/families/test_parity.py",
        "tables: exported models' logits are Megatron's",
    ),
    "checkpoint/hf_tokenizer.py": ("checkpoint/test_tokenizer.py", "its sentencepiece half; both are one export"),
    "checkpoint/import_recipe.py": ("checkpoint/test_import_hf.py", "recipes of imported models, which train"),
    "cluster/tool_jobs.py": ("cluster/test_chain.py", "words of the chain's jobs"),
    "common/config_fields.py": ("test_config.py", "CompeteConfig is what it checks"),
    "data/preprocessing/*.py": ("data/test_preprocess.py", "whole jobs against Megatron's own tool"),
    "launch/agent.py": ("launch/test_run_torchrun.py", "torchrun's agent, in real launches"),
    "launch/doctor/examine.py": ("launch/doctor/test_command.py", "what the command runs"),
    "layout/*.py": ("layout/test_rules.py", "the arguments that rules are asked of"),
    "moe/*.py": ("moe/test_layouts.py", "parts of the layer, which is the dense reference in every layout"),
    "moe/baselines/*.py": ("moe/baselines/test_variable.py", "the same of the baselines"),
    "moe/kernels/*.py": ("moe/kernels/test_kernels.py", "Triton code, which runs in the scorer alone"),
    "resilience/reliability.py": ("training/test_pretrain.py", "hooks of the trainer; the faults are in tests/faults"),
    "study/run.py": ("study/test_command.py", "the command, in a process of its own"),
    "study/run_files.py": ("study/test_train.py", "a run's folder"),
    "study/warm_imports.py": ("study/test_command.py", "imports alone"),
    "training/argument_help.py": ("cli/test_cli.py", "`pretrain --help`"),
    "training/parse.py": ("layout/test_rules.py", "the order of the checks: ours, then Megatron's"),
    "training/spec.py": ("training/test_pretrain.py", "the trainer's model; faults/injected.py replaces it"),
}
"""Files that no test of their room imports, the tests that they are tested by, and why there."""

BEHAVIOUR = {
    "checkpoint/families/test_parity.py": "every family's logits",
    "checkpoint/test_custom_code.py": "an exported model's code beside it, as transformers loads it",
    "checkpoint/test_next_command.py": "the command that an import prints runs",
    "checkpoint/test_other_clients.py": "exports in other programs",
    "checkpoint/test_trained.py": "checkpoints of the trainer, of all layouts",
    "cli/test_cli.py": "the command's folder is `cli`",
    "cli/test_wheel.py": "every verb from an installed wheel, without the checkout",
    "cluster/test_tool_scripts.py": "slurm/*.sbatch of the tools",
    "data/test_commands.py": "tools/*.py one after the other",
    "data/test_dataset_tools.py": "tools/*.py on damaged datasets",
    "data/test_kill.py": "preprocessing that is killed anywhere",
    "data/test_large.py": "100 MB in every way",
    "data/test_tokenizer_kinds.py": "every kind of tokenizer through the tool",
    "launch/doctor/test_machine.py": "what system, GPUs and network say together",
    "launch/test_rank_environment.py": "variables of a rank, whoever starts it",
    "launch/test_run_torchrun.py": "launchers with ranks that fail or wait",
    "moe/*.py": "one layer, whose promises go across its files",
    "moe/baselines/*.py": "the same of the baselines' layers",
    "moe/kernels/*.py": "the same of the kernels, on CPUs by Triton's interpreter",
    "audit/test_pages.py": "an audit's pages in a browser",
    "report/test_pages.py": "pages in a browser, whoever writes them",
    "study/test_published.py": "published studies reproduce from their logs",
    "upstream/test_hooks.py": "what upstream offers no hook for, whoever replaces it",
    "training/vlm/test_training.py": "runs of the real entry",
    "training/*.py": "runs of the real entry: promises go across its files",
    "vlm/*.py": "one model, whose promises go across its files",
}
"""Test files that are named by what they show, not by a file."""


def exempt(path: Path, patterns: Iterable[str]) -> bool:
    """Whether an exception is for this path; a `*` stays in its folder."""
    names = (pattern for pattern in patterns if path.parent == Path(pattern).parent)
    return any(fnmatch(path.name, Path(pattern).name) for pattern in names)


def package_files() -> list[Path]:
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path for path in files if path.name not in ("__init__.py", "__main__.py"))


def unnamed_tests() -> list[Path]:
    """Test files of the package's rooms that have no file's name."""
    rooms = {path.parts[0] for path in package_files() if len(path.parts) > 1}
    tests = (path.relative_to(TESTS) for room in rooms for path in (TESTS / room).rglob("test_*.py"))
    return sorted(path for path in tests if not (PACKAGE / path.parent / path.name.removeprefix("test_")).exists())


@cache
def imports_of(room: str) -> set[str]:
    """All modules that files below `tests/room` import, with the names taken from them."""
    found: set[str] = set()
    for path in (TESTS / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update([node.module, *(f"{node.module}.{name.name}" for name in node.names)])
    return found


def is_mirrored(path: Path) -> bool:
    """Whether a test file has its name, or a test of its room imports from it."""
    if (TESTS / path.parent / f"test_{path.name}").exists():
        return True
    module = ".".join(("megatron_compete", *path.with_suffix("").parts))
    return len(path.parts) > 1 and module in imports_of(path.parts[0])


def test_a_file_without_a_mirror_says_where_it_is_tested() -> None:
    """The way out: write `tests/a/test_b.py`, or name in `THROUGH` what tests it."""
    assert [path for path in package_files() if not is_mirrored(path) and not exempt(path, THROUGH)] == []


def test_a_test_file_has_its_file() -> None:
    """The way out: move it, or say in `BEHAVIOUR` what it shows."""
    assert [path for path in unnamed_tests() if not exempt(path, BEHAVIOUR)] == []


def test_no_exception_outlives_its_reason() -> None:
    without = [path for path in package_files() if not is_mirrored(path)]
    for pattern, (test, why) in THROUGH.items():
        assert (TESTS / test).exists() and why, pattern
        assert any(exempt(path, [pattern]) for path in without), f"{pattern} in THROUGH is needed no longer"
    for pattern in BEHAVIOUR:
        assert any(exempt(path, [pattern]) for path in unnamed_tests()), f"{pattern} in BEHAVIOUR is needed no longer"

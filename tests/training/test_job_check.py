"""One check for trainer, plan, submit and dry runs: they call the same function, which asks everything."""

import ast
from pathlib import Path

import pytest

import megatron_compete
from megatron_compete.training import job_check
from tests.plan.jobs import job_of

PACKAGE = Path(megatron_compete.__file__).parent
ASKS = {"training/parse.py", "plan/recipe_check.py"}
"""The trainer, and what plan, submit and dry runs go by (`check_recipe`)."""


def test_nobody_checks_a_job_by_other_means() -> None:
    """Rules and Megatron's validation are asked in the check alone; a second way would let through what the first refuses."""
    callers: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                callers.setdefault(node.func.id, set()).add(str(path.relative_to(PACKAGE)))
    assert callers["check_job"] == ASKS
    assert callers["broken_rules"] == {"training/job_check.py"}
    assert callers["check_arguments"] == {"training/job_check.py"}
    assert callers["parse_and_validate_args"] == {"training/parse.py"}
    assert callers["validate_args"] == {"plan/recipe_check.py", "verify/single.py"}  # the second builds no job
    assert callers["check_recipe"] == {"plan/job.py", "cluster/layout_check.py", "cli/pretrain.py", "plan/features.py"}


def test_everything_is_asked_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("broken_rules", "check_arguments", "check_all_parts"):
        upstream = getattr(job_check, name)
        monkeypatch.setattr(
            job_check, name, lambda *given, name=name, upstream=upstream: [asked.append(name), upstream(*given)][1]
        )
    assert job_of().schedule is not None
    assert asked == ["broken_rules", "check_arguments", "check_all_parts"]

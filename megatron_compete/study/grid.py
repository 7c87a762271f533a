"""The runs of a study: every variant with every seed, and the dense models that some start from.

Runs are in order of seeds, all variants of one before the next: whatever is done when time is up is paired, and a
machine that is slow for an hour is slow for all variants alike.
"""

import ast
import copy
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import megatron_compete
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from megatron_compete.study.config import Study

TRAINED_BY = (
    "config.py",
    "checkpoint",
    "launch",
    "moe",
    "resilience",
    "routing",
    "schedule",
    "study/regions",
    "training",
)
"""Parts of this package that can change what a run computes."""
GROWTH = ("grow-experts", "grow-router", "grow-noise")
"""Arguments of `task: regions` that say what a start becomes."""
LIBRARIES = ("megatron-core", "torch", "numpy")


@dataclass(frozen=True)
class Run:
    """One job of the grid."""

    variant: str
    """Name of the variant, or of the start."""
    seed: int
    steps: int
    recipe: Recipe
    """Without the folders of this machine."""
    start: str | None = None
    """Name of the run whose model this one starts from, upcycled."""
    is_start: bool = False

    @property
    def name(self) -> str:
        """Its folder under `runs/`."""
        return f"{self.variant}/seed-{self.seed}"


def runs_of(study: Study) -> list[Run]:
    """All runs, in the order in which they are trained: a start before what begins from it."""
    seeds = dict.fromkeys(seed for variant in study.variants for seed in study.seeds_of(variant))
    runs: dict[str, Run] = {}
    for seed in seeds:
        for name, variant in study.variants.items():
            if seed not in study.seeds_of(name):
                continue
            start = None
            if variant.start is not None:
                dense = _start_run(study, variant.start, seed)
                runs.setdefault(dense.name, dense)
                start = dense.name
            steps = study.steps_of(name)
            run = Run(name, seed, steps, _recipe(study, seed, steps, variant.arguments), start)
            runs[run.name] = run
    return list(runs.values())


def _start_run(study: Study, name: str, seed: int) -> Run:
    start = study.starts[name]
    if study.task == "regions":
        return Run(name, seed, start.steps, _recipe(study, seed, start.steps, start.arguments), is_start=True)
    of_experts = [one for one in study.recipe.arguments if one.startswith(("moe-", "compete-")) or "expert" in one]
    recipe = _recipe(study, seed, start.steps, dict.fromkeys(of_experts) | {"router": "topk"} | start.arguments)
    recipe.arguments.setdefault("save-interval", start.steps)
    return Run(name, seed, start.steps, recipe, is_start=True)


def timed_run(study: Study, variant: str, seed: int) -> Run:
    """The run that tells what a step of the variant costs: from scratch, because how it began does not matter there."""
    timing = study.timing
    assert timing is not None, "the study has no timing"
    recipe = _recipe(study, seed, timing.skip + timing.steps, study.variants[variant].arguments)
    recipe.arguments |= {"probe-interval": timing.skip}
    for name in ("save-interval", *GROWTH):
        recipe.arguments.pop(name, None)
    return Run(variant, seed, timing.skip + timing.steps, recipe)


def _recipe(study: Study, seed: int, steps: int, arguments: dict[str, Any]) -> Recipe:
    recipe = copy.deepcopy(study.recipe)
    recipe.arguments.update(arguments)
    recipe.arguments.update(dict.fromkeys(study.seed_arguments, seed))
    recipe.arguments.update({"train-iters": steps, "probe-interval": study.probe.interval})
    if study.task == "language" or "sequences" in study.probe.model_fields_set:
        recipe.arguments["probe-sequences"] = study.probe.sequences
    if study.save_interval:
        recipe.arguments["save-interval"] = min(study.save_interval, steps)
    return recipe


def chosen(runs: list[Run], only: Iterable[str]) -> list[Run]:
    """The runs that `--only` names, by variant or `variant/seed-N`, and the starts they need; all if it names none.

    Raises:
        CompeteError: a name that is neither.
    """
    names = list(only)
    if not names:
        return runs
    wanted: set[str] = set()
    for name in names:
        found = {run.name for run in runs if name in (run.name, run.variant)}
        if not found:
            known = ", ".join(dict.fromkeys(run.variant for run in runs))
            raise CompeteError(f"--only {name} is no run of this study: give VARIANT or VARIANT/seed-N, of {known}")
        wanted |= found
    wanted |= {run.start for run in runs if run.name in wanted and run.start}
    return [run for run in runs if run.name in wanted]


def digest(run: Run, study: Study, corpus: str) -> str:
    """What decides about a run's result beside the code: its recipe, its text, and what it starts from.

    Args:
        corpus: digest of the data.
    """
    start = None
    if run.start is not None:
        name = study.variants[run.variant].start
        assert name is not None
        how = None if (upcycle := study.starts[name].upcycle) is None else vars(upcycle)
        start = {"run": digest(_start_run(study, name, run.seed), study, corpus), "upcycle": how}
    launch = {name: value for name, value in run.recipe.launch.items() if name in ("nnodes", "nproc-per-node")}
    content = {"launch": launch, "arguments": run.recipe.arguments, "corpus": corpus, "start": start}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_version() -> str:
    """Digest of the code that trains, without comments, docstrings and layout, and of the libraries' versions."""
    root = Path(megatron_compete.__file__).parent
    whole = hashlib.sha256(" ".join(f"{name}={version(name)}" for name in LIBRARIES).encode())
    for part in TRAINED_BY:
        path = root / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            whole.update(str(file.relative_to(root)).encode() + _meaning(file.read_text()).encode())
    return whole.hexdigest()[:16]


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

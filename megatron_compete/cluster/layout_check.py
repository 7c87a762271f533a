"""Would this job train? Asked before the queue, in a process of its own, because Megatron takes long to import.

    python -m megatron_compete.cluster.layout_check RECIPE GPUS

The check is the trainer's, `megatron_compete/training/job_check.py`, on a pretended GPU (`megatron_compete/plan/`). A login
node may have no Python with Megatron: then only what must divide is checked, here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from megatron_compete.common.errors import USAGE_EXIT_CODE, CompeteError, run_command
from megatron_compete.launch.recipe import Recipe, read_recipe

SIZES = {
    "tp": "tensor-model-parallel-size",
    "pp": "pipeline-model-parallel-size",
    "cp": "context-parallel-size",
    "ep": "expert-model-parallel-size",
    "etp": "expert-tensor-parallel-size",
}

IMPORTABLE = "import importlib.util as u; raise SystemExit(not (u.find_spec('torch') and u.find_spec('megatron')))"


def check_layout(recipe_file: Path, nodes: int, tasks_per_node: int, pythons: list[str]) -> str | None:
    """Check a resolved recipe for the ranks that it will have.

    Args:
        pythons: interpreters to ask; the first that has Megatron is taken.
    Returns:
        What could not be checked, in words; None where all was.
    Raises:
        CompeteError: what Megatron would refuse.
    """
    world = nodes * tasks_per_node
    python = next((one for one in pythons if has_megatron(one)), None)
    if python is None:
        check_divisibility(read_recipe(recipe_file), world)
        return "no Python with Megatron here: only checked that parallel sizes and batch divide"
    command = [python, "-m", "megatron_compete.cluster.layout_check", str(recipe_file), str(world)]
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}  # these rules, whatever that Python has installed
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return done.stdout.strip() or None
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    refusals = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if done.returncode == USAGE_EXIT_CODE and refusals:
        raise CompeteError(f"{refusals[-1]} (--no-check submits it all the same)")
    raise CompeteError(f"the layout could not be checked with {python}: {lines[-1]} (--no-check submits without)")


def has_megatron(python: str) -> bool:
    """Whether an interpreter has torch and Megatron."""
    try:
        return subprocess.run([python, "-c", IMPORTABLE], capture_output=True).returncode == 0
    except OSError:
        return False


def check_divisibility(recipe: Recipe, world: int) -> None:
    """Raise a `CompeteError` where ranks do not divide by the layout, or the batch by its replicas."""
    size = {short: _size(recipe, name, 1) for short, name in SIZES.items()}
    if recipe.arguments.get(SIZES["etp"]) is None:
        size["etp"] = size["tp"]
    dense, expert = size["tp"] * size["pp"] * size["cp"], size["etp"] * size["ep"] * size["pp"]
    for unit, what in (
        (dense, "tensor * pipeline * context parallel size"),
        (expert, "expert tensor * expert * pipeline parallel size"),
    ):
        if world % unit:
            raise CompeteError(
                f"{world} ranks do not divide by {what} = {unit}: give --nodes and ranks of a node that do, or other sizes"
            )
    replicas = world // dense
    unit = _size(recipe, "micro-batch-size", 1) * replicas
    batch = _size(recipe, "global-batch-size", unit)
    if batch % unit:
        raise CompeteError(
            f"--global-batch-size {batch} does not divide by micro batch * data parallel size = {unit // replicas} * "
            f"{replicas}: give a multiple of {unit}"
        )


def _size(recipe: Recipe, name: str, default: int) -> int:
    value = recipe.arguments.get(name)
    text = str(default if value is None else value)
    if re.fullmatch("[0-9]{1,9}", text) is None or int(text) < 1:
        raise CompeteError(f"--{name} {text[:40]}: give a whole number from 1")
    return int(text)


def main(recipe_file: str, gpus: str) -> None:
    """The process of its own: what could not be checked is printed, what the trainer would refuse is an error."""
    from megatron_compete.plan.recipe_check import check_recipe, not_checked

    recipe = read_recipe(Path(recipe_file))
    reason = not_checked(recipe)
    if reason is not None:
        print(f"{reason}, and the job was not checked")
        return
    check_recipe(recipe, int(gpus))


if __name__ == "__main__":
    run_command(lambda: main(*sys.argv[1:]))

"""Public recipes with competition, planned: what each asks for, what Megatron refuses in it, memory and overhead.

    python -m benchmarks.public_recipes [--gpu h100]

Prints the table of docs/results/recipes.md. The recipes are those of tests/recipes/public; nothing is trained here.
"""

import argparse
import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.plan.feature_table import features_of
from megatron_compete.plan.hardware import preset
from megatron_compete.plan.job import Job, read_job
from megatron_compete.plan.job_plan import JobPlan, plan_job
from megatron_compete.plan.overhead import Overhead, simulate_policies
from megatron_compete.plan.stage_program import PipelineShape
from tests.recipes.shrink import PUBLIC
from tests.recipes.updated import updated

GB = 1e9
COLUMNS = (
    "recipe", "GPUs", "layout", "asks for", "Megatron refuses", "fullest rank, GB: normal, competing", "A_max", "overhead",
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One recipe."""

    name: str
    features: tuple[str, ...]
    refusals: tuple[str, ...]
    job: Job
    plan: JobPlan
    simulated: Overhead

    @classmethod
    def of(cls, path: Path, gpu: str) -> "Planned":
        """The recipe as megatron-core takes it, planned for a kind of GPU."""
        recipe, refusals = updated(path)
        job = read_job(recipe)
        plan = plan_job(job, preset(gpu))
        assert job.schedule is not None
        shape = PipelineShape.of(job.transformer, job.microbatches)
        features = tuple(feature.name for feature in features_of(job.args))
        return cls(path.stem, features, refusals, job, plan, simulate_policies(job.schedule, plan.times, shape))

    def cells(self, shared: set[str]) -> tuple[str, ...]:
        """Its row of the table, without the features that all recipes share."""
        simulated, fullest = self.simulated, self.plan.fullest
        assert simulated.policy is not None
        own = simulated.of(simulated.policy, simulated.max_active)
        return (
            self.name,
            f"{self.job.sizes.world:,}",
            _layout(self.job),
            "; ".join(name for name in self.features if name not in shared),
            ", ".join(f"`{_flag(words)}`" for words in self.refusals) or "nothing",
            f"{fullest.normal / GB:.0f}, {fullest.competing / GB:.0f}",
            str(simulated.max_active),
            f"{own.overhead_percent:.0f}%",
        )


def _layout(job: Job) -> str:
    sizes = job.sizes
    parts = {"TP": sizes.tp, "CP": sizes.cp, "PP": sizes.pp, "VP": sizes.vp, "EP": sizes.ep}
    return " ".join(f"{name}{size}" for name, size in parts.items() if size > 1) or "DP alone"


def _flag(refusal: str) -> str:
    """The flag that a refusal is about."""
    named = next((word for word in refusal.replace(":", " ").split() if word.startswith("--")), None)
    return named or {"Tensor": "--tp-comm-overlap", "expected": "--train-iters"}[refusal.split(": ")[1].split()[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="h100", help="kind of GPU, as `megatron-compete plan --gpu` (default: h100)")
    gpu = parser.parse_args().gpu
    planned = []
    for path in sorted(PUBLIC.glob("*.yaml")):
        print(path.stem, file=sys.stderr)
        with contextlib.redirect_stdout(io.StringIO()):
            planned.append(Planned.of(path, gpu))
    shared = set.intersection(*(set(one.features) for one in planned))
    print(f"All ask for: {'; '.join(name for name in planned[0].features if name in shared)}.\n")
    for cells in (COLUMNS, ("---",) * len(COLUMNS), *(one.cells(shared) for one in planned)):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

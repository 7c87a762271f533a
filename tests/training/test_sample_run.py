"""A sample of the tokens competes in the trainer: the same tokens in every layout, recomputed pass and resumed run."""

from pathlib import Path
from typing import Any

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.ranks import run_ranks
from tests.training.runs import MODEL, largest_difference, train, train_on_rank

KINDS = {
    "response": "",
    "utility": "--compete-kind utility --compete-distill-coeff 0 --compete-diversity-coeff 0",
}
STEPS, MIDDLE = 6, 2
SAMPLE = f"--compete-token-fraction 0.3 --train-iters {STEPS}"
"""Of 32 positions: two blocks with 4 or 5 each."""
PP2 = "--pipeline-model-parallel-size 2"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
SELECTIVE = "--recompute-granularity selective --recompute-modules moe"

Scalars = dict[str, dict[int, float]]
Samples = dict[tuple[int, int], list[int]]
"""The tokens [S, B] that competed, by step and layer."""


def recorded_on_rank(arguments: list[str]) -> Samples:
    """Train; the samples that the layers of this rank drew."""
    from megatron_compete.moe.sample import TokenSampler

    samples: Samples = {}
    draw = TokenSampler.draw

    def recording(self: TokenSampler, *args: Any, step: int, layer_number: int, **kwargs: Any) -> Any:
        sample = draw(self, *args, step=step, layer_number=layer_number, **kwargs)
        tokens = sample.tokens_N.tolist()  # type: ignore[attr-defined]
        assert samples.setdefault((step, layer_number), tokens) == tokens
        return sample

    TokenSampler.draw = recording  # type: ignore[method-assign]
    train_on_rank(arguments)
    return samples


class Runs:
    """Runs of one kind: what they logged and which tokens competed, each once."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.found: dict[str, tuple[Scalars, Samples]] = {}

    def __call__(self, name: str, world: int = 1, flags: str = "") -> tuple[Scalars, Samples]:
        if name not in self.found:
            arguments = f"{MODEL} {KINDS[self.kind]} {SAMPLE} {flags} --tensorboard-dir {self.folder}/{name}"
            samples: Samples = {}
            for drawn in run_ranks(world, recorded_on_rank, arguments.split()):
                assert all(samples.get(key, tokens) == tokens for key, tokens in drawn.items())
                samples |= drawn
            self.found[name] = read_scalars(self.folder / name), samples
        return self.found[name]

    def whole(self) -> tuple[Scalars, Samples]:
        """One rank, all steps, with a checkpoint in the middle."""
        scalars = self("whole", flags=f"--save {self.folder}/ckpt --save-interval {MIDDLE}")
        (self.folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
        return scalars


@pytest.fixture(scope="module", params=KINDS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp(request.param), request.param)


def logged(scalars: Scalars) -> Scalars:
    """What training is compared by."""
    return {name: values for name, values in scalars.items() if name == "lm loss" or name.startswith("competition/")}


def test_resumed_run_equals_uninterrupted_one(runs: Runs) -> None:
    whole, drawn = runs.whole()
    resumed, drawn_again = runs("resumed", flags=f"--load {runs.folder}/ckpt")
    for name, values in logged(resumed).items():
        assert values == {step: value for step, value in whole[name].items() if step > MIDDLE}
    assert drawn_again == {key: tokens for key, tokens in drawn.items() if key[0] >= MIDDLE}


@pytest.mark.parametrize("flags", [FULL, pytest.param(SELECTIVE, marks=pytest.mark.slow)], ids=["full", "selective"])
def test_recomputation_changes_no_bit(runs: Runs, flags: str) -> None:
    whole, drawn = runs.whole()
    recomputed, drawn_again = runs(flags.split()[1], flags=flags)
    assert logged(recomputed) == logged(whole) and drawn_again == drawn


LAYOUTS = {
    "pp2": (2, PP2),
    "ep2": (2, "--expert-model-parallel-size 2"),
    "vpp2-ep2": (4, f"{PP2} --num-layers-per-virtual-pipeline-stage 1 --expert-model-parallel-size 2"),
}


@pytest.mark.parametrize("name", [name if name == "pp2" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])  # fmt: skip
def test_layout_equals_one_rank(runs: Runs, name: str) -> None:
    """From the checkpoint's weights with a fresh optimizer, which may be split otherwise."""
    runs.whole()
    load = f"--load {runs.folder}/ckpt --no-load-optim"
    one, drawn = runs("one", flags=load)
    many, drawn_there = runs(name, LAYOUTS[name][0], f"{load} {LAYOUTS[name][1]}")
    assert drawn_there == drawn
    assert set(many["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    assert largest_difference(one["lm loss"], many["lm loss"]) <= 1e-4
    for metric in ("competition/active-layers", "competition/tokens"):
        assert one[metric] == many[metric]


def test_metrics_count_the_sample(runs: Runs) -> None:
    """8 sequences a step."""
    whole, drawn = runs.whole()
    for step, found in whole["competition/tokens"].items():
        positions = sum(len(tokens) // 2 for key, tokens in drawn.items() if key[0] == step - 1)
        assert found == 8 * positions
    assert whole["competition/tokens"]


def test_it_is_another_training_than_of_all_tokens(runs: Runs, tmp_path: Path) -> None:
    train(1, f"{KINDS[runs.kind]} --train-iters {STEPS} --tensorboard-dir {tmp_path}")
    assert largest_difference(runs.whole()[0]["lm loss"], read_scalars(tmp_path)["lm loss"]) > 1e-4

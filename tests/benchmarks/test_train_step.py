"""Whole training steps that take turns: the right steps, the right averages, and a script that runs."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fused_clipping import use_fused_clipping
from benchmarks.train_step import LOG_INTERVAL, UNTIMED, Leg, Rotation, plan_legs, report
from benchmarks.train_variants import Trainee
from tests.ranks import run_rank

ROOT = Path(__file__).resolve().parents[2]


def test_a_round_has_a_step_for_every_number_of_competing_layers() -> None:
    counts = [2] * LOG_INTERVAL + [0, 1, 3]
    counts[LOG_INTERVAL - 1] = 4  # only where metrics are logged
    legs = plan_legs(counts, naive=True)
    assert [str(leg) for leg in legs] == [
        "topk",
        "rate0",
        "compete@0",
        "compete@1",
        "compete@2",
        "compete@3",
        "naive@3",
    ]
    assert all(counts[leg.step] == leg.competing for leg in legs)
    assert all((leg.step + 1) % LOG_INTERVAL for leg in legs)
    assert [leg.variant for leg in plan_legs([0, 1], naive=False)] == ["topk", "rate0", "compete", "compete"]


def test_the_mean_is_the_schedules() -> None:
    times = {"topk": [10, 20], "rate0": [10, 20], "compete@0": [10, 20], "compete@2": [20, 40], "naive@2": [30, 60]}
    legs = [
        Leg(name.split("@")[0], int(name[-1]) if "@" in name else 0, 0, [float(ms) for ms in all_], peak_bytes=7)
        for name, all_ in times.items()
    ]
    found = report(legs, Counter({0: 90, 2: 10}))
    assert found["frequency"] == {0: 0.9, 2: 0.1}
    assert found["amortised"] == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert found["naive_over_compete"] == {"layers": 2, "step": 1.5, "extra_time": 2.0, "peak": 1.0}


def test_a_leg_that_fails_is_left_out_and_time_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    args = Namespace(curr_iteration=0, train_iters=100)
    monkeypatch.setattr("megatron.training.get_args", lambda: args)
    taken = []

    def step(forward_step, data, model, *others):
        taken.append((model, args.curr_iteration))
        if model == "naive's":
            raise RuntimeError("no such kernel")

    def timed(self: Rotation, leg: Leg, round_: int, run: Callable[[], None]) -> None:
        run()
        leg.milliseconds.append(1.0)

    monkeypatch.setattr(Rotation, "_timed", timed)
    legs = [Leg("topk", 0, 5), Leg("rate0", 0, 5), Leg("compete", 1, 6), Leg("naive", 1, 6)]
    rotation = Rotation(legs, lambda variant: Trainee([], None, None, None), step, deadline=time.monotonic() - 1)
    rotation.build = lambda variant: Trainee(f"{variant}'s", None, None, None)
    iterations = 0
    while iterations < args.train_iters:
        rotation(None, None, "topk's", None, None, None, None)
        iterations += 1
    assert iterations == (UNTIMED + 1) * len(legs)
    assert [leg.error for leg in legs] == [None, None, None, "RuntimeError: no such kernel"]
    assert [len(leg.milliseconds) for leg in legs] == [3, 3, 3, 0]
    assert taken.count(("naive's", 6)) == 1 and taken.count(("topk's", 6)) == 3 and args.curr_iteration == 0
    found = report(legs, Counter({1: 10}))
    assert found["failed"] == {"naive@1": "RuntimeError: no such kernel"} and found["amortised"] == 1.0
    legs[2].error = "none"
    assert report(legs, Counter({1: 10}))["amortised"] is None


def test_gradients_are_clipped_by_the_kernels_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.optimizer import clip_grads
    from megatron.core.utils import local_multi_tensor_applier

    kernels = Namespace(multi_tensor_applier="applier", multi_tensor_l2norm="norm", multi_tensor_scale="scale")
    bound = ("multi_tensor_applier", "l2_norm_impl", "multi_tensor_scale_impl")
    for name in bound:
        monkeypatch.setattr(clip_grads, name, getattr(clip_grads, name))
    monkeypatch.setattr("benchmarks.fused_clipping._kernels", lambda: None)
    assert use_fused_clipping() == "megatron's choice"
    monkeypatch.setattr("benchmarks.fused_clipping._kernels", lambda: kernels)
    assert clip_grads.multi_tensor_applier is local_multi_tensor_applier
    assert use_fused_clipping() == "transformer_engine, by this benchmark"
    assert [getattr(clip_grads, name) for name in bound] == ["applier", "norm", "scale"]
    assert use_fused_clipping() == "megatron's choice"  # where Megatron has kernels, it keeps them


def test_script_writes_its_measurement(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    command = [sys.executable, "benchmarks/train_step.py", "--recipe", "tests/benchmarks/tiny.yaml", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(path), "--", "--seq-length", "16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert list(found["legs"]) == ["topk", "rate0", "compete@0", "compete@1", "compete@2", "naive@2"]
    assert all(len(leg["ms_all"]) == 2 and leg["peak"] > 0 for leg in found["legs"].values())
    assert found["legs"]["naive@2"]["peak"] > found["legs"]["compete@2"]["peak"]
    assert sum(found["frequency"].values()) == pytest.approx(1)
    assert found["arguments"][found["arguments"].index("--seq-length") + 1] == "16"
    assert "what it adds to top-K" in done.stdout


def test_the_154m_recipe_fits_one_gpu_in_bf16_and_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron's checks pass for every model of the rotation, as on a host with a GPU."""
    from megatron.training.arguments import parse_args, validate_args

    from benchmarks.train_step import ROOT as HERE
    from benchmarks.train_step import trainer_arguments
    from benchmarks.train_variants import VARIANTS, arguments_of
    from megatron_compete.config import CompeteConfig
    from megatron_compete.plan.pretend import pretended_gpu
    from megatron_compete.training.arguments import add_arguments
    from megatron_compete.training.model import transformer_config

    with pretended_gpu():
        tokens = trainer_arguments(Namespace(recipe=HERE / "examples/competesmoe_154m.yaml"), [])
        assert "--no-gradient-accumulation-fusion" in tokens  # no apex here
        monkeypatch.setattr(sys, "argv", ["train_step", *tokens, "--train-iters", "100"])
        args = parse_args(add_arguments)
        args.rank, args.world_size = 0, 1
        validate_args(args)
        assert args.global_batch_size == args.micro_batch_size and args.moe_grouped_gemm and args.bf16
        for fp8 in (None, "delayed", "tensorwise", "blockwise"):
            for variant in VARIANTS:
                changed = arguments_of(args, variant, fp8)
                config = transformer_config(changed)
                assert (config.fp8_recipe if config.fp8 else None) == fp8
                assert config.moe_aux_loss_coeff == (0.01 if variant in ("topk", "rate0") else 0.0)
                assert CompeteConfig.from_arguments(changed).rate == (0.0 if variant == "rate0" else 0.07)


def layers_agree() -> bool:
    """The naive layer of a model equals ours at a competing step, and Megatron's at a normal one."""
    import torch
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from benchmarks.naive import ScheduledNaiveLayer
    from megatron_compete.config import CompeteConfig
    from tests.moe import layouts
    from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
    from tests.moe.reference import Weights

    layouts.initialize(Layout())
    step = 0
    config = CompeteConfig(rate=0.5, max_active_layers=1, diversity_coeff=0.5, response_balance_coeff=0.3)
    ours = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config, lambda: step)
    spec = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    naive = ScheduledNaiveLayer(
        layouts.transformer_config(Layout()), spec.keywords["submodules"], 1, get_default_pg_collection(),
        competition=ours.competition,
    )  # fmt: skip
    naive.load_state_dict(ours.state_dict())
    tokens = torch.randn(8, 2, HIDDEN, generator=torch.Generator().manual_seed(5))
    kinds = set()
    for step in range(8):
        kinds.add(ours.competition.is_active(1))
        found = []
        for layer in (ours, naive.train()):
            inputs = tokens.clone().requires_grad_()
            layer(inputs)[0].square().sum().backward()
            found.append(inputs.grad)
        assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max() > 0, step
    return kinds == {True, False}


def test_the_naive_layer_keeps_the_schedule() -> None:
    assert run_rank(layers_agree)

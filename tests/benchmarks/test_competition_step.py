"""The benchmark measures the right thing: equal steps, right bytes, right memory, and a script that runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.cases import Case
from benchmarks.memory import LiveStorages, PeakMemory
from benchmarks.traffic import SentBytes
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from tests.ranks import run_rank, run_ranks
from tests.warm import run_script

ROOT = Path(__file__).resolve().parents[2]
SMALL = Case(tokens=24, hidden=16, ffn=24, experts=8, topk=3, ep=2)
MB = 1_000_000


def steps_on_rank(case: Case, compete: CompeteConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Output and all gradients of the competing steps and their naive forms, and the output of a normal step."""
    from megatron.core import parallel_state

    from benchmarks.variants import build_variants, check_equal, make_batch, run_step

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=case.ep)
    layers = build_variants(case, torch.float32, compete=compete, to_check=True)
    batch = make_batch(case, torch.float32)
    found = {"normal": {"output": run_step(layers["normal"], batch)}}
    for name in ("competing", "naive", "utility", "naive utility"):
        batch.tokens.grad = None
        output = run_step(layers[name], batch)
        assert batch.tokens.grad is not None
        weights = {key: weight.grad.clone() for key, weight in layers[name].named_parameters()}
        found[name] = {"output": output, "tokens": batch.tokens.grad} | weights
    check_equal(layers, batch)
    for other in ("naive", "naive utility"):
        with pytest.raises(AssertionError, match=f"and {other} differs in"):
            check_equal(layers | {other: layers["normal"]}, batch)
    return found


@pytest.mark.parametrize("gradients", ["winners", "all"])
@pytest.mark.parametrize("ep", [1, 2])
def test_naive_steps_equal_ours(ep: int, gradients: str) -> None:
    compete = CompeteConfig(
        rate=1.0, max_active_layers=1, distill_coeff=0.7, diversity_coeff=0.5, response_balance_coeff=0.3,
        response_gradients=gradients,
    )  # fmt: skip
    case = Case(**{**vars(SMALL), "ep": ep})
    for found in run_ranks(ep, steps_on_rank, case, compete):
        assert found["utility"]["output"].equal(found["normal"]["output"])
        for ours, other in (("competing", "naive"), ("utility", "naive utility")):
            assert found[ours].keys() == found[other].keys()
            for name, naive in found[other].items():
                apart = (found[ours][name] - naive).abs().max()
                assert apart <= 1e-5 * naive.abs().max(), f"{ours}: {name}: {apart} apart"
                assert naive.any(), name


def count_on_rank() -> dict[str, int]:
    """Bytes this rank sends in collectives of known size, each under the names that are in use."""
    from megatron.core.tensor_parallel.mappings import all_to_all, gather_from_sequence_parallel_region

    dist.init_process_group("gloo")
    rank, values = dist.get_rank(), torch.zeros(4, 8, requires_grad=True)
    splits = [[3, 1], [1, 3]][rank]  # rows to each rank; one leaves this rank, one comes
    calls = {
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(torch.empty(8, 8), values.detach()),
        "megatron_gather": lambda: gather_from_sequence_parallel_region(values.detach(), group=dist.group.WORLD),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(torch.empty(2, 8), values.detach()),
        "all_reduce": lambda: dist.all_reduce(torch.zeros(4, 8)),
        "even_all_to_all": lambda: dist.all_to_all_single(torch.empty(4, 8), values.detach()),
        "nothing": lambda: dist.barrier(),
        "all_to_all_and_back": lambda: all_to_all(dist.group.WORLD, values, splits, splits).sum().backward(),
    }
    counted = {}
    for name, call in calls.items():
        with SentBytes() as sent:
            call()
        counted[name] = sent.total
    with pytest.raises(NotImplementedError, match="scatter_"), SentBytes():
        dist.scatter(torch.empty(8), [torch.empty(8)] * 2 if rank == 0 else None)
    return counted


def test_sent_bytes_of_known_collectives() -> None:
    row = 8 * 4
    expected = {
        "all_gather_into_tensor": 4 * row,
        "megatron_gather": 4 * row,
        "reduce_scatter_tensor": 2 * row,
        "all_reduce": 4 * row,
        "even_all_to_all": 2 * row,
        "nothing": 0,
        "all_to_all_and_back": 2 * row,
    }
    assert run_ranks(2, count_on_rank) == [expected, expected]


def test_live_storages_follow_known_allocations() -> None:
    before = torch.zeros(MB)
    with LiveStorages() as live:
        first = torch.zeros(MB)  # 4 MB
        view = first[::2].view(-1)
        before.add_(first)
        assert live.current == 4 * MB
        first = torch.zeros(2 * MB)
        assert live.current == 12 * MB
        del view
        assert live.current == 8 * MB
        del first
        assert live.current == 0
    assert live.peak == 12 * MB


def test_peak_memory_counts_what_autograd_keeps() -> None:
    weight = torch.ones(MB, requires_grad=True)
    weight.grad = torch.zeros(MB)
    with PeakMemory(torch.device("cpu")) as memory:
        weight.exp().exp().sum().backward()
    assert 8 * MB < memory.peak <= 16 * MB + 64  # two results kept for the backward pass, two gradients


def peaks_on_rank() -> tuple[int, float]:
    """The tracker's peak of the naive step, and that of the profiler's record of torch's CPU allocator."""
    from megatron.core import parallel_state
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.variants import build_variants, make_batch, run_step

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    case = Case(tokens=256, hidden=32, ffn=48, experts=8, topk=2, ep=1)
    layer, batch = build_variants(case, torch.float32)["naive"], make_batch(case, torch.float32)
    run_step(layer, batch)
    batch.tokens.grad = None
    with PeakMemory(torch.device("cpu")) as memory:
        run_step(layer, batch)
    batch.tokens.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run_step(layer, batch)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return memory.peak, peak


def test_peak_memory_agrees_with_the_allocator() -> None:
    tracked, allocated = run_rank(peaks_on_rank)
    assert tracked == pytest.approx(allocated, rel=0.05)


def test_script_writes_its_measurement(tmp_path: Path) -> None:
    report = tmp_path / "step.json"
    sizes = [f"--{name}={size}" for name, size in vars(SMALL).items()]
    command = [sys.executable, "benchmarks/competition_step.py", *sizes, "--repeats=2", f"--json={report}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert all(ratio in done.stdout for ratio in ("naive/competing", "utility/normal", "utility/competing"))
    (case,) = json.loads(report.read_text())["cases"]
    assert case["case"] == vars(SMALL)
    steps = case["steps"]
    assert all(len(step["ms_all"]) == 2 and step["peak"] > 0 for step in steps.values())
    forward = SMALL.tokens * SMALL.experts // 2 * (SMALL.hidden + 1) * 4  # half of the experts live elsewhere
    combine = SMALL.tokens * SMALL.experts // 2 * SMALL.hidden * 4
    counts = SMALL.experts * 8
    assert steps["naive"]["sent_forward"] == forward + combine + counts
    assert steps["competing"]["sent_forward"] > steps["normal"]["sent_forward"]
    assert steps["utility"]["sent_forward"] == steps["normal"]["sent_forward"]  # it scores in the backward pass
    gathered = 2 * SMALL.tokens * SMALL.hidden * 4  # tokens and output gradients, to the other rank
    scores = SMALL.tokens * SMALL.experts // 2 * 4
    assert steps["utility"]["sent_backward"] >= steps["normal"]["sent_backward"] + gathered + scores


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topk=9", "--experts=8"], "--topk 9 is more than --experts 8"),
        (["--experts=9", "--ep=2"], "--experts 9 do not divide over --ep 2"),
        (["--repeats=0"], "must be 1 or more"),
    ],
)
def test_impossible_shapes_are_refused(flags: list[str], message: str) -> None:
    done = run_script(ROOT / "benchmarks/competition_step.py", *flags, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr


class Scaled(torch.nn.Module):
    """Stands for a layer: its output is the tokens times a factor that is its router's weight."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.router = torch.nn.Linear(1, 1, bias=False)
        self.router.weight.data.fill_(factor)
        self.router.weight.grad = torch.zeros(1, 1)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return tokens * self.router.weight, None


def equality_of_what_is_no_number() -> None:
    from benchmarks.variants import NAIVE_UTILITY, Batch, check_equal

    names = ("competing", "naive", "utility", NAIVE_UTILITY)
    for wrong in names:
        layers = {name: Scaled(2.0) for name in names}
        batch = Batch(torch.randn(4, 1, 1, requires_grad=True), torch.ones(4, 1, 1))
        check_equal(layers, batch)  # type: ignore[arg-type]
        layers[wrong].router.weight.data.fill_(torch.nan)
        with pytest.raises(CompeteError, match="infinite or not numbers"):
            check_equal(layers, batch)  # type: ignore[arg-type]


def test_the_check_of_equality_fails_on_what_is_no_number() -> None:
    run_rank(equality_of_what_is_no_number)


def scored_tokens_on_rank() -> list[int]:
    """Tokens that the steps of a sample of 1 in 4 score, by responses and by utility."""
    from megatron.core import parallel_state

    from benchmarks.variants import build_variants, make_batch, run_step
    from megatron_compete.moe import scoring

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    scored: list[int] = []
    score_tokens = scoring.score_tokens
    scoring.score_tokens = lambda tokens, *rest: scored.append(len(tokens)) or score_tokens(tokens, *rest)
    compete = CompeteConfig(rate=1.0, max_active_layers=1, token_fraction=0.25)
    case = Case(**{**vars(SMALL), "ep": 1})
    layers, batch = build_variants(case, torch.float32, compete=compete), make_batch(case, torch.float32)
    for name in ("competing", "utility"):
        run_step(layers[name], batch)
    return scored


def test_a_sample_is_scored_and_counted() -> None:
    assert run_rank(scored_tokens_on_rank) == [6, 6]  # of 24
    normal, competing, utility, naive = SMALL.gflop(0.25).values()
    assert competing == utility == pytest.approx(normal * (1 + 0.25 * 8 / 9))
    assert naive == SMALL.gflop()["naive"]

"""Times the scoring pass on a GPU: variants, candidates of tiles, and the matrix product they are compared with.

T tokens, E experts, F their width, H hidden size.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from benchmarks.scoring_shapes import Shape
from megatron_compete.moe.kernels import tiles
from megatron_compete.moe.kernels.narrow import held_columns
from megatron_compete.moe.kernels.scorer import default_tiles, fused_responses, quantized
from megatron_compete.moe.kernels.weights import ExpertWeights, address_table
from megatron_compete.routing.responses import softplus_response

MATMUL = 8192
"""Rows and columns of the product's operands: large enough for the GPU's best rate."""

SET_BYTES, MOST_SETS = 12 * 2**30, 4
"""Bound of all sets of inputs together, and of their number."""

SPAN_MS = 5.0
"""Shortest time between two events: fast variants run several times in it, so that launches overlap as in training."""

CHECKED_TOKENS = 2048


class Inputs:
    """Sets of tokens [T, H] and of E experts' weights, one for each turn."""

    def __init__(self, shape: Shape) -> None:
        form, random = shape.form, torch.Generator("cuda").manual_seed(0)
        weights = shape.experts * (form.fc1_rows + form.ffn) * form.hidden * 2
        sets = max(2, min(MOST_SETS, SET_BYTES // (weights + shape.tokens * form.hidden * 2)))

        def draw(*size: int, scale: float) -> Tensor:
            return scale * torch.randn(size, generator=random, device="cuda", dtype=torch.bfloat16)

        def weights_of(rows: int, columns: int) -> list[Tensor]:
            return [draw(rows, columns, scale=columns**-0.5) for _ in range(shape.experts)]

        self.tokens_TH = [draw(shape.tokens, form.hidden, scale=1.0) for _ in range(sets)]
        self.fc1 = [weights_of(form.fc1_rows, form.hidden) for _ in range(sets)]
        self.fc2 = [weights_of(form.hidden, form.ffn) for _ in range(sets)]
        self.weights = [
            ExpertWeights(form, torch.bfloat16, address_table(fc1), address_table(fc2))
            for fc1, fc2 in zip(self.fc1, self.fc2)
        ]
        self.turns: Iterator[int] = itertools.cycle(range(sets))


def plain_responses(shape: Shape, tokens_TH: Tensor, fc1: list[Tensor], fc2: list[Tensor]) -> Tensor:
    """Responses [T, E] by torch's operations, one expert after the other, as Megatron's SequentialMLP runs them."""
    responses = []
    for first, second in zip(fc1, fc2):
        hidden = tokens_TH @ first.T
        if shape.form.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        else:
            hidden = F.relu(hidden)
        responses.append(softplus_response(hidden @ second.T))
    return torch.stack(responses, dim=-1)


def check_scores(shape: Shape, inputs: Inputs) -> float:
    """Compare the kernels with torch's operations; returns the share of tokens with the same winners.

    Raises:
        AssertionError: winners differ in more than 1 token of 1000, or a score by more than rounding.
    """
    tokens = inputs.tokens_TH[0][:CHECKED_TOKENS].contiguous()
    by_kernels = fused_responses(tokens, inputs.weights[0], "softplus")
    by_torch = plain_responses(shape, tokens, inputs.fc1[0], inputs.fc2[0])
    torch.testing.assert_close(by_kernels, by_torch, rtol=0, atol=4e-3)
    first, second = (scores.topk(shape.topk).indices.sort().values for scores in (by_kernels, by_torch))
    same = float((first == second).all(-1).float().mean())
    assert same >= 0.999, f"{shape.name}: the kernels' winners are torch's on {same:.2%} of tokens"
    return same


def measure_rates(shape: Shape, rounds: int) -> dict[str, Any]:
    """`same_winners`, and per variant: ms, tflops, share of the product's rate, peak memory above the inputs in MB."""
    inputs = Inputs(shape)
    same_winners = check_scores(shape, inputs)
    ready = [quantized(weights) for weights in inputs.weights]
    a, b = torch.randn(2, MATMUL, MATMUL, device="cuda", dtype=torch.bfloat16)

    def fused(turn: int) -> None:
        fused_responses(inputs.tokens_TH[turn], inputs.weights[turn], "softplus")

    def fused_fp8(turn: int) -> None:
        fused_responses(inputs.tokens_TH[turn], quantized(inputs.weights[turn]), "softplus")

    def fused_fp8_ready(turn: int) -> None:
        fused_responses(inputs.tokens_TH[turn], ready[turn], "softplus")

    def plain(turn: int) -> None:
        plain_responses(shape, inputs.tokens_TH[turn], inputs.fc1[turn], inputs.fc2[turn])

    variants: dict[str, Callable[[int], None]] = {
        "matmul": lambda turn: torch.matmul(a, b) if turn % 2 else torch.matmul(b, a),
        "fused": fused,
        "fused-fp8": fused_fp8,
        "fused-fp8, weights ready": fused_fp8_ready,
        "plain": plain,
    }
    times = time_in_turn(variants, inputs.turns, rounds)
    flops = dict.fromkeys(variants, shape.flops()) | {"matmul": 2 * MATMUL**3}
    rates = {name: [flops[name] / ms / 1e9 for ms in times[name]] for name in variants}
    return {
        "same_winners": same_winners,
        "variants": {
            name: {
                "ms": median(times[name]),
                "ms_all": times[name],
                "tflops": median(rates[name]),
                "share": median(rate / product for rate, product in zip(rates[name], rates["matmul"])),
                "peak_mb": peak_megabytes(variants[name]),
            }
            for name in variants
        },
    }


def measure_tiles(shape: Shape, rounds: int, deadline: float) -> dict[str, Any]:
    """Milliseconds of every candidate; of the wide kernels one varies while the other keeps the tiles in use.

    Args:
        deadline: on `time.monotonic`; a candidate is not begun after it, and `complete` is false then.
    """
    inputs = Inputs(shape)
    kernels: dict[str, list[dict[str, Any]]] = {}
    complete = True
    for fp8 in (False, True):
        weights = [quantized(w) for w in inputs.weights] if fp8 else inputs.weights
        for kernel, candidates in tile_candidates(shape, fp8).items():
            rows = kernels.setdefault(kernel + (" e4m3" if fp8 else ""), [])
            for sizes, whole in candidates:
                if time.monotonic() > deadline:
                    complete = False
                else:
                    rows.append({"tiles": asdict(sizes)} | _time_tiles(inputs, weights, whole, rounds))
    return {"kernels": kernels, "complete": complete}


def tile_candidates(shape: Shape, fp8: bool) -> dict[str, list[tuple[Any, Any]]]:
    """By kernel: sizes of its tiles, and of all tiles of a pass with them."""
    used = default_tiles(shape.form, fp8)
    if isinstance(used, tiles.NarrowTiles):
        return {"narrow": [(sizes, sizes) for sizes in tiles.narrow_candidates(held_columns(shape.form), fp8)]}
    return {
        "fc1": [(sizes, replace(used, fc1=sizes)) for sizes in tiles.fc1_candidates(shape.form.gated, fp8)],
        "fc2": [(sizes, replace(used, fc2=sizes)) for sizes in tiles.fc2_candidates(fp8)],
    }


def _time_tiles(inputs: Inputs, weights: list[ExpertWeights], sizes: Any, rounds: int) -> dict[str, Any]:
    """`ms`, or None and `why`: a candidate that does not fit or compile is a result too."""

    def run(turn: int) -> None:
        fused_responses(inputs.tokens_TH[turn], weights[turn], "softplus", tiles=sizes)

    try:
        return {"ms": median(time_in_turn({"": run}, inputs.turns, rounds)[""])}
    except OutOfResources:
        return {"ms": None, "why": "does not fit"}
    except torch.AcceleratorError:  # the device is lost to this process
        raise
    except (CompilationError, PTXASError, RuntimeError) as error:
        return {"ms": None, "why": f"does not compile: {str(error)[:200]}"}


def time_in_turn(
    variants: dict[str, Callable[[int], None]], turns: Iterator[int], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each variant in each round, by CUDA events; the variants take turns within a round."""
    repeats = {name: _repeats(run, turns) for name, run in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            times[name].append(_time(run, turns, repeats[name]))
    return times


def _repeats(run: Callable[[int], None], turns: Iterator[int]) -> int:
    """Runs that fill the span; compiles and warms up on the way."""
    for _ in range(3):
        run(next(turns))
    return max(1, round(SPAN_MS / _time(run, turns, 1)))


def _time(run: Callable[[int], None], turns: Iterator[int], repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run(next(turns))
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def peak_megabytes(run: Callable[[int], None]) -> float:
    """Most memory above what is there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20

#!/usr/bin/env python3
"""All routers side by side: where one MoE layer sends the same tokens under each, and what a step costs.

    python benchmarks/routers.py --figure docs/guides/routers.png  # a layer of the model of examples/studies/tiny.yaml
    python benchmarks/routers.py --experts 64 --topk 8 --hidden 512 --activation relu     # of the authors' 154M model

Each layer starts from the same experts and is trained for some steps on the same made-up task, so that balance losses,
thresholds and penalties have settled; then all see the same held-out tokens. Loads, experts per token and weights are
of those tokens. Times are of a forward and backward pass of the layer in one thread, taken in turns within one run and given
as ratios to top-K; competition is timed at a step at which it competes.
"""

import argparse
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import ACTIVATIONS, Case
from benchmarks.ranks import DTYPES, be_the_only_rank
from benchmarks.summary import hardware, write_report
from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.launch.launchers import silence_cpu_warnings

DEFAULT_CASE = Case(tokens=512, hidden=128, ffn=128, experts=16, topk=2, ep=1)
"""A layer of the model of `examples/studies/tiny.yaml`."""
BASELINE = "topk"
HELD_OUT = 10**6
"""Seed of the tokens that no layer learned from."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for field in fields(Case):
        kind: dict[str, Any] = {"choices": ACTIVATIONS} if field.name == "activation" else {"type": int}
        if field.name != "ep":
            default = getattr(DEFAULT_CASE, field.name)
            parser.add_argument(f"--{field.name}", default=default, help=f"default {default}", **kind)
    parser.add_argument("--steps", type=int, default=200, help="steps of training before (default 200)")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw loads, experts per token and weights")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def start() -> None:
    """One rank of Megatron in this process."""
    silence_cpu_warnings()
    be_the_only_rank()
    if not torch.cuda.is_available():
        from megatron_compete.launch import cpu_backend as cpu

        cpu.activate()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    parallel_state.initialize_model_parallel()
    if torch.cuda.is_available():
        model_parallel_cuda_manual_seed(1)


def measure(case: Case, steps: int, repeats: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """By router: `label`, `router_parameters`, `weights` [T, E] and `kinds` [T] of held-out tokens, `shares_an_expert`,
    `time_ratio` to top-K and `ms` of each repeat."""
    from benchmarks.router_layers import ROUTERS, RoutedLayer, Task

    task = Task.of(case)
    layers = {name: RoutedLayer(router, case, dtype) for name, router in ROUTERS.items()}
    tokens, _, kinds_T = task.draw(case.tokens, HELD_OUT)
    results: dict[str, dict[str, Any]] = {}
    for name, routed in layers.items():
        for step in range(steps):
            drawn, targets, _ = task.draw(case.tokens, step)
            routed.learn(drawn.to(dtype), targets)
        results[name] = {
            "label": routed.router.label,
            "router_parameters": sum(parameter.numel() for parameter in routed.layer.router.parameters()),
            "weights": routed.weights(tokens.to(dtype)).cpu(),
            "kinds": kinds_T,
            "shares_an_expert": routed.router.shares_an_expert,
        }
        routed.go_to_competing_step()
        _say(f"{routed.router.label}: trained for {steps} steps")
    times = _times(layers, tokens.to(dtype), repeats)
    for name, result in results.items():
        result["ms"] = times[name]
        result["time_ratio"] = median(ours / theirs for ours, theirs in zip(times[name], times[BASELINE]))
    return results


def _times(layers: dict[str, Any], tokens: Tensor, repeats: int) -> dict[str, list[float]]:
    """Milliseconds by router; who begins rotates, so that noise of the machine hits all alike."""
    names = list(layers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-1, repeats):  # one round unmeasured
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            taken = _time_once(layers[name].layer, tokens)
            if repeat >= 0:
                times[name].append(taken)
    return times


def _time_once(layer: Any, tokens: Tensor) -> float:
    """Milliseconds of a forward and backward pass: the device's, or on a CPU this process's own processor time."""
    tokens = tokens.detach().requires_grad_()
    on_device = torch.cuda.is_available()
    if on_device:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
    started = time.process_time()
    output, _ = layer(tokens)
    output.backward(torch.ones_like(output))
    taken = 1000 * (time.process_time() - started)
    if on_device:
        end.record()
        torch.cuda.synchronize()
        taken = begin.elapsed_time(end)
    layer.zero_grad()
    if hasattr(layer.router, "observed"):  # a step that is timed is not learned from
        layer.router.observed = None
    return taken


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """The table's columns of one router, from its weights [T, E] and times."""
    chosen_TE = result["weights"] > 0
    load_E, count_T = chosen_TE.sum(dim=0).float(), chosen_TE.sum(dim=1).float()
    return {
        "router parameters": result["router_parameters"],
        "experts per token": float(count_T.mean()),
        "std over tokens": float(count_T.std()),
        "busiest / mean": float(load_E.max() / load_E.mean()),
        "std / mean load": float(load_E.std() / load_E.mean()),
        "dead": int((load_E == 0).sum()),
        "time / top-K": result["time_ratio"],
    }


def markdown(results: dict[str, dict[str, Any]], case: Case, steps: int, repeats: int) -> str:
    """The table, with what it was measured on."""
    columns = list(numbers(results[BASELINE]))
    lines = [f"| router | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for result in results.values():
        label = result["label"] + (" (and 1 shared)" if result["shares_an_expert"] else "")
        cells = [f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for value in numbers(result).values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    shape = str(case).replace("\n", " ")
    lines += ["", f"{shape}, {steps} steps of training, {repeats} repeats; {hardware()}.", ""]
    return "\n".join(lines)


def check(arguments: argparse.Namespace) -> Case:
    """The shape that flags describe.

    Raises:
        CompeteError: one that some router cannot have.
    """
    case = Case(**{f.name: getattr(arguments, f.name) for f in fields(Case) if f.name != "ep"}, ep=1)
    if not 2 <= case.topk < case.experts:
        raise CompeteError(f"--topk {case.topk} with --experts {case.experts}: give 2 or more, and fewer than experts")
    if case.experts < 4:
        raise CompeteError(f"--experts {case.experts}: half of them are the cosine routers' dimensions, give 4 or more")
    if min(arguments.repeats, case.tokens, case.hidden, case.ffn) < 1 or arguments.steps < 0:
        raise CompeteError("sizes and --repeats must be 1 or more")
    return case


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    arguments = parse_arguments()
    case = check(arguments)
    torch.set_num_threads(1)  # processor time would count threads that wait for each other
    start()
    results = measure(case, arguments.steps, arguments.repeats, DTYPES[arguments.dtype])
    table = markdown(results, case, arguments.steps, arguments.repeats)
    print(table)
    if arguments.markdown:
        arguments.markdown.write_text(table)
    if arguments.json:
        rows = {name: numbers(result) | {"ms": result["ms"]} for name, result in results.items()}
        write_report(arguments.json, {"hardware": hardware(), "case": asdict(case), "routers": rows})
    if arguments.figure:
        from benchmarks.router_figure import draw_routers

        draw_routers(results, case, arguments.figure)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_command(main)

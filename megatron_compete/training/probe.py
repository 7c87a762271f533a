"""Held-out loss and the router statistics on fixed text, while a job trains: `--probe-log FILE --probe-data PREFIX`.

Megatron's own evaluation reads on through its validation set, so that two of them see different text, and knows nothing
of routers. The probe reads the same sequences each time, before the first step and after every `--probe-interval` steps,
and asks any router that is a `TopKRouter` for what it did with them. It draws no random numbers and changes no state:
losses are the same with and without it. Beside them stands what the training steps alone have cost, without the probe,
logging and checkpoints: in seconds by the clock, and in seconds of this process's processor time, which other load on a
shared machine disturbs less.

One JSON line a probe. A resumed job goes on in the same file; lines beyond the checkpoint are dropped.
"""

import argparse
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.data.dataset import open_dataset
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.routing.router_statistics import (
    coactivation,
    decision_margin,
    pack_choices,
    pair_counts,
    router_entropy,
)

REMEMBERED_TOKENS = 256
"""Tokens whose experts a line names, evenly spaced over the probe's."""


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags `--probe-*`."""
    flag = parser.add_argument_group("probe").add_argument
    flag("--probe-log", help="JSON lines of held-out loss, router statistics and the seconds steps took")
    flag("--probe-data", help="prefix of the held-out dataset that the probe reads; the same for every job of a study")
    flag("--probe-sequences", type=int, default=64, help="sequences of --seq-length it reads")
    flag("--probe-interval", type=int, default=100, help="steps between two probes")


def check_probe_arguments(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for a probe that could not run."""
    if args.probe_log is None:
        return
    if args.probe_data is None:
        raise CompeteError("--probe-log without --probe-data: name the prefix of a held-out dataset")
    for name in ("probe_sequences", "probe_interval"):
        if getattr(args, name) < 1:
            raise CompeteError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range: give 1 or more")
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
        if getattr(args, name) > 1:
            raise CompeteError(
                f"--{name.replace('_', '-')} {getattr(args, name)} with --probe-log: the probe needs whole layers and "
                "sequences on each rank; use data and expert parallelism"
            )
    if getattr(args, "overlap_param_gather", False):
        raise CompeteError(
            "--overlap-param-gather with --probe-log: weights are not whole between steps; leave one out"
        )


def read_sequences(prefix: str, count: int, length: int) -> Tensor:
    """`count` windows of `length` + 1 ids, evenly spaced over a dataset's tokens: int64 [count, length + 1].

    Raises:
        CompeteError: no such dataset, or one with too little text.
    """
    try:
        ids = open_dataset(prefix).ids()
    except CompeteError as error:
        raise CompeteError(f"--probe-data {prefix}: {error}") from None
    if len(ids) < count * length + 1:
        raise CompeteError(
            f"--probe-data {prefix} holds {len(ids)} tokens, and {count} sequences of {length} need more: "
            "lower --probe-sequences or hold out more text"
        )
    starts = np.linspace(0, len(ids) - length - 1, count).astype(np.int64)
    return torch.from_numpy(np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64))


@dataclass
class RouterStatistics:
    """Sums of one router over the probe's tokens."""

    top_k: int
    entropy: float = 0.0
    margin: float = 0.0
    tokens: int = 0
    pairs_EE: Tensor | float = 0.0
    maps_TE: list[Tensor] | None = None

    def add(self, logits_TE: Tensor | None, map_TE: Tensor) -> None:
        """Take one batch of tokens; of a router without logits entropy and margin are not a number."""
        self.entropy += math.nan if logits_TE is None else float(router_entropy(logits_TE).sum())
        self.margin += math.nan if logits_TE is None else float(decision_margin(logits_TE, self.top_k).sum())
        self.tokens += len(map_TE)
        map_TE = map_TE.bool().cpu()
        self.pairs_EE = self.pairs_EE + pair_counts(map_TE)
        self.maps_TE = [*(self.maps_TE or []), map_TE]

    def chosen(self) -> Tensor:
        """Experts of the remembered tokens, bool [N, E]."""
        assert self.maps_TE is not None, "the router was not asked"
        whole_TE = torch.cat(self.maps_TE)
        return whole_TE[:: max(1, -(-len(whole_TE) // REMEMBERED_TOKENS))]


def routers_of(model: torch.nn.Module) -> list[TopKRouter]:
    """The decoder's routers in order of depth."""
    found = [module for module in model.modules() if isinstance(module, TopKRouter)]
    return sorted(
        (router for router in found if not getattr(router, "is_mtp_layer", False)), key=lambda r: r.layer_number
    )


@contextmanager
def listening(routers: list[TopKRouter]) -> Iterator[list[RouterStatistics]]:
    """Habits of the routers, filled by the forward passes inside."""
    statistics = [RouterStatistics(router.topk) for router in routers]
    with ExitStack() as stack:
        for router, one in zip(routers, statistics):
            stack.callback(_listen(router, one))
        yield statistics


def _listen(router: TopKRouter, statistics: RouterStatistics) -> Callable[[], None]:
    """Hand a router's logits and maps to `statistics`; how to stop it."""
    logits: list[Tensor] = []
    gating = router.gating

    def remember(*args: Any, **kwargs: Any) -> Tensor:
        logits.append(gating(*args, **kwargs))
        return logits[-1]

    def add(module: torch.nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        statistics.add(logits[-1].reshape(-1, logits[-1].shape[-1]) if logits else None, outputs[1])
        logits.clear()

    router.gating = remember
    hook = router.register_forward_hook(add)

    def undo() -> None:
        del router.gating
        hook.remove()

    return undo


@torch.no_grad()
def probe(model: torch.nn.Module, sequences: Tensor, batch: int) -> dict[str, Any]:
    """Mean loss of the held-out tokens in nats, and what each router did.

    Args:
        model: as the trainer holds it; put into evaluation mode and back.
        sequences: ids [N, S + 1].
        batch: sequences to a forward pass.
    """
    device = next(model.parameters()).device
    length = sequences.shape[1] - 1
    mask = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    positions = torch.arange(length, device=device)
    total = 0.0
    model.eval()
    try:
        with listening(routers_of(model)) as statistics:
            for part in sequences.to(device).split(batch):
                rows = len(part)
                losses = model(
                    part[:, :-1], positions.expand(rows, -1), mask.expand(rows, 1, -1, -1), labels=part[:, 1:]
                )
                total += float(losses.double().sum())
    finally:
        model.train()
    return {"loss": total / (len(sequences) * length), **_summary(statistics)}


def _summary(statistics: list[RouterStatistics]) -> dict[str, Any]:
    if not statistics:
        return {}
    pairs = [one.pairs_EE for one in statistics]
    chosen_LNE = torch.stack([one.chosen() for one in statistics])
    return {
        "load": [pair.diagonal().long().tolist() for pair in pairs if isinstance(pair, Tensor)],
        "entropy": [one.entropy / one.tokens for one in statistics],
        "margin": [one.margin / one.tokens for one in statistics],
        "coactivation": [coactivation(pair) for pair in pairs if isinstance(pair, Tensor)],
        "choices_shape": list(chosen_LNE.shape),
        "choices": pack_choices(chosen_LNE),
    }


def digest_weights(model: torch.nn.Module) -> str:
    """Short sha256 over all weights but the routers': runs that start alike have the same."""
    whole = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".router." not in name:
            whole.update(parameter.detach().float().cpu().numpy().tobytes())
    return whole.hexdigest()[:16]


class ProbeLog:
    """The file of one job, and the seconds that its training steps have taken so far."""

    def __init__(self, path: Path, write: bool) -> None:
        self.path, self.write = path, write
        self.wall_seconds = self.processor_seconds = 0.0
        self.is_open = False

    def resume(self, step: int) -> None:
        """Go on at `step`: drop later lines, and count on from the last one before."""
        self.is_open = True
        if not self.write:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in map(json.loads, lines) if line["step"] <= step] if step > 0 else []
        if kept and kept[-1]["step"] > 0:
            share = step / kept[-1]["step"]  # a checkpoint between two probes: at the mean cost of the steps before
            self.wall_seconds = kept[-1]["wall_seconds"] * share
            self.processor_seconds = kept[-1]["processor_seconds"] * share
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict[str, Any]) -> None:
        """Append a probe's line."""
        seconds = {"wall_seconds": self.wall_seconds, "processor_seconds": self.processor_seconds}
        if self.write:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line | seconds) + "\n")

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count what runs inside as training."""
        _wait_for_device()
        wall, processor = time.perf_counter(), time.process_time()
        yield
        _wait_for_device()
        self.wall_seconds += time.perf_counter() - wall
        self.processor_seconds += time.process_time() - processor


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def install_probe(args: argparse.Namespace) -> None:
    """Let Megatron's training loop probe as the arguments say; nothing without `--probe-log`.

    The loop has no hook around a step, so its `train_step` is replaced by one that calls it.
    """
    if args.probe_log is None:
        return
    from megatron.training import training

    sequences = on_rank_0(lambda: read_sequences(args.probe_data, args.probe_sequences, args.seq_length))
    log = ProbeLog(Path(args.probe_log), write=args.rank == 0)
    training.train_step = probing(training.train_step, args, sequences, log)


def probing(
    upstream: Callable[..., Any], args: argparse.Namespace, sequences: Tensor, log: ProbeLog
) -> Callable[..., Any]:
    """Megatron's `train_step` with a clock around it, and a probe where one is due."""

    @functools.wraps(upstream)
    def train_step(step: Any, data: Any, model: list[Any], *rest: Any, iteration: int, **keywords: Any) -> Any:
        if not log.is_open:
            log.resume(iteration)
            if iteration == 0:
                first = probe(model[0], sequences, args.micro_batch_size)
                log.add({"step": 0, "tokens": 0, **first, "weights": digest_weights(model[0])})
        with log.clock():
            result = upstream(step, data, model, *rest, iteration=iteration, **keywords)
        done = iteration + 1
        if done % args.probe_interval == 0 or done == args.train_iters:
            found = probe(model[0], sequences, args.micro_batch_size)
            log.add({"step": done, "tokens": _tokens(args), **found})
        return result

    return train_step


def _tokens(args: argparse.Namespace) -> int:
    """Tokens trained on after the step in progress."""
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    batch = get_num_microbatches() * args.micro_batch_size * args.data_parallel_size
    return int((args.consumed_train_samples + batch) * args.seq_length)

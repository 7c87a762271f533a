"""A student's training: Megatron-Core's schedules of microbatches and learning rate around one layer, and the probe's lines.

A run takes seconds; one that was killed begins again.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.launch import cpu_backend
from megatron_compete.study.regions.arguments import parse_arguments
from megatron_compete.study.regions.flops import competition_flops, expert_flops
from megatron_compete.study.regions.growth import save_weights
from megatron_compete.study.regions.student import Student, build_student
from megatron_compete.study.regions.teacher import Examples, Teacher, relative_loss
from megatron_compete.training.probe import digest_weights, listening, routers_of, summary
from megatron_compete.training.probe_log import ProbeLog


def main() -> None:
    """The command: train a student."""
    torch.set_num_threads(1)
    try:
        args = parse_arguments(sys.argv[1:])
        start_process()
        Run(args).train()
    except CompeteError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def start_process() -> None:
    """torch.distributed and Megatron-Core's groups of one process, which needs no port."""
    if cpu_backend.is_needed():
        cpu_backend.activate()
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "gloo" if cpu_backend.is_needed() else "nccl"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)


class Run:
    """One student's training, from its first step to its last."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.step = 0
        """The step in progress, from 0."""
        self.student, self.competition = build_student(args, lambda: self.step)
        if self.competition is not None:
            self.competition.check_model([self.student])
        betas = args.adam_beta1, args.adam_beta2
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=args.lr, betas=betas, fused=True)
        self.schedule = OptimizerParamScheduler(
            self.optimizer, init_lr=0.0, max_lr=args.lr, min_lr=args.min_lr, lr_warmup_steps=args.lr_warmup_iters,
            lr_decay_steps=max(args.train_iters, args.lr_warmup_iters + 1), lr_decay_style=args.lr_decay_style, start_wd=0.0, end_wd=0.0,
            wd_incr_steps=0, wd_incr_style="constant",
        )  # fmt: skip
        self.device = next(self.student.parameters()).device
        self.teacher = Teacher.of_seed(args.seed, args.hidden_size, args.regions, args.region_rank)
        self.batches = self._on_device(self.teacher.batches(args.seed, args.global_batch_size, args.samples))
        self.held_out = next(self._on_device(iter([self.teacher.held_out(args.seed, args.probe_sequences)])))
        self.flops = 0.0

    def train(self) -> None:
        """All steps, with a probe before the first and after every --probe-interval."""
        args = self.args
        log = ProbeLog(Path(args.probe_log or os.devnull), write=args.probe_log is not None)
        log.resume(0)
        self._add_probe(log, 0, {"weights": digest_weights(self.student)})
        for self.step in range(args.train_iters):
            with log.clock():
                self.train_step()
            done = self.step + 1
            self.flops += expert_flops(args) + self._competition_flops()
            if done % args.probe_interval == 0 or done == args.train_iters:
                self._add_probe(log, done, {})
        if args.save:
            save_weights(self.student.weights(), Path(args.save))

    def train_step(self) -> None:
        """Gradients of one batch and a step of the optimizer."""
        self.schedule.step(increment=1)
        self.optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=_forward_step, data_iterator=self.batches, model=[self.student], num_microbatches=1,
            seq_length=self.args.global_batch_size, micro_batch_size=1, forward_only=False,
        )  # fmt: skip
        self.optimizer.step()

    @torch.no_grad()
    def probe(self) -> dict[str, Any]:
        """Relative held-out loss, and what the router did with the held-out inputs."""
        held_out = self.held_out
        self.student.eval()
        try:
            with listening(routers_of(self.student)) as statistics:
                outputs_NH = self.student(held_out.inputs_NH, held_out.regions_N)
        finally:
            self.student.train()
        return {"loss": relative_loss(outputs_NH, held_out.targets_NH), **summary(statistics)}

    def _add_probe(self, log: ProbeLog, step: int, more: dict[str, Any]) -> None:
        found = self.probe()
        log.add({"step": step, "tokens": step * self.args.global_batch_size, "flops": self.flops, **found, **more})
        print(f"step {step}: relative held-out loss {found['loss']:.5f}", flush=True)

    def _competition_flops(self) -> float:
        if self.competition is None or not self.competition.num_active():
            return 0.0
        return competition_flops(self.args, CompeteConfig.from_arguments(self.args))

    def _on_device(self, batches: Iterator[Examples]) -> Iterator[Examples]:
        for one in batches:
            yield Examples(*(values.to(self.device) for values in vars(one).values()))


def _forward_step(batches: Iterator[Examples], model: Student) -> tuple[Tensor, Any]:
    """Half the squared error of each input, summed over its outputs."""
    batch = next(batches)
    errors_TH = model(batch.inputs_NH, batch.regions_N) - batch.targets_NH
    return 0.5 * errors_TH.square().sum(dim=-1), _mean_loss


def _mean_loss(losses_T: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Megatron-Core's loss function: the mean over inputs."""
    loss = losses_T.mean()
    return loss, {"loss": loss.detach()}

"""What data parallel ranks share out among themselves, and what they send for it.

Megatron's own data parallelism holds weights and gradients whole; its distributed optimizer shares out the optimizer's
state over the data parallel ranks, or over each of several instances of them. Fully sharded data parallelism
(Megatron-FSDP, `--data-parallel-sharding-strategy`; torch's FSDP2) shares out gradients and weights as well, gathers a
layer's weights before its forward and its backward pass and scatters its gradients after it, at every microbatch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_compete.plan.job import Job
from megatron_compete.plan.precision import gathered_bytes, linear_weight_bytes
from megatron_compete.plan.tensors import OF_LINEAR_LAYERS, Tensors


@dataclass(frozen=True)
class SyncBytes:
    """Sent by a rank in a step."""

    gradients: float
    parameters: float


@dataclass(frozen=True)
class Sharding:
    """What of the state is shared out."""

    optimizer: bool
    gradients: bool = False
    weights: bool = False
    instances: int = 1
    """Groups of data parallel ranks that share out the optimizer's state each (`--num-distributed-optimizer-instances`)."""

    @classmethod
    def of(cls, job: Job) -> "Sharding":
        """Of a job's arguments."""
        args = job.args
        if args.use_torch_fsdp2:
            return cls(optimizer=True, gradients=True, weights=True)
        instances = args.num_distributed_optimizer_instances
        if args.use_megatron_fsdp:
            level = ("no_shard", "optim", "optim_grads", "optim_grads_params").index(
                args.data_parallel_sharding_strategy
            )
            return cls(level >= 1, level >= 2, level >= 3, instances)
        return cls(bool(args.use_distributed_optimizer or args.optimizer == "dist_muon"), instances=instances)

    @property
    def every_microbatch(self) -> bool:
        """Whether something is sent at every microbatch."""
        return self.gradients or self.weights

    def optimizer_ranks(self, job: Job, expert: bool) -> int:
        """Ranks over which the optimizer's state is shared out; 1 where it is not."""
        return max(1, self.ranks(job, expert) // self.instances) if self.optimizer else 1

    @staticmethod
    def ranks(job: Job, expert: bool) -> int:
        """Ranks over which gradients are summed."""
        return job.sizes.edp if expert else job.sizes.dp * job.sizes.cp

    def held_weights(self, job: Job, tensors: Sequence[Tensors]) -> float:
        """Bytes of weights on a rank; of shared-out ones its part, and the largest layer's as a whole for a time."""
        if not tensors:
            return 0.0
        whole = [item.on_rank * weight_bytes(job, item) for item in tensors]
        if not self.weights:
            return sum(whole)
        return sum(whole) / self.optimizer_ranks(job, tensors[0].expert) + 2 * max(whole)

    def held_gradients(self, job: Job, elements: int, expert: bool) -> float:
        """Bytes of gradients on a rank."""
        return elements * gradient_bytes(job) / (self.optimizer_ranks(job, expert) if self.gradients else 1)

    def sent(self, job: Job, tensors: Sequence[Tensors], ranks: int) -> SyncBytes:
        """For gradients and for parameters, by a ring of `ranks`."""
        around = (ranks - 1) / ranks
        tensors = [item for item in tensors if not item.frozen]
        elements = sum(item.on_rank for item in tensors)
        values = sum(item.on_rank * gathered(job, item) for item in tensors)
        gradients = elements * gradient_bytes(job) * around
        if not self.optimizer:
            return SyncBytes(2 * gradients, 0.0)
        if self.instances > 1:  # the instances' shards are summed over them
            per_shard = self.instances / ranks
            gradients += 2 * per_shard * elements * gradient_bytes(job) * (self.instances - 1) / self.instances
        passes = job.microbatches
        return SyncBytes(
            gradients * (passes if self.gradients else 1), values * around * (2 * passes if self.weights else 1)
        )

    def sent_bytes(self, job: Job, tensors: Sequence[Tensors], ranks: int) -> float:
        """All of `sent`."""
        sent = self.sent(job, tensors, ranks)
        return sent.gradients + sent.parameters


def weight_bytes(job: Job, tensors: Tensors) -> float:
    """Of one element of these weights."""
    return linear_weight_bytes(job) if _in_low_precision(tensors) else float(job.element_bytes)


def gathered(job: Job, tensors: Tensors) -> float:
    """Bytes of one of these weights' elements as it is sent."""
    return gathered_bytes(job) if _in_low_precision(tensors) else float(job.element_bytes)


def _in_low_precision(tensors: Tensors) -> bool:
    """Whether FP8 is about these weights: tower and projector train without it."""
    return tensors.kind in OF_LINEAR_LAYERS and tensors.part == "language"


def gradient_bytes(job: Job) -> int:
    """Of one element of the buffer in which gradients are accumulated and reduced."""
    if job.args.use_precision_aware_optimizer:
        return int(job.args.main_grads_dtype.itemsize)
    return 4 if job.args.accumulate_allreduce_grads_in_fp32 else job.element_bytes

"""Bytes that a rank sends in a step, by kind of parallelism, and how many of them leave its node.

A layer's share is `plan/layer_traffic.py`'s. What leaves the node follows from Megatron's own rank groups: in a ring the share of neighbours on another
node, in an all-to-all the share of peers there.

Left out as too small to see: gradients of norms and routers over tensor parallel ranks, the loss, grad norm, counters
of tokens per expert, and the metrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_compete.plan.activations import FP32
from megatron_compete.plan.groups import Groups
from megatron_compete.plan.job import Job
from megatron_compete.plan.layer_traffic import LayerTraffic
from megatron_compete.plan.layers import LayerKind, Layers
from megatron_compete.plan.parameters import Parameters
from megatron_compete.plan.sharding import Sharding, gradient_bytes

PURPOSES = {
    "tp": "tensor parallel: hidden states of attention, MLP and shared experts",
    "cp": "context parallel: keys and values",
    "ep": "expert parallel: rows to experts and back",
    "etp": "expert tensor parallel: rows to shards and back",
    "pp": "pipeline parallel: hidden states to the next stage and gradients back",
    "dp-cp": "data parallel: gradients and parameters",
    "edp": "data parallel of experts: gradients and parameters",
    "embedding": "gradients of embeddings that two stages hold",
    "competition": "scoring passes: mean over steps",
}
"""What travels in each group."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind that a rank sends in a step."""

    purpose: str
    """A key of `PURPOSES`."""
    group_size: int
    sent_P: NDArray[np.float64]
    """By a rank of each pipeline stage."""
    across_share: float
    """Share that leaves the node."""

    @property
    def most(self) -> float:
        """Of the stage that sends most."""
        return float(self.sent_P.max())

    @property
    def within(self) -> float:
        """Bytes of `most` that stay in the node."""
        return self.most * (1 - self.across_share)

    @property
    def across(self) -> float:
        """Bytes of `most` that leave it."""
        return self.most * self.across_share


class StepTraffic:
    """Traffic of a whole step: everything but competition, and competition at its mean rate."""

    def __init__(self, job: Job, parameters: Parameters) -> None:
        self.job, self.parameters = job, parameters
        self.layers, self.groups = LayerTraffic(job), Groups(job)
        self.parts = [(part, LayerTraffic(part)) for part in job.parts]

    def all(self) -> tuple[Traffic, ...]:
        """Every kind that is sent at all."""
        kinds = [*self._in_layers(), self._pipeline(), *self._data_parallel(), self._embedding(), self._competition()]
        return tuple(kind for kind in kinds if kind.most > 0)

    def _in_layers(self) -> Iterator[Traffic]:
        parts = [(part.layers, {kind: layer.normal(kind).total for kind in part.layers.kinds}) for part, layer in self.parts]  # fmt: skip
        for name in ("tp", "cp", "ep", "etp"):
            sent_P = np.zeros(self.job.sizes.pp)
            for layers, of_kind in parts:
                sent_P = sent_P + self._per_stage(layers, {kind: sent.get(name, 0.0) for kind, sent in of_kind.items()})
            if name == "tp":
                sent_P = sent_P + self._embedding_and_output()
            group = self.groups[name]
            yield Traffic(name, group.size, sent_P * self.job.microbatches, group.across_share)

    def _per_stage(self, layers: Layers, of_kind: dict[LayerKind, float]) -> NDArray[np.float64]:
        """Sums over the layers that a microbatch passes on each stage."""
        stages, chunks = range(self.job.sizes.pp), range(self.job.sizes.vp)
        return np.array(
            [sum(of_kind[kind] for chunk in chunks for kind in layers.run_by(stage, chunk)) for stage in stages],
            dtype=np.float64,
        )

    def _embedding_and_output(self) -> NDArray[np.float64]:
        """Tensor parallel collectives around the vocabulary: embedding (reduce-scatter, its transpose), output layer."""
        job, tp = self.job, self.job.sizes.tp
        once = self.layers.stream * (tp - 1) / tp
        sent_P = np.zeros(job.sizes.pp)
        sent_P[0] += 2 * once
        heads, depths = 1 + job.layers.mtp_depths, job.layers.mtp_depths
        sent_P[-1] += heads * (3 if job.transformer.sequence_parallel else 2) * once
        sent_P[job.layers.mtp_place[0]] += (
            depths * 6 * once
        )  # the embedding again, and the joint projection's collectives
        return sent_P

    def _pipeline(self) -> Traffic:
        job = self.job
        sends_P = np.full(job.sizes.pp, 2.0 * job.sizes.vp)
        sends_P[0] -= 1.0  # no gradient goes back from the embedding
        sends_P[-1] -= 1.0  # no hidden states go on from the loss
        if job.sizes.pp == 1:
            sends_P[:] = 0.0
        sent_P = sends_P * transfer_bytes(job) * job.microbatches
        return Traffic("pp", job.sizes.pp, sent_P, self.groups.stage_share)

    def _data_parallel(self) -> Iterator[Traffic]:
        for name, expert in (("dp-cp", False), ("edp", True)):
            group = self.groups[name]
            sent_P = [self.sync_bytes(stage, expert, group.size) for stage in range(self.job.sizes.pp)]
            yield Traffic(name, group.size, np.array(sent_P), group.ring_share)

    def sync_bytes(self, stage: int, expert: bool, ranks: int) -> float:
        """Sent by a rank in a step for its gradients' sums and new parameters, `plan/sharding.py`."""
        tensors = [item for chunk in self.parameters.tensors_PV[stage] for item in chunk if item.expert == expert]
        return Sharding.of(self.job).sent_bytes(self.job, tensors, ranks)

    def _embedding(self) -> Traffic:
        job = self.job
        sent_P = np.zeros(job.sizes.pp)
        elements = job.args.padded_vocab_size // job.sizes.tp * job.transformer.hidden_size
        if job.sizes.pp > 1 and not job.args.untie_embeddings_and_output_weights:
            sent_P[[0, -1]] = elements * gradient_bytes(job)
        predicts = job.layers.mtp_place[0]
        if job.layers.mtp_depths and predicts > 0:  # its copy of the embedding
            sent_P[[0, predicts]] = elements * gradient_bytes(job)
        return Traffic("embedding", 2, sent_P, self.groups.ends_share)

    def _competition(self) -> Traffic:
        job = self.job
        if job.schedule is None:
            return Traffic("competition", 1, np.zeros(job.sizes.pp), 0.0)
        of_part = {part.part: layer.competing().total for part, layer in self.parts}
        sent_P, across_P = np.zeros((2, job.sizes.pp))
        for part, (stage, _) in zip(job.competing_parts, job.stage_chunks, strict=True):
            layer = of_part[part.part]
            sent_P[stage] += sum(layer.values())
            across_P[stage] += sum(sent * self.groups[name].across_share for name, sent in layer.items())
        busiest = int(sent_P.argmax())
        share = float(across_P[busiest] / sent_P[busiest]) if sent_P[busiest] else 0.0
        size = job.sizes.ep * job.sizes.etp
        return Traffic("competition", size, sent_P * job.microbatches * job.schedule.rate, share)


def transfer_bytes(job: Job) -> float:
    """Hidden states of one microbatch as a stage hands them to the next."""
    size = FP32 if job.transformer.fp32_residual_connection else job.element_bytes
    return float(job.sharded_tokens * job.transformer.hidden_size * size)

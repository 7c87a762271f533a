"""Bytes that a rank sends for one layer and one microbatch, by kind of group.

A collective is counted at the algorithm that sends least (as `benchmarks/traffic.py` measures it): of n ranks an
all-gather sends a rank's part n - 1 times, a reduce-scatter (n - 1) / n of the input, an all-reduce both, an all-to-all
(n - 1) / n. Routing is taken to be even.
"""

from dataclasses import dataclass

from megatron_compete.plan.activations import FP32, capacity_share, recomputes_experts, recomputes_layers
from megatron_compete.plan.job import Job
from megatron_compete.plan.layers import LayerKind
from megatron_compete.plan.mixer_parameters import GdnShape, LatentShape, MambaShape


@dataclass(frozen=True)
class LayerBytes:
    """What a rank sends for one microbatch and one layer, by group: forward and backward pass."""

    forward: dict[str, float]
    backward: dict[str, float]

    @property
    def total(self) -> dict[str, float]:
        """Both passes."""
        return {
            name: self.forward.get(name, 0.0) + self.backward.get(name, 0.0) for name in self.forward | self.backward
        }


class LayerTraffic:
    """Bytes of one layer and one microbatch."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stream = job.tokens * job.transformer.hidden_size * job.element_bytes
        """The whole hidden states of a microbatch on a tensor parallel group."""

    def normal(self, kind: LayerKind) -> LayerBytes:
        """A normal step's, recomputation included."""
        forward = {"tp": self._tensor(kind, backward=False), "cp": self._context(kind, backward=False)}
        backward = {"tp": self._tensor(kind, backward=True), "cp": self._context(kind, backward=True)}
        if kind.is_moe:
            forward |= {"ep": self._dispatch(), "etp": self._shards()}
            backward |= {"ep": self._dispatch(inputs=self.job.gradients_reach), "etp": self._shards()}
        repeated = forward if recomputes_layers(self.job) else {}
        if kind.is_moe and not repeated and recomputes_experts(self.job):
            repeated = {name: forward[name] for name in ("ep", "etp")}
        for name, sent in repeated.items():
            backward[name] += sent
        if not (self.job.trains or self.job.gradients_reach):  # frozen, as all before it
            backward = {}
        return LayerBytes(_nonzero(forward), _nonzero(backward))

    def competing(self) -> LayerBytes:
        """What competition adds: the scoring pass, and with all responses' gradients its second run. By utility it runs
        in the backward pass, and output gradients are gathered too, by the ranks that reduce for their tokens."""
        forward = self._scoring()
        if self.job.by_utility:
            gradients = self.job.competing_tokens * self.job.expert_output * self.job.element_bytes
            scoring = forward | {"ep": forward["ep"] + gradients * (self.job.sizes.ep - 1)}
            return LayerBytes({}, _nonzero(scoring))
        backward: dict[str, float] = {}
        if self.job.compete is not None and self.job.compete.response_gradients == "all":
            # moe/response_gradients.py: tokens out and their gradients home, partial outputs and their gradients, and
            # the scores' gradients
            backward = {"tp-ep": 2 * forward["tp-ep"], "etp": 2 * forward["etp"], "ep": forward["ep"]}
        return LayerBytes(_nonzero(forward), _nonzero(backward))

    def _tensor(self, kind: LayerKind, backward: bool) -> float:
        """megatron/core/tensor_parallel/mappings.py. Under sequence parallelism a column parallel layer gathers its
        input, and once more for its weight's gradient; a row parallel one scatters its output."""
        job, tp = self.job, self.job.sizes.tp
        shared = bool(job.transformer.moe_shared_expert_intermediate_size)
        collectives = (3 if backward else 2) if job.transformer.sequence_parallel else 2
        blocks = (kind.mixer is not None) + (shared if kind.is_moe else kind.mlp is not None)
        sent = blocks * collectives * self.stream
        if kind.mixer == "mla":  # gathered are the latents instead of the hidden states
            latent = LatentShape.of(job)
            width = latent.query_rank + latent.rank + latent.rotary
            narrow = job.tokens * width * job.element_bytes
            sent += (collectives - 1) * (narrow - self.stream) if latent.query_rank else (collectives - 1) * narrow
        if kind.mixer == "attention" and job.transformer.num_query_groups < tp:  # groups are gathered to be repeated
            groups = job.transformer.num_attention_heads + 2 * job.transformer.num_query_groups
            sent += job.tokens * groups * job.transformer.kv_channels * job.element_bytes
        return sent * (tp - 1) / tp

    def _context(self, kind: LayerKind, backward: bool) -> float:
        """Keys and values around the ring, and in the backward pass their gradients too; or heads by all-to-all, as gated
        delta nets and Mamba always do."""
        job, cp = self.job, self.job.sizes.cp
        if kind.mixer is None:
            return 0.0
        queries, keys, values = (job.tokens * width / job.sizes.tp * job.element_bytes for width in self._widths(kind))
        if "a2a" in job.args.cp_comm_type or kind.mixer in ("gdn", "mamba"):
            return (
                (queries + keys + 2 * values if kind.mixer in ("gdn", "mamba") else 2 * queries + keys + values)
                * (cp - 1)
                / cp
            )
        return (2 if backward else 1) * (keys + values) * (cp - 1)

    def _widths(self, kind: LayerKind) -> tuple[float, float, float]:
        """Of queries, keys and values over all tensor parallel ranks."""
        config = self.job.transformer
        if kind.mixer == "mla":
            latent = LatentShape.of(self.job)
            return latent.queries, latent.queries, latent.values
        if kind.mixer == "gdn":
            gdn = GdnShape.of(self.job)
            return gdn.keys, gdn.keys, gdn.values
        if kind.mixer == "mamba":
            mamba = MambaShape.of(self.job)
            return mamba.state, mamba.state, mamba.inner
        keys = max(config.num_query_groups, self.job.sizes.tp) * config.kv_channels
        return config.num_attention_heads * config.kv_channels, keys, keys

    def _dispatch(self, inputs: bool = True) -> float:
        """Rows to their experts' ranks and back: dispatch and combine, or their gradients.

        Args:
            inputs: whether rows travel to the experts, or their gradients back: of what has none they do not.
        """
        job, config = self.job, self.job.transformer
        tokens, ep, winners = job.sharded_tokens, job.sizes.ep, config.moe_router_topk
        row = job.expert_width * job.element_bytes
        if config.moe_token_dispatcher_type == "allgather":
            return 2 * tokens * row * (ep * job.sizes.etp - 1)
        if config.moe_token_dispatcher_type == "flex":  # a token goes once to each rank that has winners of its
            ranks = ep * (1 - (1 - 1 / ep) ** winners)
            return 2 * tokens * ranks * row * (ep - 1) / ep
        both = (row if inputs else 0) + job.expert_output * job.element_bytes
        return tokens * winners * capacity_share(job) * (both + FP32) * (ep - 1) / ep

    def _shards(self) -> float:
        """Rows gathered over the expert tensor parallel ranks and scattered back."""
        job, config = self.job, self.job.transformer
        if config.moe_token_dispatcher_type == "allgather":  # one gather over all ranks of the experts
            return 0.0
        row = job.expert_width * job.element_bytes
        return 2 * job.sharded_tokens * config.moe_router_topk * capacity_share(job) * row * (job.sizes.etp - 1)

    def _scoring(self) -> dict[str, float]:
        """`moe/scoring.py`: competing tokens to the whole expert group, partial outputs over its shards, scores home."""
        job, config, sizes = self.job, self.job.transformer, self.job.sizes
        tokens, group = job.competing_tokens, sizes.ep * sizes.etp
        row, answer = job.expert_width * job.element_bytes, job.expert_output * job.element_bytes
        experts = (config.num_moe_experts or 0) // sizes.ep
        return {
            "tp-ep": tokens * row * (group - 1),
            "etp": experts * tokens * group * answer * (sizes.etp - 1) / sizes.etp,
            "ep": tokens * experts * FP32 * (sizes.ep - 1),
        }


def _nonzero(sent: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in sent.items() if value > 0}

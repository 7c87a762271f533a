"""Seconds of one layer and one microbatch on one rank, from flops, bytes moved and bytes sent.

A roofline by parts: GEMMs and attention at their assumed share of the peak, element-wise kernels at that of the memory
bandwidth, collectives at that of links and network, one after the other unless a flag of Megatron's overlaps them. No
part was measured; `plan/hardware.py` has the shares.
"""

from dataclasses import dataclass

from megatron_compete.plan.activations import FP32, recomputes_experts, recomputes_layers, routed_rows
from megatron_compete.plan.flops import (
    LayerFlops,
    layer_flops,
    matrices,
    output_flops,
    scoring_pass_flops,
)
from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job
from megatron_compete.plan.layer_traffic import LayerTraffic

ATTENTION_BACKWARD = 2.5
"""Fused attention's backward pass runs five products for the forward pass's two (FlashAttention-2, arXiv 2307.08691)."""

LAYER_KERNELS = 60
"""Kernels of a layer's forward pass, roughly; twice as many in its backward pass."""

SCORING_KERNELS = 12
"""Kernels for one expert and chunk in the scoring pass, roughly."""

ROWS_FORWARD_BYTES = 60
"""Read and written for one element of the winners' rows: gathering by token, casts, response, weights, diversity."""

ROWS_BACKWARD_BYTES = 90
"""The same in the backward pass."""


@dataclass(frozen=True)
class Seconds:
    """A forward pass and its backward pass."""

    forward: float
    backward: float


class LayerTimes:
    """Seconds of the kinds of layers of a job."""

    def __init__(self, job: Job, hardware: Hardware, groups: Groups) -> None:
        self.job, self.hardware, self.groups = job, hardware, groups
        self.traffic = LayerTraffic(job)

    def computing(self, flops: float, efficiency: float, low_precision: bool = True) -> float:
        """Seconds of GEMMs at a share of the peak; in FP8 where the job trains in it."""
        hardware = self.hardware
        if low_precision and self.job.transformer.fp8 and hardware.fp8_flops:
            return flops / (hardware.fp8_flops * efficiency * hardware.fp8_efficiency)
        return flops / (hardware.bf16_flops * efficiency)

    def moving(self, memory_bytes: float) -> float:
        """Seconds of kernels that read and write this much."""
        return memory_bytes / (self.hardware.memory_bandwidth * self.hardware.memory_efficiency)

    def sending(self, sent: float, across_share: float) -> float:
        """Seconds of a collective: the links within the node and the network work at the same time."""
        hardware = self.hardware
        within = sent * (1 - across_share) / (hardware.link_bandwidth * hardware.link_efficiency)
        across = sent * across_share / (hardware.network_bandwidth * hardware.network_efficiency)
        return max(within, across)

    def normal(self, is_moe: bool) -> Seconds:
        """A layer at a normal step, recomputation in its backward pass."""
        flops = layer_flops(self.job, is_moe)
        sent = self.traffic.normal(is_moe)
        forward = self._compute(flops, is_moe) + self._exposed(sent.forward, flops, 1.0)
        backward = 2.0 * self._compute(flops, is_moe) + self._exposed(sent.backward, flops, 2.0)
        backward += (ATTENTION_BACKWARD - 2.0) * self._attention(flops) + self._recomputing(flops, is_moe)
        least = LAYER_KERNELS * self.hardware.kernel_seconds
        return Seconds(max(forward, least), max(backward, (3 if recomputes_layers(self.job) else 2) * least))

    def competing(self) -> Seconds:
        """What competition adds to a MoE layer."""
        if not self.job.competes or self.job.compete is None:
            return Seconds(0.0, 0.0)
        sent = self.traffic.competing()
        scoring = self._scoring_compute()
        if self.job.by_utility:
            return Seconds(0.0, self._all_sent(sent.backward) + scoring)
        rows = self.job.sharded_tokens * self.job.transformer.moe_router_topk * self.job.transformer.hidden_size
        rows_forward = self.moving(rows * ROWS_FORWARD_BYTES)
        forward = self._all_sent(sent.forward) + scoring + rows_forward
        backward = self.moving(rows * ROWS_BACKWARD_BYTES) + self._all_sent(sent.backward)
        if recomputes_experts(self.job):
            backward += rows_forward
        if self.job.compete.response_gradients == "all":
            backward += 3.0 * scoring
        return Seconds(forward, backward)

    def output(self) -> Seconds:
        """Logits and loss of one microbatch on the last stage."""
        job = self.job
        compute = self.computing(output_flops(job), self.hardware.gemm_efficiency, low_precision=False)
        logits = job.tokens * job.args.padded_vocab_size / job.sizes.tp
        loss = self.moving(logits * (job.element_bytes + 4 * FP32))
        return Seconds(compute + loss, 2.0 * compute + loss)

    def _attention(self, flops: LayerFlops) -> float:
        return self.computing(flops.attention, self.hardware.attention_efficiency, low_precision=False)

    def _gemms(self, flops: LayerFlops) -> float:
        return self.computing(flops.projections + flops.mlp, self.hardware.gemm_efficiency)

    def _experts(self, flops: LayerFlops) -> float:
        """Bound by flops, or with few rows an expert by reading the weights."""
        share = self.hardware.expert_share(self.job.expert_ffn)
        return max(self.computing(flops.experts, share), self.moving(self._expert_weights()))

    def _expert_weights(self) -> float:
        """Bytes of a rank's experts in one layer."""
        config, sizes = self.job.transformer, self.job.sizes
        weights = matrices(self.job) * config.hidden_size * self.job.expert_ffn / sizes.etp
        return weights * (config.num_moe_experts or 0) / sizes.ep * self.job.element_bytes

    def _compute(self, flops: LayerFlops, is_moe: bool) -> float:
        experts = self._experts(flops) if is_moe else 0.0
        memory = self._norm_bytes() + (self._row_bytes() if is_moe else self._mlp_bytes())
        return self._gemms(flops) + self._attention(flops) + experts + self.moving(memory)

    def _norm_bytes(self) -> float:
        """Two norms and two residual sums, ten passes over the hidden states; rotary embedding of queries and keys."""
        config, job = self.job.transformer, self.job
        rotated = config.kv_channels * (config.num_attention_heads + config.num_query_groups) / job.sizes.tp
        return (10.0 * job.sharded_tokens * config.hidden_size + 2.0 * job.tokens * rotated) * job.element_bytes

    def _mlp_bytes(self) -> float:
        job = self.job
        return matrices(job) * job.tokens * job.transformer.ffn_hidden_size / job.sizes.tp * job.element_bytes

    def _row_bytes(self) -> float:
        """Router, two permutations of rows each way, and the experts' activation."""
        config, job = self.job.transformer, self.job
        rows = routed_rows(job)
        router = 6.0 * job.sharded_tokens * (config.num_moe_experts or 0) * FP32
        hidden_layer = matrices(job) * job.expert_ffn / job.sizes.etp
        return router + rows * (8.0 * config.hidden_size + hidden_layer) * job.element_bytes

    def _exposed(self, sent: dict[str, float], flops: LayerFlops, passes: float) -> float:
        """Seconds of a layer's collectives that nothing hides."""
        args, seconds = self.job.args, {name: self._sent(name, value) for name, value in sent.items()}
        if args.tp_comm_overlap and "tp" in seconds:
            seconds["tp"] = max(0.0, seconds["tp"] - passes * self._gemms(flops))
        if "cp" in seconds and "a2a" not in args.cp_comm_type and "allgather" not in args.cp_comm_type:
            seconds["cp"] = max(0.0, seconds["cp"] - passes * self._attention(flops))  # the ring's steps overlap
        if args.moe_shared_expert_overlap and "ep" in seconds:
            shared = passes * self.computing(flops.mlp, self.hardware.gemm_efficiency)
            seconds["ep"] = max(0.0, seconds["ep"] - shared)
        return sum(seconds.values())

    def _sent(self, name: str, sent: float) -> float:
        return self.sending(sent, self.groups[name].across_share)

    def _all_sent(self, sent: dict[str, float]) -> float:
        return sum(self._sent(name, value) for name, value in sent.items())

    def _recomputing(self, flops: LayerFlops, is_moe: bool) -> float:
        """Seconds of running a layer's forward pass, or the chosen modules', again; collectives are in its traffic."""
        config = self.job.transformer
        if recomputes_layers(self.job):
            return self._compute(flops, is_moe)
        if config.recompute_granularity != "selective":
            return 0.0
        modules, seconds = config.recompute_modules or [], 0.0
        if "core_attn" in modules:
            seconds += self._attention(flops)
        if "layernorm" in modules:
            seconds += 0.4 * self.moving(self._norm_bytes())
        if is_moe and "moe" in modules:
            shared = self.computing(flops.mlp, self.hardware.gemm_efficiency)
            return seconds + shared + self._experts(flops) + self.moving(self._row_bytes())
        if is_moe and "moe_act" in modules:
            hidden_layer = matrices(self.job) * self.job.expert_ffn / self.job.sizes.etp
            seconds += self.moving(routed_rows(self.job) * hidden_layer * self.job.element_bytes)
        if "shared_experts" in modules if is_moe else "mlp" in modules:
            seconds += self.computing(flops.mlp, self.hardware.gemm_efficiency)
        return seconds

    def _scoring_compute(self) -> float:
        """All tokens of the group through this rank's experts one by one (in bf16 also under FP8), and the responses."""
        job, config, sizes = self.job, self.job.transformer, self.job.sizes
        assert job.compete is not None
        chunks = -(-job.sharded_tokens // job.compete.score_chunk_tokens)
        gathered, experts = job.sharded_tokens * sizes.ep * sizes.etp, (config.num_moe_experts or 0) // sizes.ep
        share = self.hardware.expert_share(job.expert_ffn)
        gemms = max(
            self.computing(scoring_pass_flops(job), share, low_precision=False),
            self.moving(chunks * self._expert_weights()),
        )
        hidden_layer = matrices(job) * job.expert_ffn / sizes.etp * job.element_bytes
        casts = 3 * FP32 if job.element_bytes == FP32 else job.element_bytes + 4 * FP32
        if job.by_utility:  # the other factor, and where there is a cast its result, written and read
            casts += FP32 if job.element_bytes == FP32 else job.element_bytes + 2 * FP32
        response = config.hidden_size * casts / sizes.etp
        elementwise = self.moving(gathered * experts * (hidden_layer + response))
        return max(gemms + elementwise, chunks * experts * SCORING_KERNELS * self.hardware.kernel_seconds)

"""Seconds of one layer and one microbatch on one rank, from flops, bytes moved and bytes sent.

A roofline by parts: GEMMs and attention at their assumed share of the peak, element-wise kernels at that of the memory
bandwidth, collectives at that of links and network, one after the other unless a flag of Megatron's overlaps them. No
part was measured; `plan/hardware.py` has the shares.
"""

from dataclasses import dataclass

from megatron_compete.plan.activations import (
    FP32,
    recomputes_experts,
    recomputes_layers,
    routed_rows,
    selected_modules,
)
from megatron_compete.plan.flops import (
    LayerFlops,
    expert_flops,
    layer_flops,
    matrices,
    mtp_flops,
    output_flops,
    patches_flops,
    scoring_pass_flops,
)
from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job
from megatron_compete.plan.layer_traffic import LayerTraffic
from megatron_compete.plan.layers import LayerKind
from megatron_compete.plan.mixer_activations import query_groups
from megatron_compete.plan.mixer_parameters import GdnShape, LatentShape, MambaShape
from megatron_compete.plan.scoring import fused_buffer_bytes, scoring_kernel

ATTENTION_BACKWARD = 2.5
"""Fused attention's backward pass runs five products for the forward pass's two (FlashAttention-2, arXiv 2307.08691)."""

LAYER_KERNELS = 60
"""Kernels of a layer's forward pass, roughly; twice as many in its backward pass."""

CAPTURED_KERNELS = {"attn": 25, "mlp": 15, "mamba": 25, "moe": 35, "moe_router": 10, "moe_preprocess": 5}
"""Of these, those that a scope of CUDA graphs launches at once (`--cuda-graph-modules`); without a scope all are."""

SCORING_KERNELS = 12
"""Kernels for one expert and chunk in the scoring pass, roughly."""

FUSED_SCORING_KERNELS = 4
"""Kernels for a chunk of the fused scoring pass, all experts together, roughly."""

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

    def normal(self, kind: LayerKind) -> Seconds:
        """A layer at a normal step, recomputation in its backward pass."""
        flops = layer_flops(self.job, kind)
        sent = self.traffic.normal(kind)
        computing = self._compute(flops, kind)
        forward = computing + self._exposed(sent.forward, flops, computing, 1.0)
        least = self._launched(kind) * self.hardware.kernel_seconds
        return Seconds(max(forward, least), self._backward(flops, kind, sent.backward, computing, least))

    def _backward(
        self, flops: LayerFlops, kind: LayerKind, sent: dict[str, float], computing: float, least: float
    ) -> float:
        """Seconds of a backward pass: two products for each of the forward pass, one where weights are frozen, and none
        where nothing before them is trained either."""
        job = self.job
        if not (job.trains or job.gradients_reach):
            return 0.0
        products = 2.0 if job.trains else 1.0
        backward = products * computing + self._exposed(sent, flops, products * computing, products)
        if kind.mixer in ("attention", "mla"):
            backward += (ATTENTION_BACKWARD - products) * self._core(flops, kind)
        backward += self._recomputing(flops, kind)
        return max(backward, (3 if recomputes_layers(job) else 2) * least)

    def _launched(self, kind: LayerKind) -> int:
        """Kernels of a forward pass that the host launches one by one."""
        config = self.job.transformer
        kernels = LAYER_KERNELS * ((kind.mixer is not None) + (kind.mlp is not None)) // 2
        if config.cuda_graph_impl == "none":
            return kernels
        scopes = [getattr(scope, "name", str(scope)) for scope in config.cuda_graph_modules or ()]
        captured = sum(CAPTURED_KERNELS.get(scope, 0) for scope in scopes) if scopes else kernels
        return max(1, kernels - captured)

    def competing(self) -> Seconds:
        """What competition adds to a MoE layer."""
        if not self.job.competes or self.job.compete is None:
            return Seconds(0.0, 0.0)
        sent = self.traffic.competing()
        scoring = self._scoring_compute()
        if self.job.by_utility:
            return Seconds(0.0, self._all_sent(sent.backward) + scoring)
        rows = self.job.competing_tokens * self.job.transformer.moe_router_topk * self.job.expert_output
        rows_forward = self.moving(rows * ROWS_FORWARD_BYTES)
        forward = self._all_sent(sent.forward) + scoring + rows_forward
        backward = self.moving(rows * ROWS_BACKWARD_BYTES) + self._all_sent(sent.backward)
        if recomputes_experts(self.job):
            backward += rows_forward
        if self.job.compete.response_gradients == "all":
            backward += 3.0 * scoring
        return Seconds(forward, backward)

    def output(self) -> Seconds:
        """Logits and loss of one microbatch on the last stage, once more for each depth of multi-token prediction."""
        job = self.job
        compute = self.computing(output_flops(job), self.hardware.gemm_efficiency, low_precision=False)
        logits = job.tokens * job.args.padded_vocab_size / job.sizes.tp * (1 + job.layers.mtp_depths)
        loss = self.moving(logits * (job.element_bytes + 4 * FP32))
        return Seconds(compute + loss, 2.0 * compute + loss)

    def patches(self) -> Seconds:
        """Of a tower: a tile's patches convolved; their gradients are of the weights alone."""
        compute = self.computing(patches_flops(self.job), self.hardware.gemm_efficiency, low_precision=False)
        return Seconds(compute, compute if self.job.trains else 0.0)

    def joining(self) -> Seconds:
        """Embeddings and hidden states of multi-token prediction, normed and projected."""
        job = self.job
        compute = self.computing(mtp_flops(job), self.hardware.gemm_efficiency)
        stream = job.sharded_tokens * job.transformer.hidden_size * job.element_bytes
        passes = self.moving(12.0 * job.layers.mtp_depths * stream)
        return Seconds(compute + passes, 2.0 * (compute + passes))

    def _core(self, flops: LayerFlops, kind: LayerKind) -> float:
        """Attention by its share of the peak; a scan, which is many small products, by the least of the GEMMs'."""
        if kind.mixer in ("gdn", "mamba"):
            share = self.hardware.narrow_expert_efficiency
        else:
            share = self.hardware.attention_efficiency
        return self.computing(flops.core, share, low_precision=False)

    def _gemms(self, flops: LayerFlops) -> float:
        return self.computing(flops.projections + flops.mlp, self.hardware.gemm_efficiency)

    def _experts(self, flops: LayerFlops) -> float:
        """Bound by flops, or with few rows an expert by reading the weights."""
        share = self.hardware.expert_share(self.job.expert_ffn)
        return max(self.computing(flops.experts, share), self.moving(self._expert_weights()))

    def _expert_weights(self) -> float:
        """Bytes of a rank's experts in one layer."""
        config, sizes = self.job.transformer, self.job.sizes
        weights = expert_flops(self.job) / 2 / sizes.etp
        return weights * (config.num_moe_experts or 0) / sizes.ep * self.job.element_bytes

    def _compute(self, flops: LayerFlops, kind: LayerKind) -> float:
        experts = self._experts(flops) if kind.is_moe else 0.0
        memory = self._norm_bytes(kind)
        if kind.mlp is not None:
            memory += self._row_bytes() if kind.is_moe else self._mlp_bytes()
        return self._gemms(flops) + self._core(flops, kind) + experts + self.moving(memory)

    def _norm_bytes(self, kind: LayerKind) -> float:
        """A norm and a residual sum for each part, five passes over the hidden states; what is done to each element
        between a mixer's matrices and its core."""
        job = self.job
        between = 2.0 * job.tokens * self._elementwise_width(kind)
        return (5.0 * kind.norms * job.sharded_tokens * job.transformer.hidden_size + between) * job.element_bytes

    def _elementwise_width(self, kind: LayerKind) -> float:
        """Rotary embedding of queries and keys, and a gate; putting latent attention's keys together; a convolution and
        a gated norm."""
        config, tp = self.job.transformer, self.job.sizes.tp
        if kind.mixer == "attention":
            gate = 2 if config.attention_output_gate else 0
            return float(config.kv_channels * (config.num_attention_heads * (1 + gate) / tp + query_groups(self.job)))
        if kind.mixer == "mla":
            latent = LatentShape.of(self.job)
            return (2 * latent.queries + latent.values + latent.query_rank + latent.rank) / tp
        if kind.mixer == "gdn":
            gdn = GdnShape.of(self.job)
            return (2 * gdn.keys + 4 * gdn.values) / tp
        if kind.mixer == "mamba":
            mamba = MambaShape.of(self.job)
            return (4 * mamba.inner + 2 * mamba.state) / tp
        return 0.0

    def _mlp_bytes(self) -> float:
        job = self.job
        return matrices(job) * job.tokens * job.transformer.ffn_hidden_size / job.sizes.tp * job.element_bytes

    def _row_bytes(self) -> float:
        """Router, two permutations of rows each way, and the experts' activation."""
        config, job = self.job.transformer, self.job
        rows = routed_rows(job)
        router = 6.0 * job.sharded_tokens * (config.num_moe_experts or 0) * FP32
        hidden_layer = matrices(job) * job.expert_ffn / job.sizes.etp
        widths = 4.0 * (job.expert_width + job.expert_output)
        return router + rows * (widths + hidden_layer) * job.element_bytes

    def _exposed(self, sent: dict[str, float], flops: LayerFlops, computing: float, passes: float) -> float:
        """Seconds of a layer's collectives that nothing hides.

        `--overlap-moe-expert-parallel-comm` sends one microbatch's rows while another's layer is computed.
        """
        args, seconds = self.job.args, {name: self._sent(name, value) for name, value in sent.items()}
        if args.tp_comm_overlap and "tp" in seconds:
            seconds["tp"] = max(0.0, seconds["tp"] - passes * self._gemms(flops))
        if "cp" in seconds and "a2a" not in args.cp_comm_type and "allgather" not in args.cp_comm_type:
            core = self.computing(flops.core, self.hardware.attention_efficiency, low_precision=False)
            seconds["cp"] = max(0.0, seconds["cp"] - passes * core)  # the ring's steps overlap
        if args.overlap_moe_expert_parallel_comm and "ep" in seconds:
            seconds["ep"] = max(0.0, seconds["ep"] - computing)
        elif args.moe_shared_expert_overlap and "ep" in seconds:
            shared = passes * self.computing(flops.mlp, self.hardware.gemm_efficiency)
            seconds["ep"] = max(0.0, seconds["ep"] - shared)
        return sum(seconds.values())

    def _sent(self, name: str, sent: float) -> float:
        return self.sending(sent, self.groups[name].across_share)

    def _all_sent(self, sent: dict[str, float]) -> float:
        return sum(self._sent(name, value) for name, value in sent.items())

    def _recomputing(self, flops: LayerFlops, kind: LayerKind) -> float:
        """Seconds of running a layer's forward pass, or the chosen modules', again; collectives are in its traffic."""
        if recomputes_layers(self.job):
            return self._compute(flops, kind)
        modules, seconds = selected_modules(self.job), 0.0
        if "core_attn" in modules:
            seconds += self._core(flops, kind)
        if "layernorm" in modules:
            seconds += 0.4 * self.moving(self._norm_bytes(kind))
        if "mla_up_proj" in modules and kind.mixer == "mla":
            latent = LatentShape.of(self.job)
            up = 2.0 * self.job.tokens / self.job.sizes.tp
            up *= latent.query_rank * latent.queries + latent.rank * latent.keys_and_values
            seconds += self.computing(up, self.hardware.gemm_efficiency)
        if kind.is_moe and "moe" in modules:
            shared = self.computing(flops.mlp, self.hardware.gemm_efficiency)
            return seconds + shared + self._experts(flops) + self.moving(self._row_bytes())
        if kind.is_moe and "moe_act" in modules:
            hidden_layer = matrices(self.job) * self.job.expert_ffn / self.job.sizes.etp
            seconds += self.moving(routed_rows(self.job) * hidden_layer * self.job.element_bytes)
        if "shared_experts" in modules if kind.is_moe else "mlp" in modules:
            seconds += self.computing(flops.mlp, self.hardware.gemm_efficiency)
        return seconds

    def _scoring_compute(self) -> float:
        """Competing tokens of the group through this rank's experts (in bf16 also under FP8), and the responses.

        plain: one expert after the other, hidden layer and outputs written and read. Fused: all experts at once; outputs
        never reach memory, and the hidden layer of experts of up to 256 channels neither.
        """
        job, config, sizes = self.job, self.job.transformer, self.job.sizes
        assert job.compete is not None
        kernel = scoring_kernel(job, self.hardware)
        chunks = -(-job.competing_tokens // job.compete.score_chunk_tokens)
        gathered, experts = job.competing_tokens * sizes.ep * sizes.etp, (config.num_moe_experts or 0) // sizes.ep
        compute = self._scoring_gemms(kernel == "fused-fp8")
        gemms = max(compute, self.moving(chunks * self._expert_weights()))
        if kernel != "plain":
            hidden = job.expert_ffn * job.element_bytes if fused_buffer_bytes(job) else 0
            launches = chunks * FUSED_SCORING_KERNELS * self.hardware.kernel_seconds
            return max(gemms + self.moving(gathered * experts * (2.0 * hidden + FP32)), launches)
        hidden_layer = matrices(job) * job.expert_ffn / sizes.etp * job.element_bytes
        casts = 3 * FP32 if job.element_bytes == FP32 else job.element_bytes + 4 * FP32
        if job.by_utility:  # the other factor, and where there is a cast its result, written and read
            casts += FP32 if job.element_bytes == FP32 else job.element_bytes + 2 * FP32
        response = job.expert_output * casts / sizes.etp
        elementwise = self.moving(gathered * experts * (hidden_layer + response))
        return max(gemms + elementwise, chunks * experts * SCORING_KERNELS * self.hardware.kernel_seconds)

    def _scoring_gemms(self, in_fp8: bool) -> float:
        flops, share = scoring_pass_flops(self.job), self.hardware.expert_share(self.job.expert_ffn)
        if in_fp8 and self.hardware.fp8_flops:
            return flops / (self.hardware.fp8_flops * share * self.hardware.fp8_efficiency)
        return self.computing(flops, share, low_precision=False)

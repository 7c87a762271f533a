"""Bytes that one microbatch leaves on a rank until its backward pass.

Counted after Korthikanti et al. (arXiv 2205.05198, section 4), tensor by tensor as autograd keeps them, for Megatron's
layers with grouped query attention, fused attention, experts behind an all-to-all, and sequence parallelism. Token
counts: T on this rank's attention, t = T / tensor parallel size in norms and MoE layers under sequence parallelism.
Routing is taken to be even: an expert rank gets t * K rows per rank of its expert tensor parallel group.
"""

from dataclasses import dataclass

from megatron_compete.plan.job import Job

FP32 = 4
INT64 = 8


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that a layer keeps of one microbatch, by part; recomputation not yet taken off."""

    layer_input: float
    """The residual stream, which a norm's backward pass needs; all that remains under full recomputation."""
    norms: float
    """Outputs of the two norms, and the input of the second."""
    norm_outputs: float
    """The part of `norms` that `--recompute-modules layernorm` gives up."""
    attention: float
    attention_core: float
    """The part of `attention` that `--recompute-modules core_attn` gives up."""
    mlp: float
    """Of a dense MLP, or of experts with their router and rows."""
    mlp_activation: float
    """The part of `mlp` that `--recompute-modules moe_act` gives up."""
    shared_experts: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.layer_input + self.norms + self.attention + self.mlp + self.shared_experts


def layer_activations(job: Job, is_moe: bool) -> LayerActivations:
    """What a layer keeps of one microbatch without recomputation."""
    config, size = job.transformer, job.element_bytes
    stream = job.sharded_tokens * config.hidden_size * size
    dropout = job.sharded_tokens * config.hidden_size if config.hidden_dropout > 0 else 0.0
    attention, core = _attention(job)
    mlp, activation = _experts(job) if is_moe else _mlp(job, config.ffn_hidden_size)
    shared = 0.0
    if is_moe and config.moe_shared_expert_intermediate_size:
        shared = _mlp(job, config.moe_shared_expert_intermediate_size)[0] + stream
    return LayerActivations(
        layer_input=stream,
        norms=3.0 * stream + 2 * dropout,
        norm_outputs=2.0 * stream,
        attention=attention,
        attention_core=core,
        mlp=mlp,
        mlp_activation=activation if is_moe else 0.0,
        shared_experts=shared,
    )


def uses_fused_attention(job: Job) -> bool:
    """Whether attention keeps one statistic a row instead of the scores."""
    config = job.transformer
    return config.transformer_impl != "local" and config.attention_backend.name not in ("local", "unfused")


def _attention(job: Job) -> tuple[float, float]:
    """Queries, keys, values, the core's output and what the core keeps; and the last of these alone."""
    config, tokens, size = job.transformer, job.tokens, job.element_bytes
    heads = config.num_attention_heads / job.sizes.tp
    queries = heads * config.kv_channels
    keys = config.num_query_groups / job.sizes.tp * config.kv_channels
    kept = tokens * (queries + 2 * keys + queries) * size
    if config.qk_layernorm:
        kept += tokens * (queries + keys) * size
    if uses_fused_attention(job):
        core = tokens * heads * FP32
    else:  # softmax, and under dropout its mask and result: 5as^2b of the paper
        scores = job.args.micro_batch_size * heads * (job.args.seq_length / job.sizes.cp) * job.args.seq_length
        core = scores * (2 * size + 1 if config.attention_dropout > 0 else size)
    return kept + core, core


def _mlp(job: Job, ffn: int) -> tuple[float, float]:
    """Output of the first matrices and of the activation; and the latter alone."""
    matrices = 2 if job.transformer.gated_linear_unit else 1
    activation = job.tokens * ffn / job.sizes.tp * job.element_bytes
    return matrices * activation + activation, activation


def routed_rows(job: Job) -> float:
    """Rows that this rank's experts get of one microbatch, at even routing."""
    return job.sharded_tokens * job.transformer.moe_router_topk * job.sizes.etp


def _experts(job: Job) -> tuple[float, float]:
    """Router, rows, both hidden layers of the experts; and their activation's output alone."""
    config, size = job.transformer, job.element_bytes
    balances = job.compete is not None and job.competes and job.compete.router_balance_coeff > 0
    per_score = (3 if balances else 2) * FP32 + 1  # logits, probabilities (of the balance loss too), routing map
    router = job.sharded_tokens * (config.num_moe_experts or 0) * per_score
    rows, matrices = routed_rows(job), 2 if config.gated_linear_unit else 1
    activation = rows * job.expert_ffn / job.sizes.etp * size
    return router + rows * (config.hidden_size * size + FP32) + matrices * activation + activation, activation


@dataclass(frozen=True)
class KeptActivations:
    """What recomputation leaves of a layer's activations."""

    per_microbatch: float
    """Until the backward pass, for every microbatch in flight."""
    live: float
    """Once a rank, while a layer is run again."""


def kept_activations(job: Job, is_moe: bool) -> KeptActivations:
    """A layer's activations under `--recompute-granularity selective`, or none."""
    layer = layer_activations(job, is_moe)
    if job.transformer.recompute_granularity != "selective":
        return KeptActivations(layer.total, 0.0)
    modules = job.transformer.recompute_modules or []
    given_up = 0.0
    if "core_attn" in modules:
        given_up += layer.attention_core
    if "layernorm" in modules:
        given_up += layer.norm_outputs
    if "moe" in modules and is_moe:
        given_up += layer.mlp + layer.shared_experts
    else:
        if "moe_act" in modules:
            given_up += layer.mlp_activation
        if "shared_experts" in modules:
            given_up += layer.shared_experts
        if "mlp" in modules and not is_moe:
            given_up += layer.mlp
    return KeptActivations(layer.total - given_up, given_up)


def recomputes_layers(job: Job) -> bool:
    """Whether whole layers are run again in the backward pass."""
    return job.transformer.recompute_granularity == "full"


def recomputes_experts(job: Job) -> bool:
    """Whether MoE layers are run again in the backward pass, whole or as a module."""
    selective = job.transformer.recompute_granularity == "selective"
    return recomputes_layers(job) or (selective and "moe" in (job.transformer.recompute_modules or []))


def chunk_activations(job: Job, layers: tuple[int, ...]) -> KeptActivations:
    """Activations of one model chunk: of one microbatch, and what recomputation holds at a time."""
    parts = [kept_activations(job, number in job.moe_layers) for number in layers]
    if not recomputes_layers(job):
        return KeptActivations(
            sum(part.per_microbatch for part in parts), max([part.live for part in parts], default=0.0)
        )
    whole = [layer_activations(job, number in job.moe_layers) for number in layers]
    count = job.transformer.recompute_num_layers or 1
    if job.transformer.recompute_method == "block":
        kept = sum(layer.layer_input for layer in whole[:count]) + sum(layer.total for layer in whole[count:])
        return KeptActivations(kept, max([layer.total for layer in whole[:count]], default=0.0))
    inputs = sum(layer.layer_input for layer in whole[::count])
    groups = [sum(layer.total for layer in whole[start : start + count]) for start in range(0, len(whole), count)]
    return KeptActivations(inputs, max(groups, default=0.0))


def output_activations(job: Job) -> float:
    """Of the last stage: the final norm, logits, and the softmax that the loss keeps in fp32. One microbatch at a time."""
    stream = job.sharded_tokens * job.transformer.hidden_size * job.element_bytes
    return 2.0 * stream + job.tokens * job.args.padded_vocab_size / job.sizes.tp * (job.element_bytes + FP32)


def competing_activations(job: Job) -> KeptActivations:
    """What a competing layer keeps of one microbatch beside a normal one's, `moe/layer.py` and `moe/losses.py`.

    The winners' rows [t, K, H] stay for their weights, and in fp32 for the response and twice for the diversity loss,
    which keeps their sum [t, H] too; of [t, E] two fp32 tensors more than at a normal step stay. Where MoE layers are recomputed only the outcome (responses, scores, winners)
    waits, and the rest is there for one layer at a time. By utility only the logits wait, `moe/utility.py`.
    """
    config, tokens = job.transformer, job.sharded_tokens
    experts, winners = config.num_moe_experts or 0, config.moe_router_topk
    if job.by_utility:
        logits = float(tokens * experts * {"fp32": 4, "fp64": 8}.get(config.moe_router_dtype, job.element_bytes))
        return KeptActivations(0.0, logits) if recomputes_experts(job) else KeptActivations(logits, 0.0)
    casts = 0 if job.element_bytes == FP32 else 2 * FP32
    rows = tokens * winners * config.hidden_size * (job.element_bytes + casts)
    units = tokens * (winners + 1) * config.hidden_size * FP32 if winners > 1 else 0
    whole = rows + units + 2.0 * tokens * experts * FP32
    if not recomputes_experts(job):
        return KeptActivations(whole, 0.0)
    return KeptActivations(tokens * (2.0 * experts * FP32 + winners * INT64), whole)


def scoring_memory(job: Job) -> float:
    """What the scoring pass of one layer holds at a time, `moe/scoring.py`: a chunk's gathered tokens, the next
    chunk's on their way, and one expert."""
    assert job.compete is not None
    config, sizes, size = job.transformer, job.sizes, job.element_bytes
    chunk, group = min(job.compete.score_chunk_tokens, job.sharded_tokens), sizes.ep * sizes.etp
    matrices = 2 if config.gated_linear_unit else 1
    ffn, experts = job.expert_ffn / sizes.etp, (config.num_moe_experts or 0) / sizes.ep
    chunks = min(2, -(-job.sharded_tokens // chunk))
    tokens = config.hidden_size * size * chunks if group > 1 else 0
    running = max((matrices + 1) * ffn, ffn + config.hidden_size) * size
    casts = FP32 if size == FP32 else 2 * FP32
    if job.by_utility:  # the product of two factors, and the gathered gradients
        casts = FP32 if size == FP32 else 3 * FP32
        tokens += config.hidden_size * size / sizes.etp if sizes.ep > 1 else 0
    response = config.hidden_size * (size + casts / sizes.etp + (size if sizes.etp > 1 else 0))
    held = chunk * group * (tokens + max(running, response)) + chunk * sizes.ep * experts * FP32
    if job.compete.response_gradients == "all":  # sums of all local experts' gradients, and one expert's
        held += 2 * (matrices + 1) * config.hidden_size * ffn * experts * size
    return held

"""What of a model must divide over the ranks that share a layer."""

from collections.abc import Iterable

from megatron_compete.layout.facts import Facts, multiple, not_over


def experts(f: Facts) -> Iterable[str]:
    """`MoELayer.__init__`, megatron/core/transformer/moe/moe_layer.py; `TopKRouter`; `TransformerConfig`."""
    experts, top = f.args.num_experts, f.args.moe_router_topk
    if not experts:
        if f.args.router != "topk":  # without experts it is a dense model, what an upcycled one starts from
            routing = "competition routing" if f.args.router == "compete" else f"--router {f.args.router}"
            yield f"--num-experts is missing: {routing} needs a mixture of experts"
        return
    if experts % f.ep:
        yield (
            f"--num-experts {experts} does not divide over --expert-model-parallel-size {f.ep}: "
            "make the first a multiple of the second"
        )
    if top > experts:
        yield f"--moe-router-topk {top} is more than --num-experts {experts}: lower it or add experts"
    if top == 1 and f.args.moe_router_score_function == "softmax" and not f.args.moe_router_pre_softmax:
        yield "--moe-router-topk 1 needs --moe-router-pre-softmax: the softmax over one winner has no gradient"
    pattern = f.args.moe_layer_freq
    if isinstance(pattern, list) and len(pattern) != f.args.num_layers and not f.is_hybrid:
        yield f"--moe-layer-freq names {len(pattern)} layers and --num-layers is {f.args.num_layers}: name each once"
    ffn = f.args.moe_ffn_hidden_size or f.args.ffn_hidden_size
    if ffn and ffn % f.etp:
        yield (
            f"--moe-ffn-hidden-size {ffn} does not divide over --expert-tensor-parallel-size {f.etp}: "
            "make the first a multiple, or give --expert-tensor-parallel-size 1"
        )
    if f.args.add_bias_linear and f.etp > 1:
        yield (
            f"experts with biases cannot be split over --expert-tensor-parallel-size {f.etp}: "
            "give --disable-bias-linear or --expert-tensor-parallel-size 1"
        )
    if f.args.add_bias_linear and f.args.moe_shared_expert_intermediate_size:
        yield "shared experts have no biases: give --disable-bias-linear"
    if f.args.moe_token_dispatcher_type == "flex" and f.etp * f.ep == 1:
        yield "--moe-token-dispatcher-type flex needs more than one rank of experts: give alltoall"


def sequence_parallel(f: Facts) -> Iterable[str]:
    """`MoELayer.forward` refuses at the first step."""
    if f.args.num_experts and f.tp > 1 and not f.args.sequence_parallel:
        yield (
            f"--tensor-model-parallel-size {f.tp} without --sequence-parallel: Megatron's MoE layers refuse it at the "
            "first step, add --sequence-parallel"
        )


def heads(f: Facts) -> Iterable[str]:
    """`TransformerConfig.__post_init__`; Transformer Engine's attention for context parallelism by all-to-all."""
    heads = f.args.num_attention_heads
    if heads % f.tp:
        yield not_over("--num-attention-heads", heads, "--tensor-model-parallel-size", f.tp)
    groups = f.args.num_query_groups if f.args.group_query_attention else heads
    if f.args.group_query_attention and heads % groups:
        yield f"--num-attention-heads {heads} is no multiple of --num-query-groups {groups}: change one"
    if f.args.group_query_attention and groups % f.tp and f.tp % groups:  # fewer groups are repeated over ranks
        yield not_over("--num-query-groups", groups, "--tensor-model-parallel-size", f.tp)
    if f.args.kv_channels is None and f.args.hidden_size % heads:
        yield (
            f"--hidden-size {f.args.hidden_size} is no multiple of --num-attention-heads {heads}: "
            "change one or give --kv-channels"
        )
    if "a2a" in f.args.cp_comm_type and f.cp > 1 and (heads // f.tp % f.cp or groups // f.tp % f.cp):
        yield (
            f"--cp-comm-type a2a splits a rank's {heads // f.tp} heads and {groups // f.tp} query groups over "
            f"--context-parallel-size {f.cp}, and they do not divide: give --cp-comm-type p2p"
        )


def hidden_sizes(f: Facts) -> Iterable[str]:
    """`divide` in the column and row parallel layers, megatron/core/tensor_parallel/layers.py."""
    shared = f.args.moe_shared_expert_intermediate_size
    sizes = {"--ffn-hidden-size": f.args.ffn_hidden_size, "--moe-shared-expert-intermediate-size": shared}
    for flag, size in sizes.items():
        if size and size % f.tp:
            yield not_over(flag, size, "--tensor-model-parallel-size", f.tp)
    if f.args.padded_vocab_size and f.args.padded_vocab_size % f.tp:
        yield not_over("--padded-vocab-size", f.args.padded_vocab_size, "--tensor-model-parallel-size", f.tp)


def sequence(f: Facts) -> Iterable[str]:
    """`validate_args`; `scatter_to_sequence_parallel_region`; the load-balanced split of Transformer Engine."""
    length = f.args.seq_length
    if f.args.max_position_embeddings < length:
        yield (
            f"--max-position-embeddings {f.args.max_position_embeddings} is below --seq-length {length}: "
            f"raise it to {length}"
        )
    if f.cp > 1 and length % (2 * f.cp):
        yield (
            f"--seq-length {length} does not divide by 2 * --context-parallel-size {f.cp}: give "
            f"{multiple(length, 2 * f.cp)}"
        )
    elif f.args.sequence_parallel and length // f.cp % f.tp:
        yield (
            f"--sequence-parallel: a rank's {length // f.cp} positions do not divide over "
            f"--tensor-model-parallel-size {f.tp}: give --seq-length {multiple(length, f.cp * f.tp)}"
        )

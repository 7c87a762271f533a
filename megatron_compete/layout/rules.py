"""What must divide what: the rules that Megatron trips over one at a time, minutes into a job, all checked at once.

Each rule reads the arguments as parsed, before Megatron fills in or changes any, and says which flags, which values and
a way out. Where Megatron's own check stands is beside each rule.
"""

import argparse
from collections.abc import Callable, Iterable

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.layout.facts import Facts
from megatron_compete.schedule import CompetitionSchedule


class BrokenRules(CompeteError):
    """All rules that a job breaks; as one line for the command, one by one in `rules`."""

    def __init__(self, rules: tuple[str, ...]) -> None:
        many = f"{len(rules)} rules are broken. " if len(rules) > 1 else ""
        super().__init__(many + " ".join(f"({n}) {rule}." for n, rule in enumerate(rules, 1)) if many else rules[0])
        self.rules = rules


Rule = Callable[[Facts], Iterable[str]]


def broken_rules(args: argparse.Namespace, gpus_per_node: int) -> tuple[str, ...]:
    """Every rule that these arguments, as parsed, break; empty where they may go on to Megatron's own checks."""
    facts = Facts(args, gpus_per_node)
    missing = tuple(_required(facts))
    return missing or tuple(message for rule in RULES for message in rule(facts))


def _required(f: Facts) -> Iterable[str]:
    for name in ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "micro_batch_size", "max_position_embeddings"):  # fmt: skip
        if getattr(f.args, name) is None:
            yield f"--{name.replace('_', '-')} is missing: add it to the recipe"
    if not f.args.train_iters and not f.args.train_samples and not f.args.skip_train:
        yield "--train-iters is missing: give the length of the run, 1 or more"
    if f.args.lr is None and not f.args.skip_train:
        yield "--lr is missing: add it to the recipe"
    sizes = {"tensor-model-parallel-size": f.tp, "pipeline-model-parallel-size": f.pp, "context-parallel-size": f.cp,
             "expert-model-parallel-size": f.ep, "expert-tensor-parallel-size": f.etp, "gpus": f.world}  # fmt: skip
    for name, value in sizes.items():
        if value < 1:
            yield f"--{name} {value} is out of range: give 1 or more"


def _nodes(f: Facts) -> Iterable[str]:
    if f.world > f.gpus_per_node and f.world % f.gpus_per_node:
        yield (
            f"--gpus {f.world} is no whole number of nodes of --nproc-per-node {f.gpus_per_node} GPUs: "
            f"give {_multiple(f.world, f.gpus_per_node)}"
        )


def _world(f: Facts) -> Iterable[str]:
    """`validate_args` and `initialize_model_parallel`, megatron/core/parallel_state.py."""
    dense, expert = f.tp * f.pp * f.cp, f.etp * f.ep * f.pp
    if f.world % dense:
        yield (
            f"{f.world} GPUs do not divide by tensor * pipeline * context parallel size = {f.tp} * {f.pp} * {f.cp} = "
            f"{dense}: give {_multiple(f.world, dense)} GPUs or other sizes"
        )
    if f.world % expert:
        yield (
            f"{f.world} GPUs do not divide by expert tensor * expert * pipeline parallel size = {f.etp} * {f.ep} * "
            f"{f.pp} = {expert}: give {_multiple(f.world, expert)} GPUs, another --expert-model-parallel-size, or "
            "--expert-tensor-parallel-size 1"
        )


def _rank_order(f: Facts) -> Iterable[str]:
    """`initialize_model_parallel`: the groups of pipeline stages must be the same for experts and the rest."""
    if f.args.use_tp_pp_dp_mapping and f.pp > 1 and f.tp * f.cp != f.etp * f.ep:
        yield (
            f"--use-tp-pp-dp-mapping needs as many data parallel ranks for experts as for the rest, and tensor * "
            f"context parallel size is {f.tp * f.cp} where expert tensor * expert parallel size is {f.etp * f.ep}: "
            "leave it out"
        )


def _experts(f: Facts) -> Iterable[str]:
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
    if isinstance(pattern, list) and len(pattern) != f.args.num_layers:
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


def _sequence_parallel(f: Facts) -> Iterable[str]:
    """`MoELayer.forward` refuses at the first step."""
    if f.args.num_experts and f.tp > 1 and not f.args.sequence_parallel:
        yield (
            f"--tensor-model-parallel-size {f.tp} without --sequence-parallel: Megatron's MoE layers refuse it at the "
            "first step, add --sequence-parallel"
        )


def _heads(f: Facts) -> Iterable[str]:
    """`TransformerConfig.__post_init__`; Transformer Engine's attention for context parallelism by all-to-all."""
    heads = f.args.num_attention_heads
    if heads % f.tp:
        yield _not_over("--num-attention-heads", heads, "--tensor-model-parallel-size", f.tp)
    groups = f.args.num_query_groups if f.args.group_query_attention else heads
    if f.args.group_query_attention and heads % groups:
        yield f"--num-attention-heads {heads} is no multiple of --num-query-groups {groups}: change one"
    if f.args.group_query_attention and groups % f.tp and f.tp % groups:  # fewer groups are repeated over ranks
        yield _not_over("--num-query-groups", groups, "--tensor-model-parallel-size", f.tp)
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


def _hidden_sizes(f: Facts) -> Iterable[str]:
    """`divide` in the column and row parallel layers, megatron/core/tensor_parallel/layers.py."""
    shared = f.args.moe_shared_expert_intermediate_size
    sizes = {"--ffn-hidden-size": f.args.ffn_hidden_size, "--moe-shared-expert-intermediate-size": shared}
    for flag, size in sizes.items():
        if size and size % f.tp:
            yield _not_over(flag, size, "--tensor-model-parallel-size", f.tp)
    if f.args.padded_vocab_size and f.args.padded_vocab_size % f.tp:
        yield _not_over("--padded-vocab-size", f.args.padded_vocab_size, "--tensor-model-parallel-size", f.tp)


def _sequence(f: Facts) -> Iterable[str]:
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
            f"{_multiple(length, 2 * f.cp)}"
        )
    elif f.args.sequence_parallel and length // f.cp % f.tp:
        yield (
            f"--sequence-parallel: a rank's {length // f.cp} positions do not divide over "
            f"--tensor-model-parallel-size {f.tp}: give --seq-length {_multiple(length, f.cp * f.tp)}"
        )


def _batch(f: Facts) -> Iterable[str]:
    """`ConstantNumMicroBatchesCalculator`, megatron/core/num_microbatches_calculator.py; `validate_args`."""
    micro = f.args.micro_batch_size
    if f.args.step_batch_size_schedule is not None and f.args.global_batch_size is not None:
        yield (
            f"--step-batch-size-schedule and --global-batch-size {f.args.global_batch_size} both say the batch: leave the "
            "second out"
        )
    if f.args.decrease_batch_size_if_needed:
        return
    for flag, size, unit in (
        ("--global-batch-size", f.args.global_batch_size, micro * f.dp),
        ("--eval-global-batch-size", f.args.eval_global_batch_size, (f.args.eval_micro_batch_size or micro) * f.dp),
    ):
        if size is not None and size % unit:
            yield (
                f"{flag} {size} does not divide by micro batch * data parallel size = {unit // f.dp} * {f.dp} = "
                f"{unit}: give {_multiple(size, unit)}"
            )


def _layers(f: Facts) -> Iterable[str]:
    """`validate_args`, `TransformerConfig.__post_init__`, `get_num_layers_to_build` (transformer_block.py)."""
    args = f.args
    if args.pipeline_model_parallel_layout is not None:
        return  # Megatron reads it whole; what is wrong with it is in its own message
    ends = (args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers)
    layers, stages = f.split_layers, f.pp
    if any(ends):
        layers, stages = layers - sum(end or 0 for end in ends), stages - sum(end is not None for end in ends)
    if layers < 0 or bool(layers) != bool(stages) or (stages and layers % stages):
        yield (
            f"{layers} layers remain for {stages} pipeline stages and do not divide: change --num-layers, "
            "--pipeline-model-parallel-size or --decoder-first/last-pipeline-num-layers"
            if any(ends)
            else f"--num-layers {args.num_layers} (with embedding and loss where they are counted: {layers}) does not "
            f"divide over --pipeline-model-parallel-size {f.pp}: change one, or give "
            "--decoder-first-pipeline-num-layers"
        )
        return
    per_virtual = args.num_layers_per_virtual_pipeline_stage
    of_a_stage = {*(end for end in ends if end), *([layers // stages] if stages else [])}
    if per_virtual is not None and (args.num_layers // f.pp) % per_virtual:
        yield (
            f"--num-layers-per-virtual-pipeline-stage {per_virtual} does not divide the {f.split_layers // f.pp} layers "
            "of a stage: give a divisor"
        )
    elif f.vp and any(count % f.vp for count in of_a_stage):
        counts = ", ".join(str(count) for count in sorted(of_a_stage))
        yield (
            f"a stage's layers ({counts}) do not divide into {f.vp} model chunks: change "
            "--num-virtual-stages-per-pipeline-rank or the layers of a stage"
        )


def _interleaving(f: Facts) -> Iterable[str]:
    """`forward_backward_pipelining_with_interleaving`, megatron/core/pipeline_parallel/schedules.py."""
    if f.vp is None or f.vp < 2:
        return
    least = 2 if f.args.overlap_p2p_comm else 3
    if f.pp < least:
        yield (
            f"--pipeline-model-parallel-size {f.pp} is too small for {f.vp} model chunks a stage: give {least} or more, "
            "or no --num-virtual-stages-per-pipeline-rank"
        )
        return
    if f.args.global_batch_size is None:
        return
    microbatches = f.args.global_batch_size // (f.args.micro_batch_size * f.dp)
    group = f.args.microbatch_group_size_per_vp_stage or f.pp
    if not f.pp <= group <= max(microbatches, 1):
        yield (
            f"a pipeline's {microbatches} microbatches are fewer than its groups of {group} (at least "
            f"--pipeline-model-parallel-size {f.pp}): give --global-batch-size "
            f"{max(group, f.pp) * f.args.micro_batch_size * f.dp} or a smaller pipeline"
        )
    elif 0 < microbatches % group < f.pp:
        yield (
            f"a pipeline's {microbatches} microbatches in groups of {group} leave {microbatches % group}, fewer than "
            f"--pipeline-model-parallel-size {f.pp}: give --global-batch-size "
            f"{_multiple(microbatches, group) * f.args.micro_batch_size * f.dp}"
        )


def _optimizer(f: Facts) -> Iterable[str]:
    """`validate_args` and `OptimizerConfig.__post_init__`, megatron/core/optimizer/optimizer_config.py."""
    args = f.args
    if args.use_precision_aware_optimizer and not args.use_distributed_optimizer:
        yield "--use-precision-aware-optimizer needs --use-distributed-optimizer: add it"
    if args.overlap_param_gather and not args.use_distributed_optimizer:
        yield "--overlap-param-gather needs --use-distributed-optimizer: add it"
    if args.overlap_param_gather and not args.overlap_grad_reduce:
        yield "--overlap-param-gather needs --overlap-grad-reduce: add it"


def _learning_rate(f: Facts) -> Iterable[str]:
    """`OptimizerParamScheduler.__init__`, megatron/core/optimizer_param_scheduler.py, after the model was built."""
    args = f.args
    if args.lr is not None and args.min_lr is not None and args.min_lr > args.lr:
        yield f"--min-lr {args.min_lr} is above --lr {args.lr}: lower it"
    if args.lr is not None and args.lr_warmup_init > args.lr:
        yield f"--lr-warmup-init {args.lr_warmup_init} is above --lr {args.lr}: lower it"
    unit = "samples" if args.train_samples else "iters"
    decay, train, warmup, wsd = (
        getattr(args, f"{name}_{unit}") for name in ("lr_decay", "train", "lr_warmup", "lr_wsd_decay")
    )
    if args.lr_warmup_fraction is not None and not 0 <= args.lr_warmup_fraction < 1:
        yield f"--lr-warmup-fraction {args.lr_warmup_fraction} is no part of the run: give 0 or more, and less than 1"
    if (decay or train) and args.lr_warmup_fraction is None and warmup >= (decay or train):
        flag = f"--{'lr-decay' if decay else 'train'}-{unit}"
        yield f"--lr-warmup-{unit} {warmup} is not below {flag} {decay or train}: lower the first, or give a longer run"
    if args.lr_decay_style == "WSD" and wsd is None:
        yield f"--lr-decay-style WSD needs --lr-wsd-decay-{unit}: say how long its last part is"


def _schedule(f: Facts) -> Iterable[str]:
    """Ours: A_max must leave room for every layer's rate (`megatron_compete/schedule/`)."""
    if f.args.router != "compete" or not f.args.num_experts:
        return
    try:
        compete = CompeteConfig.from_arguments(f.args)
        if compete.enabled:
            CompetitionSchedule.of(compete, ((0, 0),) * f.moe_layers)
    except CompeteError as error:
        yield str(error)


RULES: tuple[Rule, ...] = (
    _nodes, _world, _rank_order, _experts, _sequence_parallel, _heads, _hidden_sizes, _sequence, _batch, _layers,
    _interleaving, _optimizer, _learning_rate, _schedule,
)  # fmt: skip


def _not_over(flag: str, value: int, over: str, size: int) -> str:
    return f"{flag} {value} does not divide over {over} {size}: make the first a multiple of the second"


def _multiple(value: int, unit: int) -> int:
    """The multiple of `unit` at or above `value`."""
    return -(-value // unit) * unit

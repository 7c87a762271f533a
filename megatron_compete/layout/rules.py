"""What must divide what: the rules that Megatron trips over one at a time, minutes into a job, all checked at once.

Each rule reads the arguments as parsed, before Megatron fills in or changes any, and says which flags, which values and
a way out. Where Megatron's own check stands is beside each rule.
"""

import argparse
from collections.abc import Callable, Iterable

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.layout.facts import Facts, multiple
from megatron_compete.layout.model_rules import experts, heads, hidden_sizes, sequence, sequence_parallel
from megatron_compete.layout.pipeline_rules import interleaving, layers, prediction
from megatron_compete.layout.vision_rules import vision
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
        if getattr(f.args, name) is None and not (name == "num_layers" and f.is_hybrid):
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
            f"give {multiple(f.world, f.gpus_per_node)}"
        )


def _world(f: Facts) -> Iterable[str]:
    """`validate_args` and `initialize_model_parallel`, megatron/core/parallel_state.py."""
    dense, expert = f.tp * f.pp * f.cp, f.etp * f.ep * f.pp
    if f.world % dense:
        yield (
            f"{f.world} GPUs do not divide by tensor * pipeline * context parallel size = {f.tp} * {f.pp} * {f.cp} = "
            f"{dense}: give {multiple(f.world, dense)} GPUs or other sizes"
        )
    if f.world % expert:
        yield (
            f"{f.world} GPUs do not divide by expert tensor * expert * pipeline parallel size = {f.etp} * {f.ep} * "
            f"{f.pp} = {expert}: give {multiple(f.world, expert)} GPUs, another --expert-model-parallel-size, or "
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
                f"{unit}: give {multiple(size, unit)}"
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
            CompetitionSchedule.of(compete, ((0, 0),) * max(1, f.moe_layers))
    except CompeteError as error:
        yield str(error)


RULES: tuple[Rule, ...] = (
    _nodes, _world, _rank_order, experts, sequence_parallel, heads, hidden_sizes, sequence, _batch, layers,
    prediction, interleaving, vision, _optimizer, _learning_rate, _schedule,
)  # fmt: skip

"""Flags of the regions task: Megatron's names for what a trainer has too, this package's routing flags, and its own."""

import argparse
from collections.abc import Sequence

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.baselines import check_flags
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.study.regions.growth import GROWTH
from megatron_compete.training.arguments import add_routing_arguments, one_line_error
from megatron_compete.training.presets import defaults_asked_for

ORACLE = "oracle"
BY_TOKEN_ID = ("hash",)
"""Routers that go by what the inputs of this task do not have."""


def parse_arguments(tokens: Sequence[str]) -> argparse.Namespace:
    """Parse and check a command line.

    Raises:
        CompeteError: the first flag that is unknown, out of range or without effect.
    """
    parser = _parser()
    parser.error = one_line_error  # type: ignore[method-assign]
    parser.set_defaults(**defaults_asked_for(tokens))
    args = parser.parse_args(tokens)
    _check(args)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megatron_compete.study.regions", description=__doc__, allow_abbrev=False
    )
    add_routing_arguments(parser, more=(ORACLE,))
    layer = parser.add_argument_group("layer (Megatron's flags)").add_argument
    layer("--hidden-size", type=int, default=16, help="size of inputs and targets (default: %(default)s)")
    layer("--moe-ffn-hidden-size", type=int, default=16, help="width of an expert, with ReLU (default: %(default)s)")
    layer("--num-experts", type=int, default=16, help="default: %(default)s")
    layer("--moe-router-topk", type=int, default=1, help="default: %(default)s; all experts: their number")
    layer("--moe-router-pre-softmax", action="store_true", help="weights are shares of the softmax over all experts")
    layer("--moe-aux-loss-coeff", type=float, default=0.0, help="weight of Megatron's load balance (default: %(default)s)")  # fmt: skip
    layer("--init-method-std", type=float, default=0.25, help="of all initial weights (default: %(default)s)")
    training = parser.add_argument_group("training (Megatron's flags)").add_argument
    training("--train-iters", type=int, default=1500, help="default: %(default)s")
    training("--global-batch-size", type=int, default=256, help="inputs of a step (default: %(default)s)")
    training("--lr", type=float, default=5e-3, help="default: %(default)s")
    training("--min-lr", type=float, default=1e-4, help="default: %(default)s")
    training("--lr-warmup-iters", type=int, default=50, help="default: %(default)s")
    training("--lr-decay-style", choices=("constant", "linear", "cosine"), default="cosine", help="default: %(default)s")  # fmt: skip
    training("--adam-beta1", type=float, default=0.9, help="default: %(default)s")
    training("--adam-beta2", type=float, default=0.99, help="default: %(default)s")
    training("--seed", type=int, default=1234, help="of teacher, weights and data (default: %(default)s)")
    training("--probe-log", help="JSON lines of held-out loss, router statistics, seconds and operations")
    training("--probe-interval", type=int, default=100, help="steps between two probes (default: %(default)s)")
    training("--probe-sequences", type=int, default=4096, help="held-out inputs (default: %(default)s)")
    own = parser.add_argument_group("teacher and student").add_argument
    own("--regions", type=int, default=16, help="hidden regions (default: %(default)s)")
    own("--region-rank", type=int, help="rank of a region's map; default: half an expert's width, which can be learned")
    own("--samples", type=int, help="train on so many inputs, over and over; default: every input is new")
    own("--save", metavar="FILE", help="write the student's weights when it is trained")
    own("--initial", metavar="FILE", help="begin from weights that --save wrote, of as many experts or fewer")
    own("--grow-experts", choices=GROWTH, help="what experts beyond those of --initial are: copies in turn, or random")
    own("--grow-router", choices=GROWTH, help="the same of the router's rows")
    own("--grow-noise", type=float, default=0.0, help="noise on copies, relative to their weights' own size (default: %(default)s)")  # fmt: skip
    parser.set_defaults(swiglu=False, quick_geglu=False, moe_latent_size=None, ffn_hidden_size=None)
    return parser


def _check(args: argparse.Namespace) -> None:
    CompeteConfig.from_arguments(args)
    check_flags(args.router, BaselineConfig.from_arguments(args))
    for name in ("hidden_size", "moe_ffn_hidden_size", "num_experts", "moe_router_topk", "train_iters", "global_batch_size",
                 "probe_interval", "probe_sequences", "regions"):  # fmt: skip
        _require(getattr(args, name) >= 1, name, getattr(args, name), "give 1 or more")
    _require(args.moe_router_topk <= args.num_experts, "moe_router_topk", args.moe_router_topk, f"there are {args.num_experts} experts")  # fmt: skip
    if args.region_rank is None:
        args.region_rank = max(1, args.moe_ffn_hidden_size // 2)
    _require(args.region_rank >= 1, "region_rank", args.region_rank, "give 1 or more")
    _require(args.lr > 0 and 0 <= args.min_lr <= args.lr, "min_lr", args.min_lr, "give 0 to --lr, which is above 0")
    _require(args.lr_warmup_iters >= 0, "lr_warmup_iters", args.lr_warmup_iters, "give 0 or more")
    _require(args.init_method_std > 0, "init_method_std", args.init_method_std, "give more than 0")
    _require(args.moe_aux_loss_coeff >= 0, "moe_aux_loss_coeff", args.moe_aux_loss_coeff, "give 0 or more")
    samples = args.samples
    _require(samples is None or samples >= args.global_batch_size, "samples", samples, "give --global-batch-size or more")  # fmt: skip
    _require(args.grow_noise >= 0, "grow_noise", args.grow_noise, "give 0 or more")
    if args.router in BY_TOKEN_ID:
        raise CompeteError(f"--router {args.router} goes by the ids of tokens, and this task has none: leave it out")
    if args.router == ORACLE:
        _require(args.moe_router_topk == 1, "moe_router_topk", args.moe_router_topk, "--router oracle gives a region one expert: 1")  # fmt: skip
        _require(args.regions <= args.num_experts, "regions", args.regions, f"--router oracle needs an expert for each, and there are {args.num_experts}")  # fmt: skip
    if args.initial is None:
        for name in ("grow_experts", "grow_router", "grow_noise"):
            if getattr(args, name):
                raise CompeteError(f"{_flag(name)} without --initial: there is nothing to grow from; leave it out")


def _require(holds: bool, name: str, value: object, advice: str) -> None:
    if not holds:
        raise CompeteError(f"{_flag(name)} {value} is out of range: {advice}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

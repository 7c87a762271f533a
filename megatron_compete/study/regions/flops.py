"""Operations of a training step, to the axis `flops` of a study.

An expert is two matrices between H and F. A token's K experts run forward, and backward twice that, for the gradients of
inputs and of weights; an operation is a multiplication or an addition:

    step = 3 * T * K * (2 * H * F * 2),    a competition of N tokens: N * E * (2 * H * F * 2)

(`training/flops.py`; three times that with --compete-response-gradients all). Left out are routers, which in models of real
width are nothing beside the experts, and with them means and running defaults of the baselines.
"""

import argparse

from megatron_compete.config import CompeteConfig
from megatron_compete.training.flops import scoring_flops


def expert_flops(args: argparse.Namespace) -> float:
    """Of a step without competition."""
    one_expert = 2 * 2 * args.hidden_size * args.moe_ffn_hidden_size
    return 3.0 * args.global_batch_size * args.moe_router_topk * one_expert


def competition_flops(args: argparse.Namespace, config: CompeteConfig) -> float:
    """What a competing step has beside these."""
    tokens = config.token_fraction * args.global_batch_size
    return scoring_flops(args, tokens, config.response_gradients, config.kind)

"""Whether a layer's scoring pass uses the fused kernels: `--compete-score-kernel`."""

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import log_single_rank
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import flag_of
from megatron_compete.moe.kernels.coverage import (
    NotCovered,
    check_device,
    check_experts,
    expert_form,
    response_name,
)

if TYPE_CHECKING:
    from megatron_compete.moe.kernels.scorer import FusedScorer

logger = logging.getLogger(__name__)


def check_score_kernel(choice: str, config: TransformerConfig, reduction: Any) -> None:
    """Raise a `CompeteError` where fused kernels are asked for and these settings exclude them, on any machine."""
    if choice not in ("fused", "fused-fp8"):
        return
    try:
        expert_form(config, fp8=choice == "fused-fp8")
        response_name(config, reduction)
    except NotCovered as reason:
        raise _refusal(choice, reason) from None


def check_score_device(choice: str) -> None:
    """Raise a `CompeteError` where fused kernels are asked for and this process cannot run them."""
    if choice not in ("fused", "fused-fp8"):
        return
    try:
        check_device()
    except NotCovered as reason:
        raise _refusal(choice, reason) from None


def choose_fused_scorer(
    choice: str, config: TransformerConfig, experts: torch.nn.Module, reduction: Any, tokens_TH: Tensor
) -> "FusedScorer | None":
    """The fused scorer of a layer, or None where they are not used; decided by what it meets at its first pass.

    Args:
        choice: auto, fused, fused-fp8 or plain.
        tokens_TH: tokens as they will come: their device and precision count.
    Raises:
        CompeteError: fused kernels are asked for and cannot be used, with the reason.
    """
    if choice == "plain" or (choice == "auto" and not tokens_TH.is_cuda):
        return None
    try:
        check_device()
        form, response = expert_form(config, fp8=choice == "fused-fp8"), response_name(config, reduction)
        check_experts(experts, form, tokens_TH)
    except NotCovered as reason:
        if choice != "auto":
            raise _refusal(choice, reason) from None
        _say(f"scoring pass: not the fused kernels: {reason}", logging.WARNING)
        return None
    from megatron_compete.moe.kernels.scorer import FusedScorer  # needs Triton

    _say(f"scoring pass: fused kernels{' in FP8' if choice == 'fused-fp8' else ''}", logging.INFO)
    return FusedScorer(experts, form, response, fp8=choice == "fused-fp8")


def _refusal(choice: str, reason: Exception) -> CompeteError:
    return CompeteError(f"{flag_of('score_kernel')} {choice} cannot be used: {reason}. Give auto or plain")


@functools.cache
def _say(text: str, level: int) -> None:
    """Once per process, on rank 0."""
    log_single_rank(logger, level, f"megatron-compete: {text}")

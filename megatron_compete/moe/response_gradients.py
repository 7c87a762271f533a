"""Gradients for all experts' responses, losers included, without keeping an expert's output.

The scoring pass leaves no graph. Where a loss reaches the responses of losing experts
(`--compete-response-gradients all`), the backward pass runs the experts again, chunk by chunk and one at a time, with
gradient: scalars of gradient go out to the ranks that hold the experts, and sums of token gradients come home.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_compete.moe.expert_group import ExpertGroups
from megatron_compete.moe.scoring import num_local_experts, padded_chunks, run_expert
from megatron_compete.routing.responses import Response


@dataclass(frozen=True)
class Recomputation:
    """What the backward pass needs to run the experts again."""

    experts: torch.nn.Module
    response: Response
    groups: ExpertGroups
    chunk_tokens: int


class AllResponses(torch.autograd.Function):
    """The scored responses [T, E], differentiable in the tokens [T, H] and in all expert parameters."""

    @staticmethod
    def forward(ctx: Any, plan: Recomputation, responses_TE: Tensor, tokens_TH: Tensor, *parameters: Tensor) -> Tensor:
        """Hand the scores through; nothing is computed."""
        ctx.plan = plan
        ctx.save_for_backward(tokens_TH, *parameters)
        return responses_TE.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Chunk by chunk: gradient of the tokens, and of the parameters summed over chunks."""
        (grad_TE,) = grad_outputs
        tokens_TH, *parameters = ctx.saved_tensors
        plan: Recomputation = ctx.plan
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        token_grads = []
        for tokens, grad in padded_chunks(plan.groups, plan.chunk_tokens, tokens_TH, grad_TE):
            token_grad, parameter_grads = _chunk_gradients(plan, tokens, grad, parameters)
            token_grads.append(token_grad)
            for total, parameter_grad in zip(totals, parameter_grads):
                total.add_(parameter_grad)
        return None, None, torch.cat(token_grads)[: tokens_TH.shape[0]], *totals


def _chunk_gradients(
    plan: Recomputation, tokens_TH: Tensor, grad_TE: Tensor, parameters: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of one chunk's tokens [T, H], home and summed over experts, and of this rank's parameters."""
    grad_PE = plan.groups.send_out(grad_TE)
    tokens_GH = plan.groups.gather_tokens(tokens_TH).detach().requires_grad_()
    token_grad_GH = torch.zeros_like(tokens_GH)
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for index in range(num_local_experts(plan.experts)):
        with torch.enable_grad():
            partial_GH = run_expert(plan.experts, index, tokens_GH)
        whole_PH = plan.groups.sum_shards(partial_GH.detach()).requires_grad_()
        with torch.enable_grad():
            response_P = plan.response(whole_PH)
        (output_grad_PH,) = torch.autograd.grad(response_P, whole_PH, grad_PE[:, index])
        output_grad_GH = plan.groups.spread_to_shards(output_grad_PH)
        grads = torch.autograd.grad(partial_GH, [tokens_GH, *parameters], output_grad_GH, allow_unused=True)
        for total, grad in zip([token_grad_GH, *totals], grads):
            if grad is not None:  # the parameters of another expert
                total.add_(grad)
    return plan.groups.scatter_tokens(token_grad_GH), totals

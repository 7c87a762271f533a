"""Routers that give a token any number of experts, and the state that they carry from step to step.

Such a router holds K experts a token on average by a number that it adapts: a penalty's coefficient, thresholds. During
a step it observes its tokens; `moe/baselines/step.py` sums the observations over ranks and microbatches at the step's end
and hands them back, so that the state changes once a step and is the same on all ranks.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.metrics import record_experts_per_token
from megatron_compete.moe.router import logits_of_no_tokens, valid_tokens


class VariableRouter(TopKRouter):
    """`TopKRouter` whose weights and routing map are `choose`'s; logits, input jitter, z-loss and the factor
    `--moe-router-topk-scaling-factor` are Megatron's.

    Persistent buffers of subclasses are the state: fp32 whatever the model's precision, and in the checkpoint.
    """

    num_of_model: ClassVar[int] = 0
    """Numbers observed where the state follows from the sum over all layers of the model; 0: from each layer's own."""

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)
        self.settings = settings
        self.observed: Tensor | None = None
        """Sums over this rank's tokens since the step began, fp64 [num_observed]; None before the first."""

    @property
    @abstractmethod
    def num_observed(self) -> int:
        """Numbers that `observed` holds."""

    @abstractmethod
    def choose(self, logits_TE: Tensor, valid_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and map (bool) of the experts of every token, [T, E].

        Args:
            valid_T: mask of the tokens that count in losses and observations, None for all. All tokens are routed.
        """

    @abstractmethod
    def end_step(self, sums: Tensor) -> None:
        """Change the state after a training step.

        Args:
            sums: `observed`, fp64, summed over microbatches and ranks, and over layers too if `num_of_model`.
        """

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `TopKRouter.routing`: logits [S, B, E] to weights and routing map, both [T, E]."""
        logits_TE = logits.reshape(-1, self.config.num_moe_experts)
        flat_mask = None if padding_mask is None else padding_mask.reshape(-1)
        logits_TE = self.apply_z_loss(logits_TE, padding_mask=flat_mask)
        valid_T = valid_tokens(padding_mask)
        weights_TE, routing_map_TE = self.choose(logits_TE, valid_T)
        if self.learns():
            record_experts_per_token(self, routing_map_TE, valid_T)
        scale = self.config.moe_router_topk_scaling_factor or 1.0
        return (scale * weights_TE).type_as(logits_TE) * routing_map_TE, routing_map_TE

    def gating(self, input: Tensor) -> Tensor:
        """As `TopKRouter.gating`; a rank may hold no tokens."""
        return super().gating(input) if input.numel() > 0 else logits_of_no_tokens(self, input)

    def learns(self) -> bool:
        """Whether the pass in progress trains: evaluation does not, nor the first of a recomputed layer's two passes."""
        return self.training and torch.is_grad_enabled()

    def observe(self, sums: Tensor) -> None:
        """Add the sums of one microbatch [num_observed]; called in passes that train."""
        sums = sums.detach().double()
        self.observed = sums if self.observed is None else self.observed + sums

    def tokens_per_expert(self, routing_map_TE: Tensor, valid_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Valid tokens of every expert [E], and valid tokens [1], of the microbatch: over the ranks that share it."""
        if valid_T is None:
            valid_T = routing_map_TE.new_ones(len(routing_map_TE))
        counts = torch.cat([(routing_map_TE & valid_T.unsqueeze(-1)).sum(dim=0), valid_T.sum().unsqueeze(0)]).float()
        if self.tp_cp_group.size() > 1:
            torch.distributed.all_reduce(counts, group=self.tp_cp_group)
        return counts[:-1], counts[-1:]

    def attach_balance(self, weights_TE: Tensor, coefficient: Tensor | float, loss: Tensor, tokens: Tensor) -> Tensor:
        """`weights_TE` unchanged; its backward pass also sends the gradient of `coefficient * loss`, which is logged as
        Megatron's `load_balancing_loss`.

        Args:
            loss: this rank's part of the microbatch's; the parts add up to a mean over its valid tokens.
            tokens: [1], as `tokens_per_expert` returns them. Upstream multiplies its argument by the number of ranks
                that share the microbatch; theirs, one rank's tokens, would be wrong where padding lies unevenly.
        """
        return self.attach_and_log_load_balancing_loss(
            weights_TE, coefficient, coefficient * loss, "load_balancing_loss", self.tp_cp_group,
            valid_token_count=tokens.squeeze() / self.tp_cp_group.size(),
        )  # fmt: skip

    def balanced(self, weights_TE: Tensor, logits_TE: Tensor, chosen_TE: Tensor, valid_T: Tensor | None) -> Tensor:
        """`weights_TE` with Megatron's aux_loss attached.

        `TopKRouter._apply_aux_loss` with tokens counted as they are: upstream takes the map's sum over K for them.
        """
        probs_TE = logits_TE.softmax(dim=-1, dtype=torch.float32)
        if valid_T is not None:
            probs_TE = probs_TE * valid_T.unsqueeze(-1)
        tokens_E, tokens = self.tokens_per_expert(chosen_TE, valid_T)
        loss = switch_load_balancing_loss_func(
            probs_TE, tokens_E, tokens.squeeze().clamp_min(1.0), self.topk, self.num_experts, 1.0
        )
        return self.attach_balance(weights_TE, self.get_aux_loss_coeff("aux_loss"), loss, tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Move and cast as any module, but for the state, which moves and is not cast.

        Megatron's Float16Module casts all buffers. `TopKRouter` takes its bias back at the next forward pass, rounded
        as it is by then.
        """
        state = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer.dtype == torch.float32}
        super()._apply(fn, *args, **kwargs)
        for name, before in state.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                after.data = before.to(device=after.device)
        return self


def scores_of_microbatch(scores_TE: Tensor, valid_T: Tensor | None, group: torch.distributed.ProcessGroup) -> Tensor:
    """The scores of all valid tokens of a microbatch that the ranks of `group` share, on each of them; no gradient."""
    scores_TE = scores_TE.detach()
    if valid_T is None:  # ranks then hold as many tokens
        return scores_TE if group.size() == 1 else _gathered(scores_TE, group)
    if group.size() == 1:
        return scores_TE[valid_T]
    return _gathered(scores_TE, group)[_gathered(valid_T.unsqueeze(-1), group).squeeze(-1)]


def _gathered(rows: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
    gathered = rows.new_empty(group.size() * rows.shape[0], *rows.shape[1:])
    torch.distributed.all_gather_into_tensor(gathered, rows.contiguous(), group=group)
    return gathered

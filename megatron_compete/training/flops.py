"""The scoring pass in the trainer's floating-point operations.

Megatron counts K experts per token at every step. At a competing layer all E experts answer all tokens as well; this
module adds that to Megatron's count, from which it makes the throughput and the progress log. `RunningFlops` is that count
for the probe's log.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from megatron.core.num_microbatches_calculator import get_num_microbatches

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.upstream import wrap_symbol


def scoring_flops(
    args: argparse.Namespace, num_tokens: float, response_gradients: str = "winners", kind: str = "response"
) -> float:
    """Floating-point operations of one layer's competition beyond a normal step's, over all ranks.

    An expert is a matrix H -> F and one F -> H; a gated one has two of the first. Each costs H * F multiply-adds a
    token, and a multiply-add is 2 operations, so the forward pass of E experts over T tokens takes

        T * E * (2, or 3 if gated) * H * F * 2.

    Under --moe-latent-size L the experts are of width L instead of H, each token is projected from H to L, and what the
    experts answer from L to H; by utility one vector a token is, and no answer.

    The pass has no backward pass: the winners' own forward and backward pass are the K experts Megatron counts. With
    `--compete-response-gradients all` the losers get one too, twice the forward pass. That it runs the forward pass
    again is not counted, as Megatron does not count recomputation. The response, T * E * H, is left out as are
    Megatron's activations and norms.

    Args:
        num_tokens: T, of the global batch.
    """
    matrices = 3 if args.swiglu or args.quick_geglu else 2
    expert_size = args.moe_ffn_hidden_size or args.ffn_hidden_size
    width, latent = args.hidden_size, args.moe_latent_size
    multiply_adds = num_tokens * args.num_experts * matrices * (latent or width) * expert_size
    if latent:
        projected = args.num_experts if kind == "response" else 1
        multiply_adds += num_tokens * (1 + projected) * width * latent
    forward = 2.0 * multiply_adds
    return 3.0 * forward if response_gradients == "all" else forward


Scoring = Callable[[argparse.Namespace, float, float], Any]
"""From the trainer's arguments, and samples and tokens of the global batch, of which the tokens compete that a layer samples,
to the operations of each layer's competition: one number for all, or an array [competing layers]."""


def scoring_of(config: CompeteConfig) -> Scoring:
    """Of a decoder's layers, which are alike."""

    def scoring(args: argparse.Namespace, samples: float, tokens: float) -> float:
        return scoring_flops(args, tokens, config.response_gradients, config.kind)

    return scoring


class FlopsCount:
    """Around `num_floating_point_operations` and `training_log` of Megatron's trainer.

    Two places of the trainer ask, both when a step has ended and `curr_iteration`, counted from 0, still names it:

    * `train` adds up the operations of the job, so the step's own competitions count;
    * `training_log` divides by the mean time of the steps since the last line. Competitions come unevenly, so there
      it must be their mean over the same steps, or every line would show one step's luck.
    """

    def __init__(self, competition: Competition, scoring: Scoring) -> None:
        self.competition = competition
        self.scoring = scoring
        self._loss_dict: dict[str, Any] | None = None

    def count(
        self,
        upstream: Callable[..., float],
        args: argparse.Namespace,
        batch_size: int,
        seqlen_squared_sum_in_batch: float | None = None,
        total_real_tokens_in_batch: float | None = None,
    ) -> float:
        """Megatron's count for a global batch, plus the scoring passes."""
        total = upstream(args, batch_size, seqlen_squared_sum_in_batch, total_real_tokens_in_batch)
        tokens = total_real_tokens_in_batch
        if tokens is None:
            tokens = batch_size * args.seq_length
        share = self.competition.config.token_fraction
        layers = self.scoring(args, share * batch_size, share * tokens)
        return total + float((self._mean_competitions() * layers).sum())

    def log(
        self, upstream: Callable[..., Any], loss_dict: dict[str, Any], total_loss_dict: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:  # fmt: skip
        """Megatron's `training_log`, with the mean over the line's steps."""
        self._loss_dict = total_loss_dict
        try:
            return upstream(loss_dict, total_loss_dict, *args, **kwargs)
        finally:
            self._loss_dict = None

    def _mean_competitions(self) -> Any:
        """How often each layer competed at a step: [competing layers]."""
        stop = self.competition.current_step() + 1
        start = max(0, stop - self._steps())
        return self.competition.schedule.table(start, stop).mean(axis=0)

    def _steps(self) -> int:
        """Steps that the count is for, the last one included; `training_log` has counted its own by then."""
        if self._loss_dict is None:
            return 1
        return max(1, self._loss_dict["advanced iterations"] + self._loss_dict["skipped iterations"])


@contextlib.contextmanager
def counted_scoring(competition: Competition, scoring: Scoring | None = None) -> Iterator[None]:
    """Within it, Megatron's trainer counts this competition's scoring passes.

    Args:
        scoring: their operations; default those of a decoder's layers.
    """
    if not competition.config.enabled:
        yield
        return
    ours = FlopsCount(competition, scoring or scoring_of(competition.config))
    with (
        wrap_symbol("megatron.training.training:num_floating_point_operations", ours.count),
        wrap_symbol("megatron.training.training:training_log", ours.log),
    ):
        yield


class RunningFlops:
    """Operations of the training so far, as Megatron's loop sums them up, known when a step's `train_step` returns.

    The sum begins with the checkpoint's, also where a finetuned model begins anew. It is in whole global batches over all
    ranks, the same on each of them, and holds whatever `num_floating_point_operations` is replaced by: the scoring passes.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.total = 0.0
        self._packed: tuple[float | None, float | None] | None = None

    def begin(self) -> None:
        """Before the first step, when the checkpoint has been read."""
        self.total = float(self.args.num_floating_point_operations_so_far)

    def add_step(self) -> None:
        """Add the step that has just ended; a collective where samples are packed."""
        from megatron.training import training

        tokens, squares = training.consume_seqlen_stats_in_iteration()
        batch = get_num_microbatches() * self.args.micro_batch_size * self.args.data_parallel_size
        self.total += training.num_floating_point_operations(
            self.args, batch, seqlen_squared_sum_in_batch=squares, total_real_tokens_in_batch=tokens
        )

    def consume(self, upstream: Callable[[], tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
        """Around `consume_seqlen_stats_in_iteration`, which empties what it reads: `add_step` asks first, and the loop,
        which asks after it, is given the same."""
        if self._packed is None:
            self._packed = upstream()
            return self._packed
        packed, self._packed = self._packed, None
        return packed

"""Every knob of competition routing.

The command line is made from this class: field `max_active_layers` is the flag `--compete-max-active-layers`, and the
text under a field is its help (see `megatron_compete.training.arguments`).
"""

import argparse
import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from megatron_compete.common.config_fields import check_fields
from megatron_compete.common.errors import CompeteError

PREFIX = "compete_"
"""Of a `CompeteConfig` field among parsed arguments."""

DEFAULT_PRESET = "paper"
"""The preset that this class's defaults are (`megatron_compete/training/presets.py`)."""


@dataclass(frozen=True)
class CompeteConfig:
    """Settings of competition routing; the defaults are the authors' language recipe (arXiv 2505.13380)."""

    rate: float = 0.07
    """Fraction of the steps after warm-up at which each MoE layer competes, in [0, 1]. 0 switches competition and all
    its losses off: the layers then behave as Megatron's MoELayer."""

    max_active_layers: int | None = None
    """A_max: layers that may compete at one step, counted over the whole model and all pipeline stages. Left out: 3, as
    the authors have it, or in a deeper model as many as the rate asks for, rate * layers rounded up."""

    policy: Literal["auto", "balanced", "shifted", "bernoulli"] = "auto"
    """Who competes when. balanced: layers that compete at one step lie on different pipeline stages, as far as A_max
    and rate allow; shifted: the authors' procedure, each layer draws its steps and moves from full ones to the nearest
    with room; bernoulli: each layer by itself at each step, without limit, where A_max is no less than the layers.
    auto: balanced on several pipeline stages, else shifted; a resumed run keeps what it began with."""

    cap_rate: bool = False
    """Where rate * layers is more than A_max (3 if that is left out), compete at the highest rate that fits instead of
    stopping."""

    token_fraction: float = 1.0
    """Fraction of the tokens that compete where a layer does, in (0, 1]: a sample of positions, drawn for each step and
    layer, the same in all sequences. The others are routed as at a normal step. Rate 1 with a small fraction costs every
    step and every pipeline stage alike."""

    rate_decay: Literal["none", "linear", "cosine"] = "none"
    """How the rate falls over the first --compete-rate-decay-steps after warm-up, to --compete-rate-floor."""

    rate_decay_steps: int = 0
    """Steps after warm-up over which the rate falls."""

    rate_floor: float = 0.0
    """Rate from then on."""

    warmup_steps: int = 0
    """Steps at the start of training at which no layer competes."""

    warmup_fraction: float = 0.0
    """The same as a fraction of the training steps (--train-iters, or --train-samples by the batch), rounded up, in place
    of --compete-warmup-steps. A resumed run keeps the steps that it began with."""

    seed: int = 1234
    """Seed of the competition schedule and of the samples of tokens; independent of --seed."""

    kind: Literal["response", "utility"] = "response"
    """What experts compete by. response: by the strength of their outputs, as in the paper; the winners get the token.
    utility: by what a larger share of theirs would change the loss; the token goes where the router says, all experts
    are scored in the backward pass, and the router learns from that gradient alone."""

    utility_gradient: Literal["dense", "missing"] = "dense"
    """With --compete-kind utility, the gradient of the router's logits. dense: that of the sum of all experts, each at
    its probability, in place of the sparse gradient of the selected ones. missing: the sparse gradient as at normal
    steps, and the dense one for experts that were not selected."""

    response: Literal["softplus", "l2"] = "softplus"
    """What an expert's output is worth to a token: softplus (mean over the hidden size) or l2 (norm)."""

    response_centering: Literal["none", "batch", "ema"] = "none"
    """Rank experts by their responses as they are, or each against its own statistic, (s - mean) / std over tokens: those
    of the microbatch (batch), or running ones kept in the checkpoint (ema). The distillation target follows."""

    response_ema_decay: float = 0.99
    """Share of the running statistics that is kept at each competing microbatch, with --compete-response-centering ema."""

    response_gradients: Literal["winners", "all"] = "winners"
    """Whose responses the response balance reaches: the winners', or all experts' by running them again in the backward
    pass."""

    distill_loss: Literal["mse", "kl"] = "mse"
    """Distance between the router's probabilities p and the competition's outcome q: the paper's squared error, or
    KL(q || p)."""

    distill_temperature: float = 1.0
    """Temperature of the outcome: q = softmax(scores / temperature)."""

    distill_standardize: bool = False
    """Bring each token's scores to mean 0 and standard deviation 1 over the experts before that softmax."""

    distill_coeff: float = 0.001
    """Weight of the distillation loss that draws the router towards the competition's outcome."""

    distill_winner_coeff: float = 0.2
    """Weight theta, inside the distillation loss, of the same distance taken over the winners alone."""

    diversity_coeff: float = 0.005
    """Weight of the diversity loss: mean cosine between the outputs of a token's winners."""

    response_balance_coeff: float = 0.005
    """Weight of the entropy form of load balance over the responses, on competing steps."""

    router_balance_coeff: float = 0.01
    """Weight of the entropy form of load balance over the router's probabilities, of the tokens that go where the router
    says. Adds to Megatron's own --moe-aux-loss-coeff (default 0); set one of the two."""

    balance_loss: Literal["entropy", "top1"] = "entropy"
    """Form of both balance losses. entropy: sum m log m of the mean share m of each expert, the authors' for language;
    top1: E * sum of that share times the part of the tokens whose first choice the expert is, sequence by sequence (image by
    image), the authors' for vision."""

    router_z_loss_coeff: float = 0.0
    """Weight of the mean square of the logarithm of the sum of the router's exponentiated logits, of the tokens that go
    where the router says. Adds to Megatron's own --moe-z-loss-coeff, which is of all steps."""

    layer_reduction: Literal["sum", "mean"] = "sum"
    """Whether the losses of these flags add up over the layers of a part of the model (vision tower, projector, language
    model), or each part has the mean over its layers that can compete."""

    score_chunk_tokens: int = 4096
    """Tokens of one rank that are gathered and scored at a time. Bounds the scoring pass's memory: it holds
    chunk * expert-group-size tokens and one expert's output for them."""

    score_kernel: Literal["auto", "fused", "fused-fp8", "plain"] = "auto"
    """What runs the experts in the scoring pass. plain: Megatron's expert modules, one after the other; fused: Triton
    kernels for all of them at once, whose outputs never reach memory; fused-fp8: the same with tokens and weights
    quantised by rows for scoring alone, which changes a small share of the winners; auto: fused where the kernels cover
    the model and the GPU (Hopper or newer), else the same products as plain without the modules around them, where these
    are Megatron's own linear layers, else plain."""

    def __post_init__(self) -> None:
        check_fields(self, flag_of)
        _check(0.0 <= self.rate <= 1.0, "rate", self.rate, "a fraction of steps: give a number from 0 to 1")
        _check(self.max_active_layers is None or self.max_active_layers >= 1, "max_active_layers", self.max_active_layers, "give 1 or more, or --compete-rate 0 for no competition")  # fmt: skip
        _check(0.0 < self.token_fraction <= 1.0, "token_fraction", self.token_fraction, "a fraction of the tokens: give more than 0 and at most 1, or --compete-rate 0 for no competition")  # fmt: skip
        _check(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "give 0 or more")
        _check(0.0 <= self.warmup_fraction < 1.0, "warmup_fraction", self.warmup_fraction, "a fraction of the steps: give a number from 0 to less than 1")  # fmt: skip
        _check(0.0 < self.response_ema_decay < 1.0, "response_ema_decay", self.response_ema_decay, "give a number between 0 and 1")  # fmt: skip
        _check(self.distill_temperature > 0.0, "distill_temperature", self.distill_temperature, "give more than 0")
        if self.response_gradients == "all" and self.response_balance_coeff == 0.0:
            raise CompeteError("--compete-response-gradients all changes nothing at --compete-response-balance-coeff 0")
        _check(self.score_chunk_tokens >= 1, "score_chunk_tokens", self.score_chunk_tokens, "give 1 or more")
        self._check_balance()
        for name in ("distill", "distill_winner", "diversity", "response_balance", "router_balance", "router_z_loss"):
            value = getattr(self, f"{name}_coeff")
            _check(value >= 0.0, f"{name}_coeff", value, "a loss weight: give 0 or more")
        self._check_kind()

    def _check_balance(self) -> None:
        """A form of losses that are not there would be without effect."""
        own = (
            ("router_balance_coeff",) if self.kind == "utility" else ("response_balance_coeff", "router_balance_coeff")
        )
        if self.balance_loss != "entropy" and not any(getattr(self, name) for name in own):
            raise CompeteError(
                f"{flag_of('balance_loss')} {self.balance_loss} changes nothing at {' and '.join(map(flag_of, own))} 0"
            )

    def _check_kind(self) -> None:
        """No setting of the other kind of competition, unless it switches something off."""
        other = UTILITY_ALONE if self.kind == "response" else RESPONSE_ALONE
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in other and value not in (field.default, 0.0):
                raise CompeteError(
                    f"{flag_of(field.name)} {value} has no effect with --compete-kind {self.kind}: leave it out"
                )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "CompeteConfig":
        """The settings among a trainer's parsed arguments; one whose parser lacks `--compete-*` gets the defaults.

        Raises:
            CompeteError: settings that exclude each other, or a fraction of steps that nobody has given; some may be those
                of a preset, which is then named.
        """
        names = (field.name for field in fields(cls))
        given = {name: getattr(args, PREFIX + name) for name in names if hasattr(args, PREFIX + name)}
        try:
            return cls(**given)._of_run(args)
        except CompeteError as error:
            preset = getattr(args, "compete_preset", DEFAULT_PRESET)
            if preset == DEFAULT_PRESET:
                raise
            raise CompeteError(f"{error} (what is not given is --compete-preset {preset}'s)") from error

    def of_run(self, train_steps: int) -> "CompeteConfig":
        """These settings in a run of so many steps: a `warmup_fraction` is resolved into `warmup_steps`."""
        if self.warmup_fraction == 0.0:
            return self
        return replace(self, warmup_steps=math.ceil(self.warmup_fraction * train_steps - 1e-9))

    def _of_run(self, args: argparse.Namespace) -> "CompeteConfig":
        """These settings, as they were given, in the run of a trainer's parsed arguments; with another --router there is no
        schedule, and no number of steps is needed."""
        if self.warmup_fraction == 0.0 or not self.enabled or getattr(args, "router", "compete") != "compete":
            return self
        given = f"{flag_of('warmup_fraction')} {self.warmup_fraction:g}"
        if self.warmup_steps:
            raise CompeteError(
                f"{given} and {flag_of('warmup_steps')} {self.warmup_steps} exclude each other: keep one"
            )
        train_steps = _train_steps(args)
        if not train_steps:
            raise CompeteError(
                f"{given} is a fraction of a number of steps: give --train-iters, or --train-samples with a "
                f"--global-batch-size, or {flag_of('warmup_steps')} in its place"
            )
        return self.of_run(train_steps)

    @property
    def enabled(self) -> bool:
        """Whether any layer ever competes."""
        return self.rate > 0.0


UTILITY_ALONE = frozenset({"utility_gradient"})
"""Settings of competition by utility."""

RESPONSE_ALONE = frozenset(
    field.name for field in fields(CompeteConfig) if field.name.split("_")[0] in ("response", "distill", "diversity")
)
"""Settings of competition by response: responses, distillation, and the losses of the winners."""


def flag_of(field: str) -> str:
    """The command-line flag of a field of `CompeteConfig`."""
    return "--compete-" + field.replace("_", "-")


def _train_steps(args: argparse.Namespace) -> int | None:
    """Steps of a job of Megatron's, as it counts them (upstream: `update_train_iters`); None where they do not follow from
    these arguments, as from samples in batches of several sizes."""
    samples, batch = getattr(args, "train_samples", None), getattr(args, "global_batch_size", None)
    if getattr(args, "train_iters", None) or not samples:
        return getattr(args, "train_iters", None)
    return samples // batch if batch and getattr(args, "step_batch_size_schedule", None) is None else None


def _check(holds: bool, field: str, value: object, advice: str) -> None:
    if not holds:
        raise CompeteError(f"{flag_of(field)} {value} is out of range: {advice}")

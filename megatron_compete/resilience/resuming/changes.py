"""Changes between a checkpoint and the arguments that go on from it: exact, or refused in one line.

Users extend runs, take another learning rate or batch, or have weights alone. Megatron meets most of these after the
model is built, with assertions that name no flag; some it takes without a word. The rules here compare the checkpoint's
arguments with this run's, both validated. `plan`, `submit` and the trainer go by the same ones.

A change that has no effect on what is computed passes (more steps at a constant learning rate). One that has is refused
unless it is asked for by a flag of Megatron's that says how it is meant.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import PREFIX, CompeteConfig
from megatron_compete.data.conversations import config as conversations
from megatron_compete.resilience.resuming.learning_rate import RateSchedule
from megatron_compete.resilience.resuming.router import router_changes
from megatron_compete.vlm.config import dest_of

OVERRIDE = "--override-opt_param-scheduler"
KEEP = "--use-checkpoint-opt_param-scheduler"
ANEW = "--finetune starts a new run from its weights"

MODEL = (
    "num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "kv_channels", "group_query_attention",
    "multi_latent_attention", "num_experts", "moe_ffn_hidden_size", "moe_layer_freq",
    "moe_shared_expert_intermediate_size", "mtp_num_layers", "normalization", "swiglu", "relu", "squared_relu",
    "add_bias_linear", "add_qkv_bias", "qk_layernorm", "position_embedding_type", "rotary_base", "rotary_percent",
    "untie_embeddings_and_output_weights", "moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax",
    "moe_latent_size", "moe_shared_expert_gate", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim",
    "v_head_dim", "experimental_attention_variant", "attention_output_gate", "softmax_type", "window_size",
    "window_attn_skip_freq", "no_rope_freq", "linear_attention_freq", "linear_conv_kernel_dim", "linear_key_head_dim",
    "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "mamba_head_dim",
    "mamba_state_dim", "mamba_num_groups", "layernorm_zero_centered_gamma", "vision_model_type",
)  # fmt: skip
"""Arguments that say what the model is; a run goes on with the same. Checkpoints of other versions may lack some."""

VISION = (
    *(dest_of(name) for name in (
        "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "layernorm_epsilon",
        "disable_class_token", "experts_in", "num_experts", "router_topk", "projector_ffn_hidden_size",
    )),
    "img_h", "img_w", "patch_dim",
)  # fmt: skip
"""The same of tower and projector, where both have them."""

FROZEN = tuple(dest_of(name) for name in ("freeze_language", "freeze_tower", "freeze_projector"))
"""Parts that are not trained, of which there is no state of the optimizer."""

FLAGS = {
    "add_bias_linear": "add_bias_linear (--disable-bias-linear)",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
}
"""Flags whose name is not the argument's with dashes."""


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says of the run that saved it."""

    arguments: argparse.Namespace
    iteration: int
    release: bool = False
    """Weights alone, of an import: nothing goes on but them."""
    rate_schedule: Mapping[str, Any] = field(default_factory=dict)
    """State of Megatron's `OptimizerParamScheduler`; it may be another than the arguments'."""


@dataclass(frozen=True)
class Change:
    """Saved and present arguments, as rules look at them."""

    saved: argparse.Namespace
    now: argparse.Namespace
    iteration: int
    rate_schedule: Mapping[str, Any]

    @classmethod
    def of(cls, saved: SavedRun, now: argparse.Namespace) -> "Change":
        """Of a run that goes on from `saved`."""
        return cls(saved.arguments, now, saved.iteration, saved.rate_schedule)

    def differs(self, name: str) -> bool:
        """Whether both have the argument, with different values."""
        return hasattr(self.saved, name) and getattr(self.now, name, None) != getattr(self.saved, name)

    def told(self, name: str) -> str:
        """`--num-layers 4 is 2 in the checkpoint`."""
        flag = FLAGS.get(name, "--" + name.replace("_", "-"))
        return f"{flag} {getattr(self.now, name, None)} is {getattr(self.saved, name)} in the checkpoint"


def check_changes(saved: SavedRun, now: argparse.Namespace) -> None:
    """Raise a `CompeteError` for the first rule that going on with the arguments `now` breaks.

    Args:
        saved: what the checkpoint holds.
        now: this run's arguments, after Megatron has validated them.
    """
    for message in broken_changes(saved, now):
        raise CompeteError(message)


def broken_changes(saved: SavedRun, now: argparse.Namespace) -> tuple[str, ...]:
    """Every rule that is broken; none of a run that takes the weights alone (`--finetune`, a release)."""
    if saved.release or now.finetune:
        return ()
    change = Change.of(saved, now)
    return tuple(message for rule in RULES for message in rule(change))


def notes_on(saved: SavedRun, now: argparse.Namespace) -> tuple[str, ...]:
    """What is allowed and worth a line in the log."""
    if saved.release or now.finetune:
        return ()
    change = Change.of(saved, now)
    return tuple(note for told in (_data_order, _competition, _without_optimizer) for note in told(change))


def _model(c: Change) -> Iterable[str]:
    """Megatron compares five arguments and trips over the shapes of the rest, or takes them."""
    both_see = c.now.vision_model_type and not c.differs("vision_model_type")
    for name in (*MODEL, *(VISION if both_see else ())):
        if c.differs(name):
            yield f"{c.told(name)}, and its model is another with it: give the checkpoint's, or start anew"
    if _layers(c.now) != _layers(c.saved) and hasattr(c.saved, "hybrid_layer_pattern"):
        yield f"{c.told('hybrid_layer_pattern')}, and its layers are others with it: change the | in it alone, or start anew"
    if c.now.group_query_attention and c.differs("num_query_groups"):
        yield f"{c.told('num_query_groups')}, and its model is another with it: give the checkpoint's, or start anew"


def _layers(args: argparse.Namespace) -> str | None:
    """A hybrid model's layers, wherever their stages end."""
    pattern: str | None = getattr(args, "hybrid_layer_pattern", None)
    return None if pattern is None else pattern.replace(Symbols.PIPE, "")


def _router(c: Change) -> Iterable[str]:
    return router_changes(c.saved, c.now)


def _length(c: Change) -> Iterable[str]:
    if c.now.train_iters and not c.now.train_samples and c.now.train_iters < c.iteration:
        yield (
            f"--train-iters {c.now.train_iters} is before iteration {c.iteration}, from which this run goes on: give more, "
            "or an earlier checkpoint with --ckpt-step"
        )
    samples = getattr(c.saved, "consumed_train_samples", 0)
    if c.now.train_samples and c.now.train_samples < samples:
        yield (
            f"--train-samples {c.now.train_samples} is below the {samples} that the checkpoint has seen: give more, or an "
            "earlier checkpoint with --ckpt-step"
        )


def _sequence(c: Change) -> Iterable[str]:
    """Megatron counts samples, so it would go on at the same number of another kind of sample."""
    if c.differs("seq_length"):
        yield f"{c.told('seq_length')}, and its place in the data is counted in such sequences: give the checkpoint's ({ANEW})"


def _optimizer(c: Change) -> Iterable[str]:
    """`load_checkpoint`, megatron/training/checkpointing.py."""
    if c.now.no_load_optim:
        return
    if getattr(c.saved, "no_save_optim", False):
        yield (
            "the checkpoint has no optimizer state (--no-save-optim): give --no-load-optim, which goes on with a new one, "
            "or --finetune, which starts a new run from its weights"
        )
    for name in FROZEN:
        if c.differs(name):
            yield (
                f"{c.told(name)}, and its optimizer state is of other weights: --no-load-optim goes on with a new one, and "
                f"{ANEW}"
            )
    for name in ("optimizer", "params_dtype"):
        if c.differs(name):
            flag = "--optimizer" if name == "optimizer" else "the precision (--bf16, --fp16)"
            yield (
                f"{flag} {getattr(c.now, name)} is {getattr(c.saved, name)} in the checkpoint, and its optimizer state is "
                "another: give the checkpoint's, or --no-load-optim for a new state"
            )


def _learning_rate(c: Change) -> Iterable[str]:
    """`OptimizerParamScheduler.load_state_dict`, megatron/core/optimizer_param_scheduler.py."""
    override, keep = c.now.override_opt_param_scheduler, c.now.use_checkpoint_opt_param_scheduler
    if override and keep:
        yield f"{OVERRIDE} and {KEEP} exclude each other: keep one"
    if override or keep or c.now.no_load_optim or not all(hasattr(c.saved, name) for name in COURSE):
        return  # of another version, Megatron alone can tell
    before, after = RateSchedule.of(c.saved).restored(c.rate_schedule), RateSchedule.of(c.now)
    consumed = getattr(c.saved, "consumed_train_samples", 0)
    changes = before.changes(after, consumed)
    if changes:
        told = [c.told(name) for name in COURSE if c.differs(name) and getattr(c.now, name) is not None]
        yield (
            f"{'; '.join(told) or 'the arguments are not those that it was kept by'}: the learning rate would leave the "
            f"checkpoint's course ({'; '.join(changes)}). Give {KEEP} to keep its course, or {OVERRIDE} to take the new one"
        )


COURSE = (
    "lr", "min_lr", "lr_decay_style", "train_iters", "train_samples", "global_batch_size", "lr_decay_iters",
    "lr_decay_samples", "lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction", "lr_warmup_init",
    "lr_wsd_decay_iters", "lr_wsd_decay_samples", "lr_wsd_decay_style", "start_weight_decay", "end_weight_decay",
    "weight_decay_incr_style",
)  # fmt: skip
"""Arguments from which the course follows."""

RULES: tuple[Callable[[Change], Iterable[str]], ...] = (
    _model, _router, _length, _sequence, _optimizer, _learning_rate,
)  # fmt: skip

DATA = (
    "seed", "split", "data_path", "data_args_path", "train_data_path", "per_split_data_args_path", "train_iters",
    "train_samples", "global_batch_size",
)  # fmt: skip
"""Arguments from which the order of the samples follows."""


CONVERSATIONS = (
    "seed", "split", "data_path", "data_args_path", "train_data_path", "per_split_data_args_path", "energon_path",
    *(conversations.dest_of(name) for name in (
        "template", "image_aspect_ratio", "use_tiling", "max_num_tiles", "use_thumbnail", "truncate", "pack",
        "group_by_modality",
    )),
)  # fmt: skip
"""The same where samples are conversations, and how these are read; their order does not follow from the run's length."""


def _data_order(c: Change) -> Iterable[str]:
    if c.now.vision_model_type is not None:
        yield from _conversations(c)
        return
    told = [c.told(name) for name in DATA if c.differs(name)]
    if told:
        yield (
            f"{'; '.join(told)}: samples come in the order of the new arguments from number "
            f"{getattr(c.saved, 'consumed_train_samples', 0)} on; documents are shuffled anew where the number of epochs "
            "changes"
        )


def _conversations(c: Change) -> Iterable[str]:
    grouped = ("global_batch_size",) if c.now.group_by_modality else ()
    told = [c.told(name) for name in (*CONVERSATIONS, *grouped) if c.differs(name)]
    if hasattr(c.now, "listed_samples") and c.differs("listed_samples"):
        told.append(f"the list of {c.now.listed_samples} is another than the checkpoint's of {c.saved.listed_samples}")
    if told:
        yield (
            f"{'; '.join(told)}: conversations are read by the new arguments, and may come in another order, from number "
            f"{getattr(c.saved, 'consumed_train_samples', 0)} on"
        )


KEPT_OR_IDLE = frozenset((
    "rate", "max_active_layers", "policy", "cap_rate", "rate_decay", "rate_decay_steps", "rate_floor", "warmup_steps",
    "warmup_fraction", "seed", "score_chunk_tokens", "score_kernel",
))  # fmt: skip
"""Settings of the competition that the checkpoint's schedule answers for (`trainers/same_schedule.py`), or that say how
it is computed, not what."""


def _competition(c: Change) -> Iterable[str]:
    """Which tokens compete, by what and with which losses: of this run, whatever the checkpoint's were."""
    names = (PREFIX + item.name for item in fields(CompeteConfig) if item.name not in KEPT_OR_IDLE)
    told = [c.told(name) for name in names if c.differs(name)]
    if told and c.now.router == getattr(c.saved, "router", None) == "compete":
        yield f"{'; '.join(told)}: layers compete by the new arguments from iteration {c.iteration} on"


def _without_optimizer(c: Change) -> Iterable[str]:
    if c.now.no_load_optim:
        yield (
            f"--no-load-optim: the optimizer and the course of the learning rate begin anew at iteration {c.iteration}, "
            "warm-up included"
        )

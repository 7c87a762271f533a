"""What a family of models is: which arguments it can express, its tensors, and its configuration, in both directions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.forms import SAME, Form
from megatron_compete.checkpoint.families.requirements import Requirement
from megatron_compete.common.errors import CompeteError

EXPERTS = "mlp.experts.experts."
"""Where SequentialMLP and TEGroupedMLP both store experts (`sharded_state_dict` of either)."""


class Place(NamedTuple):
    """Where a tensor is stored: the slice of `key` that `at` indexes, whose leading axes have the sizes `stack`."""

    key: str
    at: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One tensor of Megatron's model, whatever the form in which a checkpoint has it.

    A slot has several names where Megatron's implementations differ: Transformer Engine stores the norm of a MoE layer
    as `pre_mlp_layernorm.weight`, the local one as `mlp.linear_fc1.layer_norm_weight`
    (upstream: `sharded_state_dict_keys_map` in gpt_layer_specs.py).
    """

    names: tuple[str, ...]
    """Inside the layer, or inside `EXPERTS` of the layer; whole keys where there is no layer."""
    layer: int | None = None
    expert: int | None = None

    def canonical(self, d: Dimensions) -> list[Place]:
        """Where Megatron's trainer stores it: one place for each name."""
        return [self._forms(name, d)[0] for name in self.names]

    def places(self, d: Dimensions) -> list[Place]:
        """Every place where a checkpoint may have it: layers stacked or apart, experts stacked or apart."""
        return [place for name in self.names for place in self._forms(name, d)]

    def _forms(self, name: str, d: Dimensions) -> list[Place]:
        if self.layer is None:
            return [Place(name)]
        whole, one = "decoder.layers.", f"decoder.layers.{self.layer}."
        if self.expert is None:
            stacked, apart = Place(whole + name, (self.layer,), (d.layers,)), [Place(one + name)]
        else:
            at, stack = (self.layer, self.expert), (d.layers, d.experts)
            stacked = Place(whole + EXPERTS + name, at, stack)
            apart = [Place(one + EXPERTS + name, at[1:], stack[1:]), Place(f"{one}{EXPERTS}{self.expert}.{name}")]
        return [stacked, *apart] if d.stacked else [*apart, stacked]


@dataclass(frozen=True)
class TensorRule:
    """One tensor of Megatron's and the Hugging Face tensors that it holds."""

    slot: Slot | None
    """None: Megatron has no such tensor; it is zeros of `shape` by the meaning of the arguments."""
    shape: tuple[int, ...]
    """Of Megatron's tensor, without layer and expert axes."""
    names: tuple[str, ...]
    """As in the hub's checkpoints of the architecture."""
    form: Form = SAME
    dtype: torch.dtype | None = None
    """Kept whatever the model's dtype; None is the model's."""

    @cached_property
    def hf_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the Hugging Face tensors, in the order of `names`."""
        return tuple(tuple(part.shape) for part in self.form.split(torch.empty(self.shape, device="meta")))


@dataclass(frozen=True)
class Family:
    """One architecture of Hugging Face's as Megatron's arguments, tensors and configuration."""

    name: str
    """As in --family; `model_type` of config.json."""
    title: str
    """As in messages."""
    architecture: str
    requirements: tuple[Requirement, ...]
    """Arguments under which Megatron's model is exactly one of this architecture."""
    tensors: Callable[[Dimensions], Iterator[TensorRule]]
    """Every tensor of the model, in the order in which they are written."""
    to_config: Callable[[Dimensions, Mapping[str, Any]], dict[str, Any]]
    """The architecture's fields of config.json, from Megatron's arguments."""
    to_arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Megatron's arguments, from a config.json with every default filled in."""
    caution: Callable[[Mapping[str, Any]], str | None] = lambda arguments: None
    """What a reader of the export should know, where there is something."""
    code: tuple[str, ...] = ()
    """Files of `custom_code` that go with an export: the architecture is not one of transformers'."""

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """Why a model trained with `arguments` is not one of this architecture; None where it is."""
        for requirement in self.requirements:
            if requirement.refuses(arguments):
                return f"{requirement.found(arguments)}, which {self.title} cannot represent: {requirement.reason}"
        return None

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise a `CompeteError` that names the first argument under which the model is not exactly one of these."""
        if problem := self.problem(arguments):
            raise CompeteError(f"trained with {problem}")

"""What a family of models is: which arguments it can express, its tensors, and its configuration, in both directions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.key_table import KeyTable, tensor_rules
from megatron_compete.checkpoint.families.requirements import Requirement
from megatron_compete.checkpoint.families.tensors import TensorRule
from megatron_compete.common.errors import CompeteError


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
    keys: KeyTable
    """Megatron's names of its tensors beside Hugging Face's."""
    to_config: Callable[[Dimensions, Mapping[str, Any]], dict[str, Any]]
    """The architecture's fields of config.json, from Megatron's arguments."""
    to_arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Megatron's arguments, from a config.json with every default filled in."""
    caution: Callable[[Mapping[str, Any]], str | None] = lambda arguments: None
    """What a reader of the export should know, where there is something."""
    aliases: tuple[str, ...] = ()
    """Other `model_type`s whose checkpoints are of this architecture, in its names and with its fields."""
    code: tuple[str, ...] = ()
    """Files of `custom_code` that go with an export: the architecture is not one of transformers'."""

    def tensors(self, d: Dimensions) -> Iterator[TensorRule]:
        """Every tensor of a model of these sizes, in the order in which they are written."""
        return tensor_rules(self.keys, d)

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

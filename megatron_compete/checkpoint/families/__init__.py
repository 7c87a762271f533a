"""Families of models that Megatron's arguments and Hugging Face's architectures both express, each in one file.

family.py        what a family is; Slot, TensorRule
dimensions.py    sizes from Megatron's arguments
forms.py         how one tensor lies in others: bijections
requirements.py  arguments that an architecture needs: the table of refusals
blocks.py        tensor rules of attention, MLP, experts
configs.py       fields of config.json that most architectures share, and reading one with a check
registry.py      all families, and which one a model is

A family states its tensors once. Export splits along its rules and import joins along the same ones, so that what went
through both is bit for bit the same.
"""

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family, Place, Slot, TensorRule
from megatron_compete.checkpoint.families.registry import FAMILIES, choose_family, family_of_config, read_config

__all__ = [
    "FAMILIES",
    "Dimensions",
    "Family",
    "Place",
    "Slot",
    "TensorRule",
    "choose_family",
    "family_of_config",
    "read_config",
]

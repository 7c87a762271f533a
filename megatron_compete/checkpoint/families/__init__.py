"""Families of models that Megatron's arguments and Hugging Face's architectures both express, each in one file.

family.py        what a family is
key_table.py     how a family's table of keys is written, and the rules that it stands for
tensors.py       one such rule: Megatron's tensor, where a checkpoint may have it, and Hugging Face's tensors in it
forms.py         how one tensor lies in others: bijections
dimensions.py    sizes from Megatron's arguments
requirements.py  arguments that an architecture needs: the table of refusals
configs.py       fields of config.json that most architectures share, and reading one with a check
registry.py      all families, and which one a model is
vision.py        sizes and settings of vision towers and projectors, whose tables are files as those of language models
llava.py         a tower, a projector and a language family as one model

A family states its tensors once, as a table of Megatron's keys beside Hugging Face's; `grep -r mlp.router.weight` here
shows what becomes of the router in each. Export splits along its lines and import joins along the same ones, so that
what went through both is bit for bit the same.
"""

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.registry import FAMILIES, choose_family, family_of_config, read_config
from megatron_compete.checkpoint.families.tensors import Slot, StoredSlice, TensorRule

__all__ = [
    "FAMILIES",
    "Dimensions",
    "Family",
    "Slot",
    "StoredSlice",
    "TensorRule",
    "choose_family",
    "family_of_config",
    "read_config",
]

"""Tiny models of transformers' real classes and texts for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from megatron_compete.audit.layers import find_layers
from megatron_compete.audit.model import Model, Source
from megatron_compete.audit.text import Text
from tests.checkpoint.hf_models import CONFIGS, DECODER, DENSE, VOCAB

OLMOE: dict[str, Any] = DECODER | {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 24}
FAMILIES = {name: config for name, config in CONFIGS.items() if name not in DENSE} | {"olmoe": OLMOE}
LENGTH = 16


def make(family: str, **changes: Any) -> Any:
    """A model with random weights, in evaluation mode."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**(FAMILIES[family] | changes)))
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def audited(module: Any) -> Model:
    """What the audit holds of a model."""
    return Model(Source(Path("tiny")), module, find_layers(module, "tiny"), torch.device("cpu"))


def tiny(family: str, **changes: Any) -> Model:
    """`make`, held."""
    return audited(make(family, **changes))


def text(sequences: int = 6, length: int = LENGTH, domains: int = 2) -> Text:
    """Random ids, the domains in turns; those of a later domain are larger."""
    generator = torch.Generator().manual_seed(5)
    domain_S = torch.arange(sequences) % domains
    ids_SL = torch.randint(0, VOCAB // domains, (sequences, length + 1), generator=generator)
    ids_SL += domain_S[:, None] * (VOCAB // domains)
    return Text(ids_SL, domain_S, [f"domain {number}" for number in range(domains)])


def dataset(prefix: Path, documents: int = 12, tokens: int = 40, most: int = VOCAB) -> str:
    """A Megatron dataset of random ids; returns its prefix."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(len(prefix.name))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for _ in range(documents):
        builder.add_document(generator.integers(0, most, tokens), [tokens])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)

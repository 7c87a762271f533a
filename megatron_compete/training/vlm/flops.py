"""Floating-point operations of a vision-language model's step, which Megatron's count of a GPT does not know.

A sample is counted with one picture of one tile: what a step really held is known to each rank alone.
"""

import argparse
import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import competing_layers
from megatron_compete.training.flops import Scoring, scoring_flops
from megatron_compete.upstream import wrap_symbol
from megatron_compete.vlm.config import PARTS, Part
from megatron_compete.vlm.parts import VisionLanguageConfig

BACKWARD = 2
"""A backward pass takes twice a forward pass: gradients of inputs and of weights."""


@contextlib.contextmanager
def counted_vision(config: VisionLanguageConfig) -> Iterator[None]:
    """Within it, Megatron's trainer counts tower, projector and decoder as they are."""

    def count(upstream: Any, args: argparse.Namespace, batch_size: int, *more: Any, **named: Any) -> float:
        decoder: float = upstream(_arguments_of_decoder(args, config), batch_size, *more, **named)
        decoder *= (1 + config.backward_products("language")) / (1 + BACKWARD)
        return decoder + batch_size * vision_flops(config)

    with wrap_symbol("megatron.training.training:num_floating_point_operations", count):
        yield


def vision_flops(config: VisionLanguageConfig) -> float:
    """Operations of tower and projector for one picture, forward and backward, without products for gradients that frozen
    parts do not need.

    A layer of width H with patches S costs 8 S H^2 for its four projections and 4 S^2 H for attention over all patches,
    besides its MLP; multiply and add are two operations. Norms and activations are left out, as in Megatron's count.
    """
    tower, projector, patches = config.tower, config.projector, config.tower_tokens
    hidden = tower.hidden_size
    attention = 8.0 * patches * hidden**2 + 4.0 * patches**2 * hidden
    layers = tower.num_layers * (attention + _chosen(tower) * _expert(tower, hidden, hidden, patches))
    embedding = 2.0 * config.patches * config.patch_values * hidden
    projected = _chosen(projector) * _expert(projector, hidden, config.transformer.hidden_size, config.image_embeddings)
    of_tower, of_projector = (1 + config.backward_products(part) for part in PARTS[:2])
    return of_tower * (layers + embedding) + of_projector * projected


def vision_scoring(config: VisionLanguageConfig, compete: CompeteConfig) -> Scoring:
    """Operations of each competing layer's scoring pass, in the order of their numbers."""
    tower, projector = config.tower, config.projector
    hidden, passes = tower.hidden_size, 1 + BACKWARD if compete.response_gradients == "all" else 1

    def scoring(args: argparse.Namespace, samples: float, tokens: float) -> np.ndarray:
        of_part: dict[Part, float] = {
            "vision": (tower.num_moe_experts or 0) * _expert(tower, hidden, hidden, samples * config.tower_tokens),
            "projector": (projector.num_moe_experts or 0)
            * _expert(projector, hidden, config.transformer.hidden_size, samples * config.image_embeddings),
            "language": 0.0,
        }
        if "language" in config.settings.experts_in:
            of_part["language"] = scoring_flops(args, tokens, kind=compete.kind)
        return np.array(
            [passes * of_part[part] for part in PARTS for _ in competing_layers(config.transformer_of(part))]
        )

    return scoring


def _chosen(config: TransformerConfig) -> int:
    """Experts that a token goes to; a dense MLP is one."""
    return config.moe_router_topk if config.num_moe_experts else 1


def _expert(config: TransformerConfig, inputs: int, outputs: int, tokens: float) -> float:
    """Two matrices, of which the first is from `inputs` to the width and the second to `outputs`."""
    width = config.moe_ffn_hidden_size if config.num_moe_experts else config.ffn_hidden_size
    return 2.0 * tokens * width * (inputs + outputs)


def _arguments_of_decoder(args: argparse.Namespace, config: VisionLanguageConfig) -> argparse.Namespace:
    if "language" in config.settings.experts_in:
        return args
    dense = copy.copy(args)
    dense.num_experts = None
    return dense

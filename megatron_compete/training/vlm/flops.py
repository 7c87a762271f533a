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
        if config.settings.freeze_language:
            decoder *= BACKWARD / (1 + BACKWARD)  # forward, and gradients of its inputs
        return decoder + batch_size * vision_flops(config)

    with wrap_symbol("megatron.training.training:num_floating_point_operations", count):
        yield


def vision_flops(config: VisionLanguageConfig) -> float:
    """Operations of tower and projector for one picture, forward and backward: what is frozen has no gradients of weights, and
    none of its inputs where all before it is frozen too.

    A layer of width H with patches S costs 8 S H^2 for its four projections and 4 S^2 H for attention over all patches,
    besides its MLP; multiply and add are two operations. Norms and activations are left out, as in Megatron's count.
    """
    tower, projector, patches = config.tower, config.projector, tower_tokens(config)
    hidden = tower.hidden_size
    attention = 8.0 * patches * hidden**2 + 4.0 * patches**2 * hidden
    layers = tower.num_layers * (attention + _chosen(tower) * _expert(tower, hidden, hidden, patches))
    embedding = 2.0 * _patches(config) * 3 * config.patch_dim**2 * hidden
    projected = _chosen(projector) * _expert(projector, hidden, config.transformer.hidden_size, config.image_embeddings)
    trains_tower, trains_projector = not config.settings.freeze_tower, not config.settings.freeze_projector
    return (1 + 2 * trains_tower) * (layers + embedding) + (1 + trains_projector + trains_tower) * projected


def vision_scoring(config: VisionLanguageConfig, compete: CompeteConfig) -> Scoring:
    """Operations of each competing layer's scoring pass, in the order of their numbers."""
    tower, projector = config.tower, config.projector
    hidden, passes = tower.hidden_size, 1 + BACKWARD if compete.response_gradients == "all" else 1

    def scoring(args: argparse.Namespace, samples: float, tokens: float) -> np.ndarray:
        of_part: dict[Part, float] = {
            "vision": (tower.num_moe_experts or 0) * _expert(tower, hidden, hidden, samples * tower_tokens(config)),
            "projector": (projector.num_moe_experts or 0)
            * _expert(projector, hidden, config.transformer.hidden_size, samples * config.image_embeddings),
            "language": 0.0,
        }
        if "language" in config.settings.experts_in:
            of_part["language"] = scoring_flops(args, tokens) + 0.0
        return np.array(
            [passes * of_part[part] for part in PARTS for _ in competing_layers(config.transformer_of(part))]
        )

    return scoring


def tower_tokens(config: VisionLanguageConfig) -> int:
    """Tokens of a tile in the tower: its patches, and a clip tower's class token."""
    return _patches(config) + (config.settings.model_type == "clip")


def _patches(config: VisionLanguageConfig) -> int:
    return config.img_h // config.patch_dim * (config.img_w // config.patch_dim)


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

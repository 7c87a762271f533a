"""Layers of tower and projector against dense tensors in fp64: experts with biases, whose output may be of other width."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import reference
from tests.moe.reference import Weights
from tests.ranks import run_rank
from tests.vlm.models import ALL_COMPETE, CLIP, SIGLIP, WINNERS, changed, configuration, initialize, relative

LENGTH, TILES = 16, 3
EXACT = 1e-5
COMPETING = {
    "response": ALL_COMPETE,
    "all responses": changed(ALL_COMPETE, response_gradients="all", response="l2", response_centering="batch"),
    "utility": CompeteConfig(rate=1.0, max_active_layers=3, kind="utility"),
    "missing utility": CompeteConfig(rate=1.0, max_active_layers=3, kind="utility", utility_gradient="missing"),
    "normal": CompeteConfig(rate=1e-3, warmup_steps=1, router_balance_coeff=0.5),
}


def layer_of(part: str, settings: Any, compete: CompeteConfig) -> Any:
    """One competing layer of a tower of 128, or the projector from there to 96."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_compete.moe.competition import Competition
    from megatron_compete.vlm.exchange import competing_parts
    from megatron_compete.vlm.projector import build_projector
    from megatron_compete.vlm.tower import moe_builder

    settings = changed(settings, hidden_size=128, projector_ffn_hidden_size=48)
    config = configuration(settings, hidden_size=96)
    exchanges = competing_parts(config, Competition.of_model(compete, config, lambda: 0))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if part == "projector":
        layer = build_projector(config.projector, 128, exchanges["projector"], groups).encoder
    else:
        layer = exchanges["vision"](moe_builder(config.tower))(config=config.tower, pg_collection=groups)
    layer.set_layer_number(3 if part == "projector" else 1)
    layer.router.bias = None
    random = torch.Generator().manual_seed(4)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return layer.train()


def weights_of(layer: Any, of: str) -> Weights:
    """The layer's weights, or their gradients (`of` is `grad`)."""

    def stacked(linear: str, kind: str) -> Tensor:
        parts = [getattr(getattr(expert, linear), kind) for expert in layer.experts.local_experts]
        return torch.stack(
            [torch.zeros_like(part) if getattr(part, of) is None else getattr(part, of) for part in parts]
        )

    return Weights(
        router=getattr(layer.router.weight, of), fc1=stacked("linear_fc1", "weight"), fc2=stacked("linear_fc2", "weight"),
        fc1_bias=stacked("linear_fc1", "bias"), fc2_bias=stacked("linear_fc2", "bias"),
        activation=layer.experts.config.activation_func,
    )  # fmt: skip


def differences(part: str, settings: Any, kind: str, padded: int) -> dict[str, float]:
    """Largest differences to the reference in units of the largest values, by tensor."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    initialize()
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1.0))
    compete = COMPETING[kind]
    layer = layer_of(part, settings, compete)
    random = torch.Generator().manual_seed(9)
    tokens = torch.randn(LENGTH, TILES, 128, generator=random).requires_grad_()
    cotangents = torch.randn(LENGTH, TILES, 96 if part == "projector" else 128, generator=random)
    padding = torch.zeros(TILES, LENGTH, dtype=torch.bool)
    padding[-1, LENGTH - padded :] = True
    output, _ = layer(tokens, padding_mask=padding)
    (output * cotangents).sum().backward()

    weights = weights_of(layer, "data").double()
    tokens_TH = tokens.detach().double().reshape(-1, 128).requires_grad_()
    steps = {"utility": reference.utility_step, "response": reference.competing_step}
    step = reference.normal_step if kind == "normal" else steps[compete.kind]
    expected, loss, _ = step(tokens_TH, weights, WINNERS, compete, ~padding.T.reshape(-1))
    ((expected * cotangents.reshape(expected.shape)).sum() + loss).backward()

    assert tokens.grad is not None and tokens_TH.grad is not None
    ours, theirs = weights_of(layer, "grad"), weights.grads()
    pairs = {"output": (output, expected), "tokens": (tokens.grad, tokens_TH.grad)}
    for name in ("router", "fc1", "fc2", "fc1_bias", "fc2_bias"):
        pairs[name] = getattr(ours, name), getattr(theirs, name)
    return {name: relative(actual.reshape(exact.shape), exact) for name, (actual, exact) in pairs.items()}


@pytest.mark.parametrize("kind", COMPETING)
@pytest.mark.parametrize("part, settings", [("vision", SIGLIP), ("vision", CLIP), ("projector", SIGLIP)],
                         ids=["siglip", "clip", "projector"])  # fmt: skip
def test_a_layer_equals_the_dense_reference(part: str, settings: Any, kind: str) -> None:
    found = run_rank(differences, part, settings, kind, 5)
    assert {name: off for name, off in found.items() if not off <= EXACT} == {}


def scorers(part: str) -> tuple[str, float]:
    """The scorer of `auto`, and the largest difference of its scores to those of Megatron's modules."""
    from megatron_compete.moe.scoring import choose_scorer, score_tokens
    from megatron_compete.routing.responses import softplus_response

    initialize()
    layer = layer_of(part, SIGLIP, ALL_COMPETE)
    tokens = torch.randn(9, 128, generator=torch.Generator().manual_seed(2))
    chosen = [
        choose_scorer(choice, layer.config, layer.experts, softplus_response, layer.groups, tokens)
        for choice in ("auto", "plain")
    ]
    ours, modules = (score_tokens(tokens, scorer, layer.groups, 4) for scorer in chosen)
    return type(chosen[0]).__name__, float((ours - modules).abs().max())


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_experts_with_biases_are_scored_by_their_weights_bit_for_bit(part: str) -> None:
    assert run_rank(scorers, part) == ("DirectScorer", 0.0)

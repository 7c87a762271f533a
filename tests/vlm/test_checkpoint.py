"""A model is what it was after it was saved and loaded, also in another layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import run_rank, run_ranks
from tests.vlm.models import CLIP, SIGLIP, changed, competing_model, configuration, initialize, whole_name

EVERYWHERE = changed(SIGLIP, experts_in=("vision", "projector", "language"))


def built(settings: Any, pp: int, ep: int) -> Any:
    initialize(pp, ep)
    return competing_model(configuration(settings, pipeline_model_parallel_size=pp, expert_model_parallel_size=ep))


def weights(model: Any) -> dict[str, Tensor]:
    return {whole_name(name, model): parameter.detach().clone() for name, parameter in model.named_parameters()}


def saved(settings: Any, folder: str, pp: int, ep: int) -> tuple[dict[str, Tensor], set[str]]:
    from megatron.core import dist_checkpointing

    model = built(settings, pp, ep)
    state = model.sharded_state_dict()
    dist_checkpointing.save(state, folder)
    return weights(model), {tensor.key for tensor in state.values() if hasattr(tensor, "global_shape")}


def loaded(settings: Any, folder: str, pp: int, ep: int) -> dict[str, Tensor]:
    from megatron.core import dist_checkpointing

    model = built(settings, pp, ep)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(dist_checkpointing.load(model.sharded_state_dict(), folder))
    return weights(model)


OTHER: dict[str, tuple[Any, tuple[int, int], tuple[int, int]]] = {
    "same": (CLIP, (1, 1), (1, 1)),
    "experts apart": (EVERYWHERE, (1, 1), (1, 2)),
    "experts together": (EVERYWHERE, (1, 2), (1, 1)),
    "stages": (EVERYWHERE, (2, 1), (1, 2)),
    "dense": (changed(SIGLIP, experts_in=("language",)), (2, 1), (1, 1)),
}
"""Settings; pipeline and expert parallel size when it is saved, and when it is loaded."""
SLOW = ("same", "dense", "experts together")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OTHER]
)
def test_another_layout_has_the_same_weights(name: str, tmp_path: Path) -> None:
    settings, (pp, ep), (pp_then, ep_then) = OTHER[name]
    written, read = {}, {}
    for here, _ in run_ranks(pp * ep, saved, settings, str(tmp_path), pp, ep):
        written |= here
    for here in run_ranks(pp_then * ep_then, loaded, settings, str(tmp_path), pp_then, ep_then):
        read |= here
    assert written.keys() == read.keys() and len(written) > 50
    assert [name for name, tensor in written.items() if not torch.equal(tensor, read[name])] == []


def test_keys_are_llavas_and_megatrons_experts(tmp_path: Path) -> None:
    _, keys = run_rank(saved, SIGLIP, str(tmp_path), 1, 1)
    experts = {f"experts.experts.linear_{fc}.{kind}" for fc in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert {f"vision_projection.encoder.{name}" for name in experts | {"router.weight"}} <= keys
    assert {f"vision_model.decoder.layers.mlp.{name}" for name in experts | {"router.weight"}} <= keys
    norms = {"self_attention.linear_qkv.layer_norm_weight", "pre_mlp_layernorm.bias"}  # Transformer Engine's names
    assert {f"vision_model.decoder.layers.{name}" for name in norms} <= keys
    assert {"vision_model.conv1.bias", "vision_model.position_embeddings.weight"} <= keys
    assert not [key for key in keys if "router.bias" in key or "ln_post" in key or "input_layernorm" in key]


def test_norms_of_dense_towers_have_transformer_engines_names(tmp_path: Path) -> None:
    _, keys = run_rank(saved, changed(SIGLIP, experts_in=("projector",)), str(tmp_path), 1, 1)
    assert "vision_model.decoder.layers.mlp.linear_fc1.layer_norm_weight" in keys
    assert not [key for key in keys if "vision_model" in key and "layernorm" in key]

"""The tower against transformers' towers, whose weights it is given here by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import run_rank
from tests.vlm.models import CLIP, PATCH, PATCHES, SIDE, SIGLIP, changed, configuration, initialize

EXACT = 1e-5


def hugging_face_tower(settings: Any, side: int) -> Any:
    """A random tower with one layer more than is taken."""
    import transformers

    kinds = {"siglip": "Siglip", "clip": "CLIP"}
    kind = kinds[settings.model_type]
    config = getattr(transformers, f"{kind}VisionConfig")(
        hidden_size=settings.hidden_size, intermediate_size=settings.ffn_hidden_size, image_size=side, patch_size=PATCH,
        num_hidden_layers=settings.num_layers + 1, num_attention_heads=settings.num_attention_heads,
    )  # fmt: skip
    torch.manual_seed(5)
    tower = getattr(transformers, f"{kind}VisionModel")(config).eval()
    for parameter in tower.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return tower


def megatron_weights(tower: Any, settings: Any) -> dict[str, Tensor]:
    """The same weights by Megatron's names."""
    theirs = {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    ours = {"conv1.weight": theirs["embeddings.patch_embedding.weight"]}
    ours["position_embeddings.weight"] = theirs["embeddings.position_embedding.weight"]
    if settings.model_type == "siglip":
        ours["conv1.bias"] = theirs["embeddings.patch_embedding.bias"]
    else:
        ours["class_token"] = theirs["embeddings.class_embedding"].view(1, 1, -1)
        ours |= {f"ln_pre.{kind}": theirs[f"pre_layrnorm.{kind}"] for kind in ("weight", "bias")}
    names = {"input_layernorm": "layer_norm1", "self_attention.linear_proj": "self_attn.out_proj",
             "pre_mlp_layernorm": "layer_norm2", "mlp.linear_fc1": "mlp.fc1", "mlp.linear_fc2": "mlp.fc2"}  # fmt: skip
    for layer in range(settings.num_layers):
        here, there = f"decoder.layers.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            ours |= {f"{here}{name}.{kind}": theirs[f"{there}{other}.{kind}"] for name, other in names.items()}
            qkv = torch.stack([theirs[f"{there}self_attn.{p}_proj.{kind}"] for p in "qkv"])
            heads = qkv.view(3, settings.num_attention_heads, -1, *qkv.shape[2:])  # Megatron's rows: head, then q, k, v
            ours[f"{here}self_attention.linear_qkv.{kind}"] = heads.transpose(0, 1).reshape(-1, *qkv.shape[2:])
    return ours


def largest_difference(settings: Any, side: int) -> tuple[float, float, tuple[int, ...]]:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_compete.vlm.tower import VisionTower, tower_layer_spec

    initialize()
    config = configuration(settings)
    tower = VisionTower(
        config.tower, tower_layer_spec(config.tower, None), side, side, PATCH,
        ProcessGroupCollection.use_mpu_process_groups(),
    )  # fmt: skip
    theirs = hugging_face_tower(settings, side)
    missing, unexpected = tower.load_state_dict(megatron_weights(theirs, settings), strict=False)
    assert [name for name in missing if "_extra_state" not in name] == [] and unexpected == []
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
        actual = tower.eval()(pixels)
    return float((actual - expected).abs().max()), float(expected.abs().max()), tuple(actual.shape)


@pytest.mark.parametrize("side", [SIDE, SIDE + 5])
@pytest.mark.parametrize("settings", [SIGLIP, CLIP], ids=["siglip", "clip"])
def test_the_states_before_the_last_layer_are_transformers(settings: Any, side: int) -> None:
    """Also where whole patches do not fill a picture, as SigLIP's of 14 pixels do not fill 384."""
    dense = changed(settings, experts_in=("projector",))
    difference, scale, shape = run_rank(largest_difference, dense, side)
    assert shape == (3, PATCHES + (settings.model_type == "clip"), 16)
    assert difference <= EXACT * scale and scale > 1


def initial_weights(settings: Any) -> dict[str, float]:
    from megatron_compete.vlm.exchange import stock_parts
    from megatron_compete.vlm.model import build_model

    initialize()
    config = configuration(settings)
    model = build_model(config, stock_parts(config), vocab_size=64, seq_length=8, image_token_id=3)
    stds = {name: float(parameter.std()) for name, parameter in model.vision_model.named_parameters()}
    assert "ln_post.weight" not in stds
    return stds


def test_positions_begin_small_beside_patches() -> None:
    stds = run_rank(initial_weights, CLIP)
    assert 0.01 < stds["position_embeddings.weight"] < 0.03 and 0.005 < stds["class_token"] < 0.04
    assert 0.15 < stds["decoder.layers.0.mlp.router.weight"] < 0.25

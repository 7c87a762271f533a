"""The vision tower: Megatron's CLIP and SigLIP towers with what LLaVA takes of them, and perhaps with experts."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.models.vision.clip_vit_model import CLIPViTModel
from megatron.core.models.vision.vit_layer_specs import (
    get_vit_layer_with_local_spec,
    get_vit_layer_with_transformer_engine_spec,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.biased_experts import with_biases
from megatron_compete.moe.specs import Exchange

POSITION_STD = 0.02
"""Of initial position embeddings and class token, as CLIP has it. Megatron's are of 1, beside which a patch is not seen."""


IN_CHECKPOINTS = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
OF_DENSE_LAYERS = IN_CHECKPOINTS | {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
"""Names in checkpoints of local modules' norms: Transformer Engine's, which has them within linear layers, so that either
loads the other's. Upstream has this for the language model alone."""


def tower_layer_spec(config: TransformerConfig, exchange: Exchange | None) -> ModuleSpec:
    """Megatron's spec of a tower's layer, which sees all patches; its MLP is what `exchange` makes of a `MoELayer` where the
    tower has experts; None for one without."""
    by_te = uses_transformer_engine(config)
    spec = get_vit_layer_with_transformer_engine_spec() if by_te else get_vit_layer_with_local_spec()
    if not by_te:
        spec.submodules.sharded_state_dict_keys_map = IN_CHECKPOINTS if config.num_moe_experts else OF_DENSE_LAYERS
    if config.num_moe_experts:
        assert exchange is not None
        spec.submodules.mlp = exchange(moe_builder(config))
        if by_te:  # the dense spec's norm is within its linear layer
            spec.submodules.pre_mlp_layernorm = norm_of(config)
    return spec


def moe_builder(config: TransformerConfig) -> functools.partial:
    """Megatron's builder of a `MoELayer` for these settings, whose experts have biases."""
    builder: Any = get_moe_module_spec(
        use_te=uses_transformer_engine(config),
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
    )
    return functools.partial(builder.func, submodules=with_biases(builder.keywords["submodules"]))


def uses_transformer_engine(config: TransformerConfig) -> bool:
    """Whether modules are Transformer Engine's."""
    return bool(config.transformer_impl == "transformer_engine")


def norm_of(config: TransformerConfig) -> Callable[..., Any]:
    """A tower's layer norm. Upstream's default without Transformer Engine is torch's, which takes no TransformerConfig."""
    if not uses_transformer_engine(config):
        return WrappedTorchNorm
    from megatron.core.extensions.transformer_engine import TENorm

    norm: Callable[..., Any] = TENorm
    return norm


class VisionTower(CLIPViTModel):
    """Megatron's tower without the norm after its last layer: LLaVA takes the states before a trained tower's last layer.

    Args:
        config: with `vision_model_type`.
        spec: of a layer.
        img_h, img_w: of a tile, in pixels. What is left of a row or column of whole patches at the right and below is not
            looked at, as in transformers' towers: 6 of SigLIP-SO400M's 384 pixels with patches of 14.
        patch_dim: side of a patch, in pixels.
        groups: the model's.
    """

    def __init__(
        self,
        config: TransformerConfig,
        spec: ModuleSpec,
        img_h: int,
        img_w: int,
        patch_dim: int,
        groups: ProcessGroupCollection,
    ) -> None:
        kind, norm = config.vision_model_type, norm_of(config)
        super().__init__(
            config, spec, ln_pre_impl=norm, ln_post_impl=norm, add_class_token=kind == "clip",
            class_token_len=1 if kind == "clip" else 0, patch_dim=patch_dim, img_h=img_h - img_h % patch_dim,
            img_w=img_w - img_w % patch_dim, model_subtype=kind, pg_collection=groups,
        )  # fmt: skip
        self.img_h, self.img_w = img_h, img_w
        self.ln_post = None
        self._padding_mask: Tensor | None = None
        self.decoder.register_forward_pre_hook(self._with_padding, with_kwargs=True)
        if config.perform_initialization:
            torch.nn.init.normal_(self.position_embeddings.weight, std=POSITION_STD)
            if self.add_class_token:
                torch.nn.init.normal_(self.class_token, std=POSITION_STD)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, padding_mask: Tensor | None = None) -> Tensor:
        """States [tiles, patches, H] of tiles [tiles, 3, img_h, img_w].

        Args:
            padding_mask: bool [tiles, patches], True for patches that no router counts; None for none.
        """
        self._padding_mask = padding_mask
        try:
            states: Tensor = super().forward(x, attention_mask)
        finally:
            self._padding_mask = None
        return states

    def _with_padding(self, block: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the layers are called with, and the mask that Megatron's tower does not hand on."""
        return args, kwargs | {"padding_mask": self._padding_mask}

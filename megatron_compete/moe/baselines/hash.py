"""Hash routing in Megatron: a router that reads token ids, and how the ids come to it.

Megatron's MoE layers see hidden states alone. The model's embedding is given the ids, so a hook there remembers those of
the forward pass in progress. Without pipeline stages a microbatch's backward pass, and with it every recomputed layer,
comes before the next one's forward pass; evaluation and probes pass by the same embedding.
"""

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.routing.baselines.hash import hash_table, hash_weights


class TokenIds:
    """The ids [B, S] that a model's embedding was last given."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None

    def remember(self, embedding: torch.nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A forward pre-hook of Megatron's `LanguageModelEmbedding`."""
        self.ids = keywords["input_ids"] if "input_ids" in keywords else args[0]


class HashRouter(TopKRouter):
    """The K experts of a token are those that a table names for its id, each weighing 1/K times
    `--moe-router-topk-scaling-factor`. It has no parameter and no logits, and the layer's input gets no gradient through it.

    `give_token_ids` makes the table once the model is built. It is in no checkpoint: `--seed` and the layer's number say it.
    """

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)  # draws a weight: experts start as under other routers
        self.weight = None
        self.bias = None
        self.token_ids: TokenIds | None = None
        self.table_VK: Tensor | None = None

    def forward(self, input: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `TopKRouter.forward`: router inputs [S, B, H] to weights and routing map, both [T, E]."""
        ids_T = self._ids(input)
        assert self.table_VK is not None
        if self.table_VK.device != ids_T.device:
            self.table_VK = self.table_VK.to(ids_T.device)
        weights_TE, chosen_TE = hash_weights(ids_T, self.table_VK, int(self.config.num_moe_experts or 0))
        dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(self.config.moe_router_dtype or "", input.dtype)
        scale = self.config.moe_router_topk_scaling_factor or 1.0
        return (scale * weights_TE).to(dtype), chosen_TE

    def _ids(self, input: Tensor) -> Tensor:
        """The ids of the tokens that this rank holds, in the order of its rows [T]."""
        ids = None if self.token_ids is None else self.token_ids.ids
        if ids is None:
            raise CompeteError(
                "--router hash was told no token ids: call megatron_compete.moe.baselines.hash.give_token_ids(model, "
                "seed) on the model's chunks once they are built"
            )
        ids_SB = ids.t()
        if self.config.sequence_parallel:
            ids_SB = ids_SB.chunk(self.tp_group.size())[self.tp_group.rank()]
        if ids_SB.shape != input.shape[:2]:
            raise CompeteError(
                f"--router hash: layer {self.layer_number} routes tokens of shape {tuple(input.shape[:2])}, and the "
                f"model was given ids of shape {tuple(ids_SB.shape)}"
            )
        return ids_SB.reshape(-1)


def give_token_ids(model: list[Any], seed: int) -> list[Any]:
    """Make the tables of a model's hash routers, and have its embedding tell them the ids; a hook for `pre_wrap_hooks`.

    Args:
        model: the built chunks of a GPTModel without pipeline parallelism, hence one.
        seed: `--seed`, the same on all ranks.
    """
    for chunk in model:
        ids = TokenIds()
        chunk.embedding.register_forward_pre_hook(ids.remember, with_kwargs=True)
        for router in (module for module in chunk.modules() if isinstance(module, HashRouter)):
            router.token_ids = ids
            router.table_VK = hash_table(
                chunk.embedding.vocab_size,
                int(router.config.num_moe_experts or 0),
                router.topk,
                seed=seed,
                layer_number=int(router.layer_number or 0),
            )
    return model

"""Context parallelism on a CPU: Megatron's own attention, which has none, over keys and values of all ranks.

Transformer Engine's attention exchanges them in pieces while it computes. Here they are gathered first: the same sums over
the same keys, with the memory of a whole sequence.
"""

import copy
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def positions(rank: int, size: int, length: int) -> Tensor:
    """Places in the sequence of a rank's `length` tokens: chunks `rank` and `2 * size - 1 - rank` of `2 * size`, so that
    causal work is even (upstream: `get_batch_on_this_cp_rank`)."""
    half = length // 2
    return torch.cat([torch.arange(chunk * half, (chunk + 1) * half) for chunk in (rank, 2 * size - 1 - rank)])


class ContextParallelAttention(DotProductAttention):
    """`DotProductAttention` whose queries are this rank's and whose keys and values are those of the whole sequence.

    Without context parallelism it is Megatron's, untouched. Arguments are its own.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **keywords: Any) -> None:
        size = config.context_parallel_size
        if size > 1:  # upstream asserts that there is none
            config = copy.copy(config)
            config.context_parallel_size = 1
        super().__init__(config, *args, **keywords)
        self.cp_group = self.pg_collection.cp if size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        *args: Any,
        **keywords: Any,
    ) -> Tensor:
        """As upstream: queries, keys and values [S, B, heads, channels] of this rank to its context [S, B, H]."""
        if self.cp_group is not None:
            rank, size, length = self.cp_group.rank(), self.cp_group.size(), query.shape[0]
            if (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal:
                keys = torch.arange(size * length, device=query.device)
                attention_mask = (keys > positions(rank, size, length).to(query.device).unsqueeze(1))[None, None]
            key, value = self._whole(key), self._whole(value)
        return super().forward(query, key, value, attention_mask, attn_mask_type, *args, **keywords)

    def _whole(self, part: Tensor) -> Tensor:
        """All ranks' tokens in the order of the sequence; their gradients are summed over the ranks' queries."""
        assert self.cp_group is not None
        size, length = self.cp_group.size(), part.shape[0]
        gathered = gather_from_sequence_parallel_region(part.contiguous(), group=self.cp_group)
        order = torch.cat([positions(rank, size, length) for rank in range(size)])
        return gathered[order.argsort().to(part.device)]

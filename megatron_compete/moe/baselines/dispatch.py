"""All-to-all dispatch of tokens that take any number of experts.

Megatron's dispatcher takes a dropless routing map to hold exactly K experts a token: T K rows leave a rank, and
`permute` cuts at that number whatever the map says. Here the rows are counted from the map. Splits, sorting and
combine are Megatron's; those are computed from the map already.
"""

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
    MoETokenDispatcher,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class VariableAlltoAllDispatcher(MoEAlltoAllTokenDispatcher):
    """Megatron's all-to-all dispatcher for a routing map with any number of experts per token, none included."""

    def preprocess(self, routing_map: Tensor) -> Tensor:
        """As upstream's: tokens per local expert from the routing map [T, E], and the splits on the side.

        The number of rows is needed on the host before the first permutation, fused or not; it travels with the other
        metadata, as upstream lets it where tokens are dropped.
        """
        tokens_per_local_expert = super().preprocess(routing_map)
        self.num_out_tokens = routing_map.sum()
        self._maybe_update_cuda_sync_point("before_permutation_1")
        return tokens_per_local_expert


def variable_dispatcher(
    num_local_experts: int,
    local_expert_indices: list[int],
    config: TransformerConfig,
    pg_collection: ProcessGroupCollection,
) -> MoETokenDispatcher:
    """The dispatcher of `--moe-token-dispatcher-type` for any number of experts per token; arguments are Megatron's.

    The all-gather dispatcher counts rows by itself. The flex dispatcher cannot (`check_baseline` refuses it).
    """
    kinds = {"alltoall": VariableAlltoAllDispatcher, "allgather": MoEAllGatherTokenDispatcher}
    kind = kinds[config.moe_token_dispatcher_type]
    return kind(num_local_experts, local_expert_indices, config=config, pg_collection=pg_collection)

"""The MoE layer of routers that give a token more or fewer than K experts."""

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.moe.baselines.dispatch import variable_dispatcher


class VariableMoELayer(MoELayer):
    """Megatron's `MoELayer` with a dispatcher that counts a token's experts instead of taking them to be K.

    The arguments are `MoELayer`'s.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MoESubmodules | None = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        name: str | None = None,
    ) -> None:
        groups = pg_collection or get_default_pg_collection()
        super().__init__(config, submodules, layer_number, groups, is_mtp_layer, name)
        self.token_dispatcher = variable_dispatcher(
            self.num_local_experts, self.local_expert_indices, config=config, pg_collection=groups
        )
        if self.shared_expert_overlap:
            self.token_dispatcher.set_shared_experts(self.shared_experts)

"""A router that stays as it was initialised: Megatron's own, whose weight never changes."""

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.moe.baselines.config import BaselineConfig


class FrozenRouter(TopKRouter):
    """`TopKRouter` whose weight and bias take no gradient, so that data parallelism and the optimizer pass them by.

    They are initialised and saved as Megatron's. Hidden states still get the gradient of the weights of a token's experts.
    """

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
        *,
        settings: BaselineConfig,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

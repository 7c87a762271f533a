"""The dispatcher of competing steps: it brings back one row per (token, winner), before anything is summed.

The flex dispatchers (DeepEP, HybridEP, NCCL-EP) sum a token's rows inside their kernels, and under fused permutation
(Transformer Engine) `reversed_local_input_permutation_mapping` is not a list of token indices. So it is all-to-all and
unfused, whatever normal steps use; dropless, and without rows that pad an expert's tokens for quantisation.
"""

import contextlib
import copy
import types
from collections.abc import Iterator

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.moe.sample import AllTokens, TokenSample


def row_config(config: TransformerConfig, sampled: bool = False) -> TransformerConfig:
    """A layer's settings as they are on a competing step, for the dispatcher and for the experts behind it.

    Args:
        sampled: tokens that do not compete are among the others, and have no row where the router dropped them: the
            dispatcher counts rows, as it does where it knows of a capacity.
    """
    config = copy.copy(config)
    config.moe_token_dispatcher_type = "alltoall"
    config.moe_permute_fusion = False
    config.moe_pad_expert_input_to_capacity = False
    if not sampled:
        config.moe_expert_capacity_factor = None
    config.moe_router_padding_for_quantization = config.moe_router_padding_for_fp8 = False
    config.cuda_graph_impl = "none"  # a competing layer runs eagerly
    return config


class RowDispatcher(MoEAlltoAllTokenDispatcher):
    """Megatron's all-to-all dispatcher without its last step, the sum over a token's rows.

    Args:
        config: the layer's own settings. The other arguments are `MoEAlltoAllTokenDispatcher`'s.
        sampled: whether tokens that do not compete come along.
    """

    def __init__(
        self,
        num_local_experts: int,
        local_expert_indices: list[int],
        config: TransformerConfig,
        groups: ProcessGroupCollection,
        sampled: bool = False,
    ) -> None:
        rows = row_config(config, sampled)
        super().__init__(num_local_experts, local_expert_indices, config=rows, pg_collection=groups)
        of_flex = config.moe_token_dispatcher_type == "flex"
        self._input_is_freed = of_flex and config.overlap_moe_expert_parallel_comm and num_local_experts == 1
        if of_flex:
            # Megatron's EP-overlap schedule hands a flex dispatcher the tensors of its nodes (upstream:
            # `gpt/fine_grained_callables.py`); this one is given them as arguments, too, and uses those
            self._comm_manager = types.SimpleNamespace(get_number_of_tokens_per_expert=lambda: self.tokens_per_expert)

    def dispatch_postprocess(self, global_input_tokens: Tensor, global_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As upstream: received tokens in the order of this rank's experts, their counts, and probabilities.

        With one expert there is nothing to sort, and the experts' input is what was received. The EP-overlap schedule
        frees that after the experts where it takes the dispatcher to be DeepEP's (`models/common/utils.py`).
        """
        if self._input_is_freed:
            global_input_tokens = global_input_tokens.clone()
        return super().dispatch_postprocess(global_input_tokens, global_probs)

    def rows_by_token(self, rows: Tensor, num_winners: int, sample: AllTokens) -> tuple[Tensor, Tensor | None]:
        """Rows as they come back, by expert and then token, to those of each competing token, and the others' sums.

        Args:
            rows: [R, H]; R = N * K where all tokens compete, else other tokens have rows too, weighted by the router.
            num_winners: K, of each of the N competing tokens.
        Returns:
            [N, K, H] in token order, experts ascending; and [T, H], the outputs of the tokens that do not compete, at
            their places; None where all do.
        """
        token_of_row = self.reversed_local_input_permutation_mapping
        if not isinstance(sample, TokenSample):
            by_token = rows.index_select(0, token_of_row.argsort(stable=True))
            return by_token.view(-1, num_winners, rows.shape[-1]), None
        num_tokens, num_competing = sample.mask_T.shape[0], sample.tokens_N.shape[0]
        ranks = torch.arange(num_competing, device=rows.device)
        order_T = token_of_row.new_full((num_tokens,), num_competing).index_copy(0, sample.tokens_N, ranks)
        competing = order_T[token_of_row].argsort(stable=True)[: num_competing * num_winners]
        others_TH = rows.new_zeros(num_tokens, rows.shape[-1]).index_add(0, token_of_row, rows)
        by_token = rows.index_select(0, competing)
        return by_token.view(num_competing, num_winners, rows.shape[-1]), others_TH


@contextlib.contextmanager
def experts_of_rows(experts: torch.nn.Module, config: TransformerConfig) -> Iterator[None]:
    """Megatron's experts get their tokens from the row dispatcher: under FP8 they pad by themselves.

    They ask their settings whether router or dispatcher has padded already (upstream: `skip_routed_expert_padding`).

    Args:
        config: the row dispatcher's.
    """
    own = experts.config
    experts.config = config
    try:
        yield
    finally:
        experts.config = own

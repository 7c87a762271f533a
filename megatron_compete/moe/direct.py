"""Scoring by matrix products on the experts' weights, without calling Megatron's modules.

Where few tokens are scored, or experts are narrow, the modules cost as much as their products: autograd functions,
probabilities of one, and outputs in memory that is fresh for every expert. Here one expert after the other writes into
the same buffers. Operations and their order are those of Megatron's `MLP.forward`, so that scores are the same bits.

G tokens of a chunk over the expert group, P of the ranks at this rank's expert tensor parallel position, F an expert's
width (of this rank's shard), H its input's and output's.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_compete.moe.biased_experts import OwnedRowLinear
from megatron_compete.moe.expert_group import ExpertGroups
from megatron_compete.moe.expert_weights import await_parameters, expert_parameters
from megatron_compete.moe.kernels.coverage import NotCovered, check_gate


class DirectScorer:
    """Runs this rank's experts by torch's matrix products; a `Scorer` of `moe/scoring.py`.

    Args:
        config: Megatron's, of the layer.
        experts: Megatron's module, covered as `covers` says.
        reduction: of raw outputs [P, H] to scalars [P].
        groups: the layer's.
    """

    def __init__(
        self, config: TransformerConfig, experts: Any, reduction: Callable[..., Tensor], groups: ExpertGroups
    ) -> None:
        self.config = config
        self.experts = experts
        self.reduction = reduction
        self.groups = groups

    def start(self) -> Callable[..., Tensor]:
        """Begin a pass: the weights are whole."""
        await_parameters(self.experts)
        return self._score_chunk

    def _score_chunk(self, tokens_GH: Tensor, *vectors_PH: Tensor) -> Tensor:
        scores = []
        hidden = outputs_GH = None
        for expert, (fc1, fc2) in zip(self.experts.local_experts, expert_parameters(self.experts)):
            hidden = torch.mm(tokens_GH, fc1.t(), out=hidden)
            if (bias := expert.linear_fc1.bias) is not None:
                hidden += bias
            outputs_GH = torch.mm(self._activate(hidden), fc2.t(), out=outputs_GH)
            if (bias := expert.linear_fc2.bias) is not None:
                outputs_GH += bias
            scores.append(self.reduction(self.groups.sum_shards(outputs_GH), *vectors_PH))
        return torch.stack(scores, dim=-1)

    def _activate(self, hidden: Tensor) -> Tensor:
        """act(h), or act(gate) * up of [gate, up]; [G, F]."""
        if not self.config.gated_linear_unit:
            return self.config.activation_func(hidden)
        gate_GF, up_GF = hidden.chunk(2, dim=-1)
        return self.config.activation_func(gate_GF) * up_GF


def covers(config: TransformerConfig, experts: Any) -> bool:
    """Whether these experts are `MLP`s whose operations are known: Megatron's own linear layers, with whole weights.

    Transformer Engine's modules are its own: they may hold weights in FP8, and a device has the fused kernels.
    """
    if type(experts) is not SequentialMLP or config.use_te_activation_func:
        return False
    try:
        if config.gated_linear_unit:
            check_gate(config)
    except NotCovered:
        return False
    return all(
        type(mlp.linear_fc1) is ColumnParallelLinear
        and type(mlp.linear_fc2) in (RowParallelLinear, OwnedRowLinear)
        and all(
            type(values) in (Tensor, nn.Parameter) and values.dtype == config.params_dtype
            for linear in (mlp.linear_fc1, mlp.linear_fc2)
            for values in linear.parameters()
        )
        for mlp in experts.local_experts
    )

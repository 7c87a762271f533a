"""Which function makes a router's scores of its logits, read off what it did, and the order in which it ranks experts.

T tokens, E experts, K experts of a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.audit.layers import Call, MoeLayer
from megatron_compete.common.errors import CompeteError

FUNCTIONS = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: F.softplus(logits).sqrt(),
    "probabilities": lambda logits: logits,
}
"""Of fp32 logits; the last for routers whose output holds scores already."""

TOLERANCE = 0.03
"""Of a weight: half precision rounds its logit and itself."""


def score_function(call: Call, where: str) -> str:
    """The name in `FUNCTIONS` whose scores of the chosen experts are the router's weights, up to a factor.

    A router either brings a token's weights to a fixed sum, or scales its scores by a constant: of each token, or of all
    tokens, weights over scores is one number.

    Raises:
        CompeteError: none fits.
    """
    weights_TK = call.weights_TK.float()
    errors = {}
    for name, function in FUNCTIONS.items():
        scores_TK = function(call.logits_TE.float()).gather(1, call.choices_TK)
        shares_TK = scores_TK / scores_TK.sum(-1, keepdim=True)
        errors[name] = min(_misfit(weights_TK, scores_TK), _misfit(weights_TK, shares_TK))
    best = min(errors, key=lambda name: errors[name])
    if not errors[best] <= TOLERANCE:
        raise CompeteError(
            f"{where}: its weights are no softmax, sigmoid or sqrtsoftplus of its logits: this router is not known"
        )
    return best


class ScoreFunctions:
    """The function of each layer's router, found at its first call."""

    def __init__(self) -> None:
        self._found: dict[MoeLayer, str] = {}

    def of(self, layer: MoeLayer, call: Call) -> str:
        """Its name in `FUNCTIONS`."""
        if layer not in self._found:
            self._found[layer] = score_function(call, layer.name)
        return self._found[layer]


def _misfit(weights_TK: Tensor, expected_TK: Tensor) -> float:
    """Median error of the weights where they are `expected` up to one factor, as a share of a token's largest weight.

    The median: experts whose logits are equal are told apart by rounding alone.
    """
    factor = weights_TK.sum() / expected_TK.sum()
    errors_T = (weights_TK - factor * expected_TK).abs().amax(-1) / weights_TK.abs().amax(-1).clamp_min(1e-30)
    return float(errors_T.nan_to_num(torch.inf).median())


def scores(call: Call, function: str) -> Tensor:
    """[T, E] in fp32, each token's sum 1."""
    scores_TE = FUNCTIONS[function](call.logits_TE.float())
    return scores_TE / scores_TE.sum(-1, keepdim=True).clamp_min(1e-30)


def ranking(layer: MoeLayer, call: Call, function: str) -> Tensor:
    """[T, E]: the chosen experts from the largest weight, then the others as the router ranks them; groups are passed over."""
    ranked_TE = FUNCTIONS[function](call.logits_TE.float())
    if layer.bias is not None:
        ranked_TE = ranked_TE + layer.bias
    others_TE = ranked_TE.scatter(1, call.choices_TK, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen_TK = call.choices_TK.gather(1, call.weights_TK.argsort(dim=-1, descending=True, stable=True))
    return torch.cat((chosen_TK, others_TE[:, : layer.count - chosen_TK.shape[1]]), dim=1)

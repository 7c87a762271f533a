import pytest
import torch

from megatron_compete.audit.layers import Call, MoeLayer
from megatron_compete.audit.scores import FUNCTIONS, ScoreFunctions, ranking, score_function, scores
from megatron_compete.common.errors import CompeteError
from tests.audit.models import FAMILIES, text, tiny
from tests.audit.test_layers import calls_of

WANTED = {"nemotron_h": "sigmoid", "deepseek_v3": "sigmoid", "glm4_moe": "sigmoid"}
TOKENS, EXPERTS, TOP_K = 64, 8, 3


def a_call(
    function: str, normalised: bool, scale: float, dtype: torch.dtype = torch.float32, top_k: int = TOP_K
) -> Call:
    logits_TE = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(2))
    if function == "probabilities":
        logits_TE = logits_TE.softmax(-1)
    scores_TE = FUNCTIONS[function](logits_TE)
    weights_TK, choices_TK = scores_TE.topk(top_k)
    if normalised:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return Call(torch.zeros(TOKENS, 4), logits_TE.to(dtype), choices_TK, (weights_TK * scale).to(dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_function_of_every_family(family: str) -> None:
    _, calls = calls_of(tiny(family).module, text().ids_SL[:, :-1])
    functions = ScoreFunctions()
    assert {functions.of(layer, call) for layer, call in calls.items()} == {WANTED.get(family, "softmax")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("function", ["softmax", "sigmoid", "sqrtsoftplus", "probabilities"])
def test_function_is_read_off_the_weights(function: str, normalised: bool, dtype: torch.dtype) -> None:
    call = a_call(function, normalised, 2.5, dtype)
    assert score_function(call, "layer") == function
    found_TE = scores(call, function)
    torch.testing.assert_close(found_TE.sum(-1), torch.ones(TOKENS))


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_of_one_expert_a_token_the_weight_tells(function: str) -> None:
    assert score_function(a_call(function, False, 1.0, top_k=1), "layer") == function


def test_weights_of_another_kind_are_refused() -> None:
    call = a_call("softmax", True, 1.0)
    odd = Call(call.hidden_TH, call.logits_TE, call.choices_TK, torch.rand_like(call.weights_TK))
    with pytest.raises(CompeteError, match=r"layer 3: its weights are no softmax, sigmoid or sqrtsoftplus"):
        score_function(odd, "layer 3")


def test_ranking_begins_with_the_chosen_and_knows_the_bias() -> None:
    call = a_call("sigmoid", False, 1.0)
    router = torch.nn.Linear(4, EXPERTS, bias=False)
    layer = MoeLayer(0, "layer", router, torch.nn.Identity(), EXPERTS, TOP_K)
    assert torch.equal(ranking(layer, call, "sigmoid"), call.logits_TE.argsort(dim=-1, descending=True))
    bias_E = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 9])
    router.register_buffer("e_score_correction_bias", bias_E)
    ranked_TE = ranking(layer, call, "sigmoid")
    for row, logits, chosen in zip(ranked_TE.tolist(), call.logits_TE, call.choices_TK.tolist()):
        assert row[:TOP_K] == chosen and sorted(row) == list(range(EXPERTS))
        others = [expert for expert in row if expert not in chosen]
        assert others == sorted(others, key=lambda expert: -float(logits[expert].sigmoid() + bias_E[expert]))

"""Against one expert and one token at a time, and against what must be so."""

import functools

import pytest
import torch
import torch.nn.functional as F

from megatron_compete.audit.competition import CompetitionPart
from megatron_compete.audit.layers import Call, probing, sending
from megatron_compete.audit.measures import TARGETS
from megatron_compete.audit.model import Model
from megatron_compete.audit.scores import ScoreFunctions
from megatron_compete.audit.text import Text
from tests.audit.models import FAMILIES, LENGTH, audited, make, text, tiny
from tests.audit.test_layers import calls_of


def compete(model: Model, words: Text, regret: int = 0, batch: int = 3) -> CompetitionPart:
    part = CompetitionPart(model, words, ScoreFunctions(), batch, len(words.ids_SL), regret)
    for unit in range(part.units):
        part.step(unit)
    return part


def test_agreement_and_similarity_are_what_a_loop_finds() -> None:
    model, words = tiny("qwen3_moe"), text(sequences=4)
    part = compete(model, words)
    _, calls = calls_of(model.module, words.ids_SL[:, :-1])
    layer = model.layers[0]
    call = next(call for one, call in calls.items() if one.number == layer.number)
    with probing([layer]) as probes, torch.enable_grad():
        loss = model.losses(words.ids_SL).sum()
    (gradients_TH,) = torch.autograd.grad(loss, probes[layer])
    experts = layer.experts
    agreed, similarity, loads = torch.zeros(2), torch.zeros(4, 4, dtype=torch.float64), torch.zeros(2, 4)
    for hidden, own, gradient in zip(call.hidden_TH, call.choices_TK.tolist(), gradients_TH):
        outputs = []
        for expert in range(4):
            gate, up = F.linear(hidden, experts.gate_up_proj[expert]).chunk(2)
            outputs.append(F.linear(F.silu(gate) * up, experts.down_proj[expert]))
        by_utility = sorted(range(4), key=lambda e: float(outputs[e] @ gradient))[:2]
        by_response = sorted(range(4), key=lambda e: -float(F.softplus(outputs[e]).mean()))[:2]
        for place, winners in enumerate((by_utility, by_response)):
            agreed[place] += len(set(own) & set(winners)) / 2
            loads[place][winners] += 1
        similarity += F.cosine_similarity(torch.stack(outputs)[:, None], torch.stack(outputs)[None], dim=-1).double()
    tokens = 4 * LENGTH
    found = part.competition(layer)
    assert [found.agreement_utility, found.agreement_response] == pytest.approx((agreed / tokens).tolist())
    assert found.load_utility == pytest.approx((loads[0] / tokens / 2).tolist())
    assert found.load_response == pytest.approx((loads[1] / tokens / 2).tolist())
    torch.testing.assert_close(part.output_similarity(layer), similarity / tokens, atol=1e-5, rtol=1e-4)
    assert part.regret(layer) is None


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "nemotron_h"])
def test_regret_is_zero_where_all_experts_are_the_same(family: str) -> None:
    """Also where weights have no fixed sum, as OLMoE's: the choice alone is measured."""
    model = tiny(family)
    layer = model.layers[-1]
    for parameter in layer.experts.parameters():
        parameter.data[:] = parameter.data[:1].clone()
    regret = compete(model, text(), regret=6).regret(layer)
    assert regret is not None and set(regret.changes) == set(TARGETS) and regret.tokens == 6 * LENGTH
    for change in regret.changes.values():
        assert abs(change.mean) < 1e-6 and max(abs(change.low), abs(change.high)) < 1e-5


@functools.cache
def trained() -> tuple[Model, Text]:
    """Trained for a second on a text in which the next id follows from the last one, and more of the same text."""
    module = make("qwen3_moe", num_experts=8, num_experts_per_tok=2, hidden_size=64, tie_word_embeddings=True).train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(True)
        if "embed" in name:
            parameter.data.mul_(0.2)
    generator = torch.Generator().manual_seed(3)
    follows = torch.randperm(250, generator=generator)

    def sample(sequences: int) -> torch.Tensor:
        ids = [torch.randint(0, 250, (sequences,), generator=generator)]
        while len(ids) <= LENGTH:
            ids.append(follows[ids[-1]])
        return torch.stack(ids, dim=1)

    optimizer = torch.optim.AdamW(module.parameters(), 4e-3)
    for _ in range(120):
        ids = sample(32)
        loss = F.cross_entropy(module(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 1.5
    held_out = sample(12)
    return audited(module.eval().requires_grad_(False)), Text(held_out, torch.zeros(12, dtype=torch.int64), ["one"])


def test_regret_of_a_trained_model() -> None:
    """Experts that it did not learn to send a token to are worse, and utility knows better ones for a random router."""
    model, words = trained()
    part = compete(model, words, regret=12)
    for layer in model.layers:
        regret = part.regret(layer)
        assert regret is not None
        assert regret.changes["random"].low > 0 and regret.changes["drop top-2"].low > 0
        assert regret.changes["drop top-1"].mean < regret.changes["random"].mean

    layer = model.layers[1]
    kept = layer.router_weight.clone()
    generator = torch.Generator().manual_seed(7)
    layer.router_weight.copy_(torch.randn(kept.shape, generator=generator) * kept.std())
    try:
        changed = compete(model, words, regret=12)
    finally:
        layer.router_weight.copy_(kept)
    regret = changed.regret(layer)
    assert regret is not None and regret.changes["utility"].high < -0.01
    before = part.regret(layer)
    assert before is not None and regret.changes["utility"].mean < before.changes["utility"].mean


def test_targets_are_where_they_say() -> None:
    from megatron_compete.audit.competition import _elsewhere

    model, words = tiny("olmoe"), text(sequences=2)
    _, calls = calls_of(model.module, words.ids_SL[:, :-1])
    layer, call = next(iter(calls.items()))
    winners = [torch.zeros_like(call.choices_TK), torch.ones_like(call.choices_TK)]
    found = dict(zip(TARGETS, _elsewhere(layer, call, winners, "softmax", 1), strict=True))
    ranked_TE = call.logits_TE.argsort(dim=-1, descending=True)
    assert found["utility"][0] is winners[0] and found["response"][0] is winners[1]
    assert torch.equal(found["drop top-1"][0], ranked_TE[:, 1:4]) and torch.equal(
        found["drop top-2"][0], ranked_TE[:, 2:5]
    )
    random_TK = found["random"][0]
    assert all(len(set(row)) == 3 for row in random_TK.tolist()) and len(random_TK.unique()) == 8
    for name, (choices_TK, weights_TK) in found.items():
        torch.testing.assert_close(weights_TK.sum(-1), call.weights_TK.sum(-1))
        assert choices_TK.shape == weights_TK.shape == (32, 8 if name == "all" else 3)
    scores_TE = call.logits_TE.softmax(-1)
    torch.testing.assert_close(found["all"][1], scores_TE * call.weights_TK.sum(-1, keepdim=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_finite_regret(family: str) -> None:
    model = tiny(family)
    part = compete(model, text(sequences=3), regret=2)
    for layer in model.layers:
        regret = part.regret(layer)
        assert regret is not None
        assert all(change.low <= change.mean <= change.high < float("inf") for change in regret.changes.values())
        assert regret.changes["random"].mean != 0


def test_sends_leave_nothing_behind() -> None:
    model, words = tiny("qwen3_moe"), text()
    with torch.no_grad():
        before = model.losses(words.ids_SL)
    compete(model, words, regret=3)
    with torch.no_grad():
        assert torch.equal(model.losses(words.ids_SL), before)

    def fail(call: Call) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), sending({model.layers[0]: fail}):
        model.losses(words.ids_SL)
    with torch.no_grad():
        assert torch.equal(model.losses(words.ids_SL), before)

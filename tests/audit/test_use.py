"""Against loops over tokens, in Python's own numbers."""

import itertools
import math
from collections import Counter

import pytest
import torch

from megatron_compete.audit.parts import Ranks
from megatron_compete.audit.scores import ScoreFunctions
from megatron_compete.audit.use import AgainstPart, UsePart
from tests.audit.models import LENGTH, text, tiny
from tests.audit.test_layers import calls_of

FAMILY = "qwen3_moe"


def do(part: UsePart | AgainstPart) -> None:
    assert Ranks().is_first
    for unit in range(part.units):
        part.step(unit)


def entropy(counts: list[float]) -> float:
    shares = [count / sum(counts) for count in counts if count]
    return -sum(share * math.log(share) for share in shares) / math.log(len(counts))


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_use_is_what_a_loop_counts(batch: int) -> None:
    model, words = tiny(FAMILY), text(sequences=6)
    part = UsePart(model, words, ScoreFunctions(), batch, keep_choices=False)
    do(part)
    logits, calls = calls_of(model.module, words.ids_SL[:, :-1])
    layer = model.layers[1]
    call = next(call for one, call in calls.items() if one.number == layer.number)
    experts, tokens = layer.count, 6 * LENGTH
    chosen = [set(row) for row in call.choices_TK.tolist()]
    loads = Counter(itertools.chain.from_iterable(chosen))
    use = part.use(layer)
    assert use.load == pytest.approx([loads[expert] / (tokens * layer.top_k) for expert in range(experts)])
    assert use.load_entropy == pytest.approx(entropy([loads[expert] for expert in range(experts)]))
    by_sequence = [
        [sum(expert in one for one in chosen[start : start + LENGTH]) for expert in range(experts)]
        for start in range(0, tokens, LENGTH)
    ]
    assert use.sequence_entropy == pytest.approx(sum(map(entropy, by_sequence)) / 6)
    for domain in range(2):
        counts = [sum(by_sequence[row][expert] for row in range(domain, 6, 2)) for expert in range(experts)]
        assert use.load_by_domain[domain] == pytest.approx([count / sum(counts) for count in counts])
    scores = call.logits_TE.softmax(-1).tolist()
    assert use.token_entropy == pytest.approx(sum(map(entropy, scores)) / tokens, rel=1e-5)
    margins = [
        min(row[e] for e in own) - max(row[e] for e in range(experts) if e not in own)
        for row, own in zip(scores, chosen)
    ]
    assert use.margin == pytest.approx(sum(margins) / tokens, rel=1e-4)
    both = part.coactivation(layer)
    for one, other in itertools.permutations(range(experts), 2):
        together = sum({one, other} <= own for own in chosen)
        assert float(both[one, other]) == pytest.approx(together / loads[one])
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), words.ids_SL[:, 1:].flatten())
    assert part.loss().mean == pytest.approx(float(wanted), rel=1e-5)
    assert part.tokens_by_domain() == [3 * LENGTH] * 2
    assert sum(part.loss_by_domain()) / 2 == pytest.approx(part.loss().mean)


def test_a_router_that_reads_the_domain_is_told_by_its_information() -> None:
    """Ids of each domain have their own sign in the one channel that the router reads."""
    model = tiny(FAMILY, num_hidden_layers=1, num_experts=4, num_experts_per_tok=1, num_attention_heads=4)
    words = text(sequences=20)
    blind = UsePart(model, words, ScoreFunctions(), 4, False)
    do(blind)
    module = model.module
    module.model.embed_tokens.weight.data[:, 0] = torch.where(torch.arange(250) < 125, -50.0, 50.0)
    module.model.layers[0].mlp.gate.weight.data.zero_()
    module.model.layers[0].mlp.gate.weight.data[:2, 0] = torch.tensor([30.0, -30.0])
    reading = UsePart(model, words, ScoreFunctions(), 4, False)
    do(reading)
    assert reading.use(model.layers[0]).domain_information == pytest.approx(1.0, abs=0.01)  # one bit: two domains
    assert blind.use(model.layers[0]).domain_information < 0.2
    assert reading.use(model.layers[0]).dead == [2, 3]


def test_against_itself_and_against_another() -> None:
    model, words = tiny(FAMILY), text()
    part = UsePart(model, words, ScoreFunctions(), 4, keep_choices=True)
    do(part)
    choices = {layer.number: part.state[f"choices.{layer.number}"] for layer in model.layers}
    same = AgainstPart(model, words, choices, 3)
    do(same)
    assert same.shares(model.layers[0]) == (1.0, 0.0)

    other = tiny(FAMILY)
    other.layers[1].router_weight.copy_(other.layers[1].router_weight.flip(0))  # expert e now has the rows of E - 1 - e
    flipped = AgainstPart(other, words, choices, 3)
    do(flipped)
    assert flipped.shares(other.layers[0]) == (1.0, 0.0)
    chosen_TK = choices[1].view(-1, 2)
    shares = [len({*row} & {3 - e for e in row}) / 2 for row in chosen_TK.tolist()]
    saturation, changed = flipped.shares(other.layers[1])
    assert saturation == pytest.approx(sum(shares) / len(shares))
    assert changed == pytest.approx(sum(share < 1 for share in shares) / len(shares))

"""What stands out in an audit, in sentences: where to look first."""

import math
from collections.abc import Iterator, Sequence

from megatron_compete.audit.measures import by_layer, changes, has_spread, interval, number
from megatron_compete.audit.results import Audit, LayerAudit

TWINS = 0.9
"""Cosine of two experts' outputs from which on they are called twins."""
MANY = 10
"""Layers from which on intervals that miss by chance are to be expected."""
NAMED = 8
"""Layers that a sentence names."""


def findings(audit: Audit) -> list[str]:
    """One sentence or two for each thing that stands out, or for its absence."""
    return [*_broken(audit), *_load(audit), *_domains(audit), *_agreement(audit), *_regret(audit), *_twins(audit), *_against(audit)]  # fmt: skip


def broken_layers(audit: Audit) -> list[int]:
    """Layers with a number that is not finite."""
    return [layer.layer for layer in audit.layers if not all(map(math.isfinite, _numbers(layer)))]


def twins(audit: Audit) -> list[tuple[int, int, int, float]]:
    """Layer, expert, expert and similarity of the most similar pairs of all layers, the closest first."""
    pairs = [
        (layer.layer, *pair)
        for layer in audit.layers
        if layer.geometry
        for pair in layer.geometry.closest_pairs
        if math.isfinite(pair[2])
    ]
    return sorted(pairs, key=lambda pair: -pair[3])


def named(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 3 and 5`, `layers 0, 1, 2 and 14 more`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) > NAMED + 1:
        return f"layers {', '.join(map(str, layers[:NAMED]))} and {len(layers) - NAMED} more"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _broken(audit: Audit) -> Iterator[str]:
    layers = broken_layers(audit)
    if layers:
        yield f"Numbers of {named(layers)} are not finite: weights or activations may hold NaN or infinity. Charts have a gap there."
    if not all(map(math.isfinite, (audit.loss.mean, *audit.loss_by_domain))):
        yield "The loss is not finite."


def _load(audit: Audit) -> Iterator[str]:
    dead = [layer for layer in audit.layers if layer.use.dead]
    experts = sum(layer.experts for layer in audit.layers)
    if dead:
        most = max(dead, key=lambda layer: len(layer.use.dead))
        count = sum(len(layer.use.dead) for layer in dead)
        yield (
            f"{count:,} of {experts:,} experts {'is' if count == 1 else 'are'} dead (less than a hundredth of an even "
            f"share), in {len(dead)} of {len(audit.layers)} layers; most in layer {most.layer}: "
            f"{len(most.use.dead)} of {most.experts}."
        )
    else:
        yield f"No expert is dead: each of the {experts:,} has at least a hundredth of an even share."
    place = _extreme(*by_layer(audit, "busiest"), greatest=True)
    if place is not None:
        layer, value = place
        yield f"The busiest expert is in layer {layer}, with {number(value)} times an even share."


def _domains(audit: Audit) -> Iterator[str]:
    place = _extreme(*by_layer(audit, "domain_information"), greatest=True)
    if len(audit.domains) > 1 and place is not None:
        layer, value = place
        chance = _by_chance(audit, next(one for one in audit.layers if one.layer == layer))
        yield (
            f"Experts say most of a token's domain in layer {layer}: {number(value)} of at most {number(_domain_bits(audit))} "
            f"bits, where sequences dealt to domains by chance would give about {number(chance)}."
        )


def _agreement(audit: Audit) -> Iterator[str]:
    gains = [
        (layer, layer.competition.agreement_utility - layer.top_k / layer.experts)
        for layer in audit.layers
        if layer.competition and math.isfinite(layer.competition.agreement_utility)
    ]
    if not gains:
        return
    least = min(gains, key=lambda gain: gain[1])[0]
    assert least.competition
    yield (
        f"The router agrees least with utility in layer {least.layer}: on {number(least.competition.agreement_utility)} "
        f"of a token's experts, where chance is {number(least.top_k / least.experts)}."
    )


def _regret(audit: Audit) -> Iterator[str]:
    gained = [place for place in changes(audit, "utility") if has_spread(place[1])]
    if gained:
        clear = [(layer, change) for layer, change in gained if change.high < 0]
        layer, change = min(clear or gained, key=lambda place: place[1].mean)
        if clear:
            yield (
                f"Regret: in {len(clear)} of {len(gained)} layers the loss falls where tokens go to the experts of the "
                f"most utility, most in layer {layer}: {interval(change)} nats a token. That choice has seen the next token: no router gains all of it."
            )
        else:
            yield (
                f"Regret: in no layer does the loss clearly fall where tokens go to the experts of the most utility: all "
                f"intervals reach zero, the lowest mean is {interval(change)} nats a token in layer {layer}."
            )
    idle = [layer for layer, change in changes(audit, "random") if has_spread(change) and change.low <= 0]
    if idle:
        yield f"Random experts do about as well as the router's in {named(idle)}: the interval reaches zero."
    worthless = [layer for layer, change in changes(audit, "drop top-1") if has_spread(change) and change.low <= 0]
    if worthless:
        yield f"Without its first choice the router does about as well in {named(worthless)}: the interval reaches zero."
    if len(gained) >= MANY:
        yield "Of 95% intervals about one in twenty misses the truth: of so many layers, some do."
    if not gained and changes(audit, "utility"):
        yield "Regret was measured on one sequence, or is not finite: how sure it is cannot be said."


def _twins(audit: Audit) -> Iterator[str]:
    pairs = twins(audit)
    if not pairs:
        return
    alike = [pair for pair in pairs if pair[3] >= TWINS]
    layer, one, other, similarity = pairs[0]
    closest = f"experts {one} and {other} of layer {layer} (cosine of their outputs {number(similarity)})"
    if alike:
        layers = sorted({pair[0] for pair in alike})
        yield f"Twins: {len(alike)} of the listed pairs have outputs with a cosine of at least {TWINS}, in {named(layers)}; closest are {closest}."
    else:
        yield f"No twins: the most alike are {closest}."


def _against(audit: Audit) -> Iterator[str]:
    place = _extreme(*by_layer(audit, "same_choice"), greatest=False)
    if place is None:
        return
    layer, value = place
    yield f"Against {audit.against or 'the other checkpoint'}, the router of layer {layer} changed most: {number(value)} of a token's experts are the same."
    moved = [(one.layer, one.against.moved) for one in audit.layers if one.against and one.against.moved]
    if moved:
        yield (
            f"{sum(count for _, count in moved)} experts of {named([layer for layer, _ in moved])} are most like an expert "
            "of another number there: their order, or they themselves, changed."
        )


def _extreme(layers: Sequence[int], values: Sequence[float], greatest: bool) -> tuple[int, float] | None:
    finite = [place for place in zip(layers, values) if math.isfinite(place[1])]
    return (max if greatest else min)(finite, key=lambda place: place[1], default=None)


def _domain_bits(audit: Audit) -> float:
    """Entropy of a token's domain, the most that an expert can say of it."""
    shares = [tokens / audit.tokens for tokens in audit.tokens_by_domain if tokens > 0]
    return -sum(share * math.log2(share) for share in shares)


def _by_chance(audit: Audit, layer: LayerAudit) -> float:
    """Domain information, in bits, of sequences whose domains mean nothing: tokens of one sequence are of a kind."""
    of_a_sequence = (layer.use.load_entropy - layer.use.sequence_entropy) * math.log2(layer.experts)
    return (len(audit.domains) - 1) / max(1, audit.sequences - 1) * of_a_sequence


def _numbers(layer: LayerAudit) -> Iterator[float]:
    use = layer.use
    yield from (
        *use.load,
        use.load_entropy,
        use.token_entropy,
        use.margin,
        use.domain_information,
        use.sequence_entropy,
    )
    if layer.competition:
        yield from (layer.competition.agreement_response, layer.competition.agreement_utility)
    for change in layer.regret.changes.values() if layer.regret else ():
        yield from (change.mean, change.low, change.high)
    if layer.geometry:
        one = layer.geometry
        yield from (one.output_similarity, one.weight_similarity, one.router_similarity, one.router_rank)
    if layer.against:
        other = layer.against
        yield from (other.same_choice, other.changed_tokens, other.router_drift, other.expert_drift)

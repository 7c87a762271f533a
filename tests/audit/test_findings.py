"""What an audit's sentences say, of audits where something stands out and where nothing does."""

import dataclasses
import math

from megatron_compete.audit.findings import broken_layers, findings, named, twins
from megatron_compete.audit.results import Experts, Interval, LayerAudit, Regret
from tests.audit.audits import layer_audit, small_audit


def text_of(*layers: LayerAudit, **more: object) -> str:
    return "\n".join(findings(dataclasses.replace(small_audit(0), layers=list(layers), **more)))  # type: ignore[arg-type]


def regret(**changes: tuple[float, float, float]) -> Regret:
    return Regret(
        64, {name.replace("_", " ").replace("top ", "top-"): Interval(*ends) for name, ends in changes.items()}
    )


def test_dead_experts_are_counted_with_the_layer_that_has_most() -> None:
    other = layer_audit(1)
    other = dataclasses.replace(other, use=dataclasses.replace(other.use, dead=[2, 3]))
    assert "3 of 8 experts are dead (less than a hundredth of an even share), in 2 of 2 layers; most in layer 1: 2 of 4." in text_of(layer_audit(0), other)  # fmt: skip
    alive = dataclasses.replace(other, use=dataclasses.replace(other.use, dead=[]))
    assert "No expert is dead: each of the 4 has" in text_of(alive)


def test_domains_are_spoken_of_where_there_are_several() -> None:
    wanted = (
        "Experts say most of a token's domain in layer 0: 0.200 of at most 1.00 bits, where sequences dealt to domains by "
        "chance would give about 0.0187."  # (2 - 1) / (16 - 1) * (.74 - .6) * log2(4)
    )
    assert wanted in text_of(layer_audit(0), tokens_by_domain=[512, 512])
    assert "domain" not in text_of(layer_audit(0), domains=["all"], tokens_by_domain=[2048])


def test_the_router_that_agrees_least_is_found_beside_chance() -> None:
    better = layer_audit(0)
    worse = layer_audit(1, competition=dataclasses.replace(better.competition, agreement_utility=0.51))  # type: ignore[type-var]
    wide = dataclasses.replace(layer_audit(2), experts=8)  # 0.55 where chance is 0.25
    assert "agrees least with utility in layer 1: on 0.510 of a token's experts, where chance is 0.500." in text_of(better, worse, wide)  # fmt: skip


def test_regret_is_clear_where_its_interval_leaves_out_zero() -> None:
    clear = layer_audit(0, regret=regret(utility=(-0.02, -0.03, -0.01), random=(0.5, 0.4, 0.6)))
    unclear = layer_audit(1, regret=regret(utility=(-0.05, -0.2, 0.1), random=(0.0, 0.0, 0.0)))
    found = text_of(clear, unclear)
    assert "in 1 of 2 layers the loss falls" in found and "most in layer 0: -0.020 (-0.030 to -0.010) nats" in found
    assert "Random experts do about as well as the router's in layer 1:" in found
    assert "in no layer does the loss clearly fall" in text_of(unclear)


def test_a_mean_of_one_sequence_is_not_called_clear() -> None:
    found = text_of(layer_audit(0, regret=regret(utility=(-0.02, -0.02, -0.02), random=(-0.1, -0.1, -0.1))))
    assert "the loss falls" not in found and "Random experts" not in found
    assert "one sequence, or is not finite" in found


def test_a_first_choice_that_is_worth_nothing_is_named() -> None:
    assert "Without its first choice the router does about as well in layer 3:" in text_of(layer_audit(3, regret=regret(drop_top_1=(0.01, -0.01, 0.03))))  # fmt: skip


def test_twins_are_the_pairs_with_outputs_alike() -> None:
    alike = layer_audit(4, geometry=Experts(0.1, 0.0, 0.0, 3.0, [(1, 3, 0.97), (0, 1, 0.2), (0, 2, math.nan)]))
    found = dataclasses.replace(small_audit(0), layers=[layer_audit(0), alike])
    assert twins(found) == [(4, 1, 3, 0.97), (0, 0, 2, 0.4), (4, 0, 1, 0.2)]
    assert "Twins: 1 of the listed pairs" in text_of(*found.layers) and "experts 1 and 3 of layer 4" in text_of(*found.layers)  # fmt: skip
    assert "No twins: the most alike are experts 0 and 2 of layer 0" in text_of(layer_audit(0))


def test_another_checkpoint_is_named_with_what_moved() -> None:
    found = text_of(layer_audit(0), layer_audit(1))
    assert "Against runs/earlier/audit, the router of layer 0 changed most: 0.900" in found
    assert "4 experts of layers 0 and 1 are most like an expert of another number" in found


def test_what_is_not_finite_is_said_and_nothing_else_is_claimed_of_it() -> None:
    broken = layer_audit(1, regret=regret(utility=(math.nan, -math.inf, math.inf)))
    broken = dataclasses.replace(broken, use=dataclasses.replace(broken.use, margin=math.nan))
    audit = dataclasses.replace(small_audit(0), layers=[layer_audit(0), broken])
    assert broken_layers(audit) == [1]
    found = text_of(*audit.layers, loss=Interval(math.nan, math.nan, math.nan))
    assert "Numbers of layer 1 are not finite" in found and "The loss is not finite." in found
    assert "nan" not in found


def test_bare_layers_have_little_to_say() -> None:
    found = text_of(layer_audit(0, competition=None, regret=None, geometry=None, against=None))
    assert "Regret" not in found and "agrees" not in found and "wins" not in found and "Against" not in found


def test_many_layers_are_named_by_the_first_ones() -> None:
    assert named([3]) == "layer 3" and named([3, 5]) == "layers 3 and 5"
    assert named(range(20)) == "layers 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"

"""Key tables against the models themselves: transformers' of every family, and Megatron's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from megatron_compete.checkpoint.custom_code.configuration_competesmoe import CompeteSMoEConfig
from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoEForCausalLM
from megatron_compete.checkpoint.families import FAMILIES, Dimensions
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.tensors import TensorRule
from tests.checkpoint import gpt
from tests.ranks import run_rank

MODELS = {name: (name, changes) for name, changes in gpt.FAMILIES.items()} | gpt.VARIANTS


def dimensions(changes: dict[str, Any]) -> Dimensions:
    return Dimensions.from_arguments(gpt.ARGUMENTS | changes, gpt.PADDED, gpt.VOCAB)


def transformers_shapes(family: str, d: Dimensions, arguments: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of a model without values, by the names of the hub's checkpoints."""
    config = FAMILIES[family].to_config(d, arguments)
    with torch.device("meta"):
        if FAMILIES[family].code:
            model = CompeteSMoEForCausalLM(CompeteSMoEConfig(**config))
        else:
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**config))
    state = revert_weight_conversion(model, model.state_dict())
    return {name: tuple(value.shape) for name, value in state.items() if not (d.tied and name == "lm_head.weight")}


@pytest.mark.parametrize("model", MODELS)
def test_the_names_and_shapes_are_those_of_transformers_model(model: str) -> None:
    family, changes = MODELS[model]
    d = dimensions(changes)
    rules = list(FAMILIES[family].tensors(d))
    listed = [pair for rule in rules for pair in zip(rule.names, rule.hf_shapes)]
    assert len(dict(listed)) == len(listed)
    behind = tuple(f"model.layers.{d.layers + depth}." for depth in range(d.mtp_layers))
    shapes = {name: shape for name, shape in listed if not name.startswith(behind)}
    assert shapes == transformers_shapes(family, d, gpt.ARGUMENTS | changes)


OF_MTP = {
    "enorm.weight": (32,),
    "hnorm.weight": (32,),
    "eh_proj.weight": (32, 64),
    "shared_head.norm.weight": (32,),
    "embed_tokens.weight": (gpt.VOCAB, 32),
    "shared_head.head.weight": (gpt.VOCAB, 32),
}
"""What a layer for multi-token prediction has beside a decoder layer, in the published DeepSeek-V3 and GLM-4.5."""


@pytest.mark.parametrize("model", [name for name in MODELS if "multi-token" in name])
def test_a_layer_for_multi_token_prediction_is_one_more_and_what_joins_it(model: str) -> None:
    family, changes = MODELS[model]
    d = dimensions(changes)
    listed = {name: shape for rule in FAMILIES[family].tensors(d) for name, shape in zip(rule.names, rule.hf_shapes)}

    def layer(number: int) -> dict[str, tuple[int, ...]]:
        start = f"model.layers.{number}."
        return {name.removeprefix(start): shape for name, shape in listed.items() if name.startswith(start)}

    assert d.mtp_layers
    for depth in range(d.mtp_layers):
        assert layer(d.layers + depth) == layer(d.layers - 1) | OF_MTP
    assert not layer(d.layers + d.mtp_layers)


def megatron_shapes(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """One rank: every tensor of each model as a checkpoint has it."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    gpt._initialize()
    found = {}
    for name, changes in models.items():
        state = gpt._build(gpt.ARGUMENTS | changes, {})[0].sharded_state_dict()
        values = [one for one in state.values() if isinstance(one, ShardedTensor)]
        factories = [one.build() for one in state.values() if hasattr(one, "build_fn")]
        values += [one for built in factories for one in (built if isinstance(built, list) else built.values())]
        found[name] = {one.key: tuple(one.global_shape) for one in values}
    return found


@pytest.fixture(scope="module")
def megatron() -> dict[str, dict[str, tuple[int, ...]]]:
    return run_rank(megatron_shapes, {name: changes for name, (_, changes) in MODELS.items()})


def stored(key: str, rule: TensorRule) -> list[tuple[str, int]]:
    """Keys and rows of what Megatron stores for the rule: the tensor, or its pieces."""
    return [(f"{key}.{name}", rows) for name, rows in rule.pieces] or [(key, rule.shape[0])]


@pytest.mark.parametrize("model", MODELS)
def test_the_keys_and_shapes_are_those_of_megatrons_model(
    megatron: dict[str, dict[str, tuple[int, ...]]], model: str
) -> None:
    family, changes = MODELS[model]
    d = dimensions(changes)
    found = megatron[model]
    listed = set()
    for rule in FAMILIES[family].tensors(d):
        if rule.slot is None:
            continue
        here = [one for one in rule.slot.canonical(d) if all(key in found for key, _ in stored(one.key, rule))]
        assert len(here) == 1, rule.slot.keys
        for key, rows in stored(here[0].key, rule):
            assert found[key] == (*here[0].stack, rows, *rule.shape[1:])
            listed.add(key)
    assert listed == found.keys()


LINE = "decoder.layers.*.mlp.router.weight -> model.layers.*.mlp.gate.weight  whole  [E,H]  experts"


def test_a_line() -> None:
    (key,) = read_keys(LINE)
    assert key.megatron == ("decoder.layers.*.mlp.router.weight",) and key.axes == 1
    d = dimensions({"moe_layer_freq": [0, 1, 1, 1]})
    assert [key.holds(d, layer) for layer in range(4)] == [False, True, True, True]
    rule = key.rule(d, 2, None)
    assert rule.names == ("model.layers.2.mlp.gate.weight",) and rule.shape == (4, 32)
    negated = replace(key, conditions=("!experts",))
    assert [negated.holds(d, layer) for layer in range(4)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("[E,H]", "[E,X]"), "no line of a key table"),
        (LINE.replace("experts", "expert"), "no line of a key table"),
        (LINE.replace("model.layers.*", "model.layers"), "no line of a key table"),
        (LINE.replace("->", "<-"), "no line of a key table"),
        (LINE.replace("whole", "up"), "has the parts up"),
        (LINE.replace("whole", "also"), "has the parts also"),
        (LINE.replace("whole", "all"), "has the parts all"),
    ],
)
def test_lines_that_say_nothing(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_keys(line)

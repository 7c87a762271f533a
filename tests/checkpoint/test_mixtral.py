"""Tensors by name and shape, from hand-made sources; the whole model is compared in test_export.py."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.checkpoint.mixtral import (
    Dimensions,
    MixtralTensors,
    generation_config,
    mixtral_config,
    split_gate_up,
    split_qkv,
)
from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.errors import CompeteError
from tests.checkpoint.gpt import ARGUMENTS

LAYERS, HIDDEN, GROUPS, HEADS, HEAD, FFN, EXPERTS = 4, 32, 2, 4, 12, 24, 4


class Memory:
    """A checkpoint that is a dictionary."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        self.held = held
        self.tensors = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in held.items()}

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        return self.held[key][index]


def stacked() -> dict[str, Tensor]:
    """A checkpoint of homogeneous layers, as the local specification names its norms."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    layers = "decoder.layers."
    return {
        "embedding.word_embeddings.weight": random(256, HIDDEN),
        layers + "self_attention.linear_qkv.layer_norm_weight": random(LAYERS, HIDDEN),
        layers + "self_attention.linear_qkv.weight": random(LAYERS, (HEADS + 2 * GROUPS) * HEAD, HIDDEN),
        layers + "self_attention.linear_proj.weight": random(LAYERS, HIDDEN, HEADS * HEAD),
        layers + "mlp.linear_fc1.layer_norm_weight": random(LAYERS, HIDDEN),
        layers + "mlp.router.weight": random(LAYERS, EXPERTS, HIDDEN),
        layers + "mlp.experts.experts.linear_fc1.weight": random(LAYERS, EXPERTS, 2 * FFN, HIDDEN),
        layers + "mlp.experts.experts.linear_fc2.weight": random(LAYERS, EXPERTS, HIDDEN, FFN),
        "decoder.final_layernorm.weight": random(HIDDEN),
        "output_layer.weight": random(256, HIDDEN),
        "optimizer.state.exp_avg.decoder.final_layernorm.weight": random(HIDDEN),
    }


def convert(held: Mapping[str, Tensor], vocab: int | None = 250, **changes: Any) -> dict[str, Tensor]:
    return dict(MixtralTensors(Memory(held), Dimensions.from_arguments(ARGUMENTS | changes), vocab))


def test_qkv_by_reference() -> None:
    """Each head finds its own rows: fused rows are numbered group by group, queries, key, value."""
    fused = torch.arange((HEADS + 2 * GROUPS) * HEAD).unsqueeze(1).float()
    queries, keys, values = (part.squeeze(1).tolist() for part in split_qkv(fused, GROUPS, HEAD))
    rows = iter(range(len(fused)))
    wanted: dict[str, list[float]] = {"q": [], "k": [], "v": []}
    for _ in range(GROUPS):
        for name, heads in (("q", HEADS // GROUPS), ("k", 1), ("v", 1)):
            wanted[name] += [float(next(rows)) for _ in range(heads * HEAD)]
    assert (queries, keys, values) == (wanted["q"], wanted["k"], wanted["v"])


def test_gate_comes_before_up() -> None:
    gate, up = split_gate_up(torch.arange(6.0).view(6, 1))
    assert gate.flatten().tolist() == [0, 1, 2]
    assert up.flatten().tolist() == [3, 4, 5]


def test_names_and_slices() -> None:
    held = stacked()
    made = convert(held)
    assert len(made) == 2 + 1 + LAYERS * (7 + 3 * EXPERTS)
    fc1 = held["decoder.layers.mlp.experts.experts.linear_fc1.weight"][2, 3]
    expert = "model.layers.2.block_sparse_moe.experts.3."
    assert made[expert + "w1.weight"].equal(fc1[:FFN])
    assert made[expert + "w3.weight"].equal(fc1[FFN:])
    assert made[expert + "w2.weight"].equal(held["decoder.layers.mlp.experts.experts.linear_fc2.weight"][2, 3])
    assert made["model.layers.1.block_sparse_moe.gate.weight"].equal(held["decoder.layers.mlp.router.weight"][1])
    norms = held["decoder.layers.self_attention.linear_qkv.layer_norm_weight"]
    assert made["model.layers.3.input_layernorm.weight"].equal(norms[3])


def test_padding_rows_are_cut() -> None:
    made = convert(stacked(), vocab=250)
    assert made["model.embed_tokens.weight"].shape == made["lm_head.weight"].shape == (250, HIDDEN)
    assert convert(stacked(), vocab=None)["lm_head.weight"].shape == (256, HIDDEN)


def test_tied_embeddings_have_no_head() -> None:
    held = stacked()
    del held["output_layer.weight"]
    assert "lm_head.weight" not in convert(held, untie_embeddings_and_output_weights=False)


def test_norms_as_transformer_engine_names_them() -> None:
    held = stacked()
    norm = held.pop("decoder.layers.mlp.linear_fc1.layer_norm_weight")
    held["decoder.layers.pre_mlp_layernorm.weight"] = norm
    held["decoder.layers.input_layernorm.weight"] = held.pop(
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight"
    )
    made = convert(held)
    assert made["model.layers.0.post_attention_layernorm.weight"].equal(norm[0])


def unstack(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers under keys of their own."""
    made = {name: tensor for name, tensor in held.items() if not name.startswith("decoder.layers.")}
    for name, tensor in held.items():
        if name.startswith("decoder.layers."):
            made |= {
                f"decoder.layers.{i}.{name.removeprefix('decoder.layers.')}": part for i, part in enumerate(tensor)
            }
    return made


def apart(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts and the halves of fc1 under keys of their own too."""
    made = {name: tensor for name, tensor in unstack(held).items() if ".experts.experts." not in name}
    for name, tensor in unstack(held).items():
        if ".experts.experts." in name:
            front, back = name.split(".experts.experts.")
            for expert, part in enumerate(tensor):
                key = f"{front}.experts.experts.{expert}.{back}"
                halves = dict(zip((key + "_w", key + "_v"), part.chunk(2)))
                made |= halves if "linear_fc1" in back else {key: part}
    return made


@pytest.mark.parametrize("form", [unstack, apart])
def test_other_forms_of_the_same_checkpoint(form: Any) -> None:
    wanted, made = convert(stacked()), convert(form(stacked()))
    assert wanted.keys() == made.keys()
    assert all(made[name].equal(wanted[name]) for name in wanted)


def test_sizes_are_known_beforehand() -> None:
    tensors = MixtralTensors(Memory(stacked()), Dimensions.from_arguments(ARGUMENTS), 250)
    assert tensors.sizes() == {name: tensor.nbytes for name, tensor in tensors}
    assert list(tensors.sizes()) == [name for name, _ in tensors]


def test_tensors_without_a_place_are_refused() -> None:
    held = stacked() | {"decoder.layers.mlp.shared_experts.linear_fc1.weight": torch.ones(4, 8, HIDDEN)}
    with pytest.raises(
        CompeteError, match=r"holds 1 tensors that a Mixtral model has no place for: decoder.layers.mlp.shared"
    ):
        convert(held)


@pytest.mark.parametrize("key", [key for key in stacked() if not key.startswith("optimizer")])
def test_missing_tensors_are_named(key: str) -> None:
    held = stacked()
    del held[key]
    with pytest.raises(CompeteError, match="the checkpoint has no"):
        convert(held)


@pytest.mark.parametrize("change", [{"num_layers": 3}, {"num_experts": 2}, {"num_query_groups": 1}, {"kv_channels": 8}])
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CompeteError, match="its training arguments make it"):
        convert(stacked(), **change)


def test_a_tokenizer_with_more_ids_than_rows_is_refused() -> None:
    with pytest.raises(CompeteError, match="has 300 ids and the model embeds 256"):
        convert(stacked(), vocab=300)


def test_quantised_weights_are_refused() -> None:
    held = stacked()
    key = "decoder.layers.mlp.experts.experts.linear_fc2.weight"
    with pytest.raises(CompeteError, match=r"is stored as .*float8_e4m3fn"):
        convert(held | {key: held[key].to(torch.float8_e4m3fn)})


def test_arguments_without_sizes_are_refused() -> None:
    with pytest.raises(CompeteError, match="do not say --hidden-size"):
        convert(stacked(), hidden_size=None)


def test_groups_mean_nothing_without_grouped_queries() -> None:
    arguments = ARGUMENTS | {"group_query_attention": False, "num_query_groups": 1, "kv_channels": None}
    sizes = Dimensions.from_arguments(arguments)
    assert (sizes.groups, sizes.heads_per_group, sizes.head) == (4, 1, 8)


def test_configuration() -> None:
    tensors = MixtralTensors(Memory(stacked()), Dimensions.from_arguments(ARGUMENTS), 250)
    config = mixtral_config(ARGUMENTS | {"rotary_base": 500000, "layernorm_epsilon": 1e-6}, tensors, bos=None, eos=2)
    assert config["rope_theta"] == 500000.0
    assert config["rms_norm_eps"] == 1e-6
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 12)
    assert (config["vocab_size"], config["intermediate_size"]) == (250, 24)
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert generation_config(config) == {"eos_token_id": 2}

"""Tensors by name and shape, from hand-made sources; whole models are compared in families/test_parity.py."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.checkpoint.families import FAMILIES, Dimensions, choose_family
from megatron_compete.checkpoint.plan import ExportPlan
from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.common.errors import CompeteError
from tests.checkpoint.gpt import ARGUMENTS, LATENT, SIGMOID

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
    return dict(plan(held, vocab, **changes))


def plan(
    held: Mapping[str, Tensor], vocab: int | None = 250, dtype: torch.dtype | None = None, **changes: Any
) -> ExportPlan:
    dimensions = Dimensions.from_arguments(ARGUMENTS | changes, 256, vocab)
    return ExportPlan(Memory(held), choose_family(ARGUMENTS | changes), dimensions, dtype)


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
    tensors = plan(stacked())
    assert tensors.sizes() == {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}
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


def test_another_dtype_but_for_what_is_kept() -> None:
    assert {tensor.dtype for tensor in convert(stacked(), dtype=torch.bfloat16).values()} == {torch.bfloat16}
    source = sigmoid_model()
    made = convert(source, dtype=torch.bfloat16, **SIGMOID_MODEL)
    bias = made.pop("model.layers.1.mlp.gate.e_score_correction_bias")
    assert bias.equal(source["decoder.layers.1.mlp.router.expert_bias"]) and bias.dtype == torch.float32
    assert {tensor.dtype for name, tensor in made.items() if "correction" not in name} == {torch.bfloat16}


SIGMOID_MODEL = SIGMOID | LATENT | {"moe_router_topk": 2, "moe_router_num_groups": None, "moe_router_group_topk": None}


def sigmoid_model() -> dict[str, Tensor]:
    """A DeepSeek-V3 of two kinds of layers, each under keys of its own, as the rules' first names have it."""
    d = Dimensions.from_arguments(ARGUMENTS | SIGMOID_MODEL, 256, 250)
    generator = torch.Generator().manual_seed(0)
    held: dict[str, Tensor] = {}
    for rule in FAMILIES["deepseek_v3"].tensors(d):
        assert rule.slot is not None
        place = rule.slot.canonical(d)[0]
        held.setdefault(place.key, torch.randn(*place.stack, *rule.shape, generator=generator))
    return held


def test_latent_norms_as_transformer_engine_names_them() -> None:
    held = sigmoid_model()
    wanted = convert(held, **SIGMOID_MODEL)
    for layer in range(LAYERS):
        inner = f"decoder.layers.{layer}.self_attention."
        for local, fused in (("q_layernorm.weight", "linear_q_up_proj"), ("kv_layernorm.weight", "linear_kv_up_proj")):
            held[f"{inner}{fused}.layer_norm_weight"] = held.pop(inner + local)
    made = convert(held, **SIGMOID_MODEL)
    assert wanted.keys() == made.keys()
    assert all(made[name].equal(wanted[name]) for name in wanted)


def test_names_of_both_implementations_in_one_checkpoint() -> None:
    held = stacked()
    held["decoder.layers.pre_mlp_layernorm.weight"] = held["decoder.layers.mlp.linear_fc1.layer_norm_weight"]
    assert convert(held).keys() == convert(stacked()).keys()


def test_statistics_of_training_are_left_behind() -> None:
    held = stacked() | {"decoder.layers.mlp.centering.mean": torch.ones(LAYERS, EXPERTS)}
    assert convert(held).keys() == convert(stacked()).keys()


def test_a_correction_bias_that_the_model_lacks_is_zeros() -> None:
    held = {name: tensor for name, tensor in sigmoid_model().items() if "expert_bias" not in name}
    made = convert(held, **SIGMOID_MODEL | {"moe_router_enable_expert_bias": False})
    assert made["model.layers.2.mlp.gate.e_score_correction_bias"].equal(torch.zeros(8))

"""A mixture made of a dense MLP: the sum over its experts, which numbers are refused, and what is written."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.upcycle import Upcycling, router_rows, upcycle
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig

LAYERS, H, WIDTH, TOKENS = 2, 8, 12, 40
ARGUMENTS: dict[str, Any] = {
    "num_layers": LAYERS,
    "hidden_size": H,
    "ffn_hidden_size": WIDTH,
    "swiglu": True,
    "add_bias_linear": False,
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense(gated: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Stacked tensors [layers, ...] of a dense model, as far as upcycling looks at them."""
    return {
        "decoder.layers.mlp.linear_fc1.weight": random(LAYERS, 2 * WIDTH if gated else WIDTH, H, seed=1, dtype=dtype),
        "decoder.layers.mlp.linear_fc2.weight": random(LAYERS, H, WIDTH, seed=2, dtype=dtype),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": random(LAYERS, H, seed=3, dtype=dtype),
        "decoder.layers.self_attention.linear_proj.weight": random(LAYERS, H, H, seed=4, dtype=dtype),
        "embedding.word_embeddings.weight": random(5, H, seed=5, dtype=dtype),
    }


def chunks(tensors: dict[str, Tensor]) -> list[Chunk]:
    made = []
    for key, tensor in tensors.items():
        if not key.startswith("decoder.layers."):
            made.append(Chunk(key, (), (), tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor))
            continue
        for layer in range(LAYERS):
            one = tensor[layer]
            made.append(Chunk(key, (layer,), (LAYERS,), tuple(one.shape), one.dtype, lambda one=one: one))
    return made


def make(how: Upcycling, tensors: dict[str, Tensor], **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments, and whole tensors of the mixture."""
    arguments, made = upcycle(ARGUMENTS | changes, chunks(tensors), how)
    whole = {chunk.key: torch.full((*chunk.stack, *chunk.shape), torch.nan).to(chunk.dtype) for chunk in made}
    for chunk in made:
        assert whole[chunk.key][chunk.index].isnan().all(), "made twice"
        whole[chunk.key][chunk.index] = chunk.make()
    assert not any(tensor.isnan().any() for tensor in whole.values())
    return arguments, whole


def mlp(x: Tensor, fc1: Tensor, fc2: Tensor, gated: bool = True) -> Tensor:
    hidden = x @ fc1.T
    if gated:
        gate, up = hidden.chunk(2, dim=-1)
        return (F.silu(gate) * up) @ fc2.T
    return F.relu(hidden).square() @ fc2.T


def mixture(x_TH: Tensor, whole: dict[str, Tensor], layer: int, k: int, gated: bool = True) -> Tensor:
    """Every expert computed; K weights from the softmax over the K largest logits."""
    logits_TE = x_TH @ whole["decoder.layers.mlp.router.weight"][layer].T
    top_TK, chosen_TK = logits_TE.topk(k, dim=-1)
    weights_TE = torch.zeros_like(logits_TE).scatter(1, chosen_TK, top_TK.softmax(-1))
    inside = "decoder.layers.mlp.experts.experts."
    fc1, fc2 = (whole[f"{inside}linear_fc{i}.weight"][layer] for i in (1, 2))
    outputs_TEH = torch.stack([mlp(x_TH, one, two, gated) for one, two in zip(fc1, fc2)], dim=1)
    return (weights_TE.unsqueeze(-1) * outputs_TEH).sum(1)


@pytest.mark.parametrize("gated", [True, False], ids=["swiglu", "squared-relu"])
@pytest.mark.parametrize(
    "how",
    [
        Upcycling(4),
        Upcycling(4, top_k=3, router_init="zeros"),
        Upcycling(8, granularity=2),
        Upcycling(8, top_k=2, granularity=2, router_init="orthogonal"),
        Upcycling(8, top_k=8, granularity=4),
        Upcycling(9, top_k=6, granularity=3),
    ],
    ids=str,
)
def test_the_mixture_computes_what_the_mlp_did(how: Upcycling, gated: bool) -> None:
    tensors = dense(gated)
    arguments, whole = make(how, tensors, swiglu=gated, squared_relu=not gated)
    assert how.exact
    assert arguments["moe_ffn_hidden_size"] * how.granularity == WIDTH
    assert (arguments["num_experts"], arguments["moe_router_topk"]) == (how.experts, how.k)
    x_TH = random(TOKENS, H, seed=9)
    for layer in range(LAYERS):
        wanted = mlp(x_TH, *(tensors[f"decoder.layers.mlp.linear_fc{i}.weight"][layer] for i in (1, 2)), gated)
        found = mixture(x_TH, whole, layer, how.k, gated)
        torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_tokens_that_get_unequal_slices_differ() -> None:
    """What the refusal of K = 3 at G = 2 prevents."""
    how = Upcycling(8, top_k=3, granularity=2, inexact=True)
    tensors = dense()
    _, whole = make(how, tensors)
    assert not how.exact
    x_TH = random(TOKENS, H, seed=9)
    wanted = mlp(x_TH, *(tensors[f"decoder.layers.mlp.linear_fc{i}.weight"][0] for i in (1, 2)))
    assert (mixture(x_TH, whole, 0, how.k) - wanted).abs().max() > 0.1 * wanted.abs().max()


def test_everything_else_goes_over_as_it_is() -> None:
    tensors = dense()
    arguments, whole = make(Upcycling(4), tensors)
    for key in ("decoder.layers.self_attention.linear_proj.weight", "embedding.word_embeddings.weight"):
        assert whole[key].equal(tensors[key])
    norm = tensors["decoder.layers.mlp.linear_fc1.layer_norm_weight"]
    assert whole["decoder.layers.pre_mlp_layernorm.weight"].equal(norm)  # Transformer Engine's name
    assert whole["decoder.layers.mlp.linear_fc1.layer_norm_weight"].equal(norm)  # the local implementation's
    assert "decoder.layers.mlp.linear_fc1.weight" not in whole
    assert arguments["compete_diversity_coeff"] == CompeteConfig().diversity_coeff > 0


def test_noise_leaves_the_first_copy_alone() -> None:
    tensors = dense()
    _, plain = make(Upcycling(6, granularity=2), tensors)
    _, noisy = make(Upcycling(6, granularity=2, noise=0.5), tensors)
    assert not Upcycling(6, granularity=2, noise=0.5).exact
    for name in ("linear_fc1", "linear_fc2"):
        key = f"decoder.layers.mlp.experts.experts.{name}.weight"
        assert noisy[key][:, :2].equal(plain[key][:, :2])
        added = noisy[key][:, 2:] - plain[key][:, 2:]
        share = added.std() / plain[key].std()
        assert 0.4 < share < 0.6
        assert not added[:, 0].equal(added[:, 2])  # each copy its own
    assert noisy["decoder.layers.mlp.router.weight"].equal(plain["decoder.layers.mlp.router.weight"])


def test_the_same_seed_gives_the_same_mixture() -> None:
    how = Upcycling(4, noise=0.1)
    _, one = make(how, dense())
    _, again = make(how, dense())
    _, other = make(Upcycling(4, noise=0.1, seed=5), dense())
    assert all(one[key].equal(again[key]) for key in one)
    router = "decoder.layers.mlp.router.weight"
    assert not one[router].equal(other[router])
    assert not one[router][0].equal(one[router][1])  # every layer its own


@pytest.mark.parametrize("init", ["normal", "orthogonal", "zeros"])
def test_router_rows(init: str) -> None:
    rows = router_rows(Upcycling(6, granularity=2, router_init=init, router_std=0.1), 400, torch.Generator())
    assert rows.shape == (6, 400)
    assert rows[0::2].equal(rows[1::2])  # the experts of a copy
    if init == "zeros":
        assert not rows.any()
        return
    assert 0.08 < rows.std() < 0.12
    gram = rows[::2] @ rows[::2].T
    if init == "orthogonal":
        torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-4, rtol=0)


REFUSED = [
    (Upcycling(5, granularity=2), {}, "--upcycle-experts 5 cannot hold --granularity 2"),
    (Upcycling(4, top_k=5), {}, "--top-k 5 has to be 2 to --upcycle-experts 4"),
    (Upcycling(4, top_k=1), {}, "--top-k 1 has to be 2"),
    (Upcycling(8, top_k=3, granularity=2), {}, "--top-k 3 is no multiple of --granularity 2"),
    (Upcycling(8, granularity=2, router_init="zeros"), {}, "--router-init zeros with --granularity 2"),
    (Upcycling(10, granularity=5), {}, "--granularity 5 does not divide the MLP's width 12"),
    (Upcycling(4, noise=-1.0), {}, "cannot be negative"),
    (Upcycling(4, router_init="ones"), {}, "choose from normal, orthogonal, zeros"),
    (Upcycling(4), {"num_experts": 2}, "--num-experts 2 already"),
    (Upcycling(4), {"add_bias_linear": True}, "have biases"),
    (Upcycling(4), {"num_layers": 3}, "has 4 MLP matrices, not 2 for each of 3 layers"),
]


@pytest.mark.parametrize(("how", "changes", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals(how: Upcycling, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CompeteError, match=message):
        make(how, dense(), **changes)


def test_narrow_weights_are_scaled_by_powers_of_two_alone() -> None:
    with pytest.raises(CompeteError, match="--granularity 3 scales bfloat16 weights"):
        make(Upcycling(6, granularity=3), dense(dtype=torch.bfloat16))
    make(Upcycling(6, granularity=3, inexact=True), dense(dtype=torch.bfloat16))
    make(Upcycling(8, granularity=2), dense(dtype=torch.bfloat16))

"""Hash routing in Megatron's layer: the table's experts at equal weights, on every layout, and what it needs to be told."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.hash import TokenIds, give_token_ids
from megatron_compete.routing.baselines.hash import hash_table
from tests.moe import layouts
from tests.moe.baselines.layers import build_baseline
from tests.moe.layouts import BATCH, EXPERTS, FFN, HIDDEN, SEQUENCE, WINNERS, Layout, Shard, transformer_config
from tests.moe.reference import Weights, expert_outputs
from tests.ranks import run_rank, run_ranks

SCALE, VOCABULARY, SEED = 1.5, 50, 9
LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=2, tp=2), Layout(world=4, tp=2, ep=2, etp=2)]
RECOMPUTED: dict[str, Any] = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
WEIGHTS = Weights.random(EXPERTS, HIDDEN, FFN)
TOKENS, COTANGENTS = torch.randn(2, SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(3))
IDS = torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(4))


class OneLayer(torch.nn.Module):
    """What `give_token_ids` needs of a model: an embedding, and a layer with a router."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.embedding.vocab_size = VOCABULARY  # type: ignore[assignment]

    def forward(self, ids: Tensor, tokens: Tensor) -> Tensor:
        self.embedding(ids)
        output, _ = self.layer(tokens)
        return output


def built(layout: Layout, **overrides: Any) -> OneLayer:
    layer = build_baseline(layout, "hash", BaselineConfig(), moe_router_topk_scaling_factor=SCALE, **overrides)
    share = Shard.of(layer).share(WEIGHTS)
    for local, expert in enumerate(layer.experts.local_experts):
        expert.linear_fc1.weight.data.copy_(share[f"expert{local}.fc1"])
        expert.linear_fc2.weight.data.copy_(share[f"expert{local}.fc2"])
    (model,) = give_token_ids([OneLayer(layer)], SEED)
    return model


def routed(layout: Layout) -> dict[str, Any]:
    """This rank's part of output, choice and token gradient; plain and recomputed, the other microbatch's ids in between."""
    layouts.initialize(layout)
    _, _, tensor = layout.coordinates(torch.distributed.get_rank())
    results = {}
    for name, overrides in (("plain", {}), ("recomputed", RECOMPUTED)):
        model = built(layout, **overrides)
        model(IDS.flip(1), TOKENS.chunk(layout.tp)[tensor])
        tokens = TOKENS.chunk(layout.tp)[tensor].contiguous().requires_grad_()
        output = model(IDS, tokens)
        (output * COTANGENTS.chunk(layout.tp)[tensor]).sum().backward()
        weights_TE, chosen_TE = model.layer.router(tokens)
        results[name] = output.detach(), tokens.grad, weights_TE, chosen_TE
    return results | {"parameters": [name for name, _ in model.layer.router.named_parameters()]}


def expected() -> tuple[Tensor, Tensor, Tensor]:
    """Output, token gradient and weights [T, E] in fp64."""
    table_VK = hash_table(VOCABULARY, EXPERTS, WINNERS, seed=SEED, layer_number=1)
    weights_TE = torch.zeros(SEQUENCE * BATCH, EXPERTS, dtype=torch.float64)
    for position in range(SEQUENCE):
        for sequence in range(BATCH):
            for expert in table_VK[IDS[sequence, position]]:
                weights_TE[position * BATCH + sequence, expert] = SCALE / WINNERS
    tokens = TOKENS.double().requires_grad_()
    answers_TEH = expert_outputs(tokens.reshape(-1, HIDDEN), WEIGHTS.double())
    output = torch.einsum("te,teh->th", weights_TE, answers_TEH).view_as(tokens)
    (output * COTANGENTS).sum().backward()
    assert tokens.grad is not None
    return output.detach(), tokens.grad, weights_TE


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layer_equals_dense_reference(layout: Layout) -> None:
    per_rank = run_ranks(layout.world, routed, layout)
    output, grad, weights_TE = expected()
    for rank, results in enumerate(per_rank):
        tensor = layout.coordinates(rank)[2]
        assert results["parameters"] == []
        for name in ("plain", "recomputed"):
            found = results[name]
            torch.testing.assert_close(found[0].double(), output.chunk(layout.tp)[tensor], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[1].double(), grad.chunk(layout.tp)[tensor], rtol=1e-5, atol=1e-5)
            assert torch.equal(found[2], weights_TE.chunk(layout.tp)[tensor].float())
            assert torch.equal(found[3], weights_TE.chunk(layout.tp)[tensor] > 0)


def untold() -> list[str]:
    layouts.initialize(Layout())
    layer = build_baseline(Layout(), "hash", BaselineConfig())
    said = []
    for ids in (None, IDS[:, :-1]):
        if ids is not None:
            layer.router.token_ids = TokenIds()
            layer.router.token_ids.remember(layer, (), {"input_ids": ids})
        with pytest.raises(CompeteError) as error:
            layer(TOKENS)
        said.append(str(error.value))
    return said


def test_without_the_right_ids_it_stops() -> None:
    none, others = run_rank(untold)
    assert "call megatron_compete.moe.baselines.hash.give_token_ids(model, seed)" in none
    assert f"layer 1 routes tokens of shape ({SEQUENCE}, {BATCH})" in others
    assert f"ids of shape ({SEQUENCE - 1}, {BATCH})" in others


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("--pipeline-model-parallel-size", dict(pipeline_model_parallel_size=2)),
    ("--mtp-num-layers", dict(mtp_num_layers=1)),
    ("--hybrid-layer-pattern", dict(is_hybrid_model=True)),
    ("--overlap-moe-expert-parallel-comm", dict(overlap_moe_expert_parallel_comm=True)),
    ("--cuda-graph-impl", dict(cuda_graph_impl="local")),
    ("--moe-z-loss-coeff", dict(moe_z_loss_coeff=0.1)),
    ("--moe-router-score-function", dict(moe_router_score_function="sigmoid")),
    ("--moe-router-pre-softmax", dict(moe_router_pre_softmax=True)),
    ("--moe-router-fusion", dict(moe_router_fusion=True)),
    ("--moe-input-jitter-eps", dict(moe_input_jitter_eps=0.01)),
    ("--moe-router-num-groups", dict(moe_router_num_groups=2)),
    ("--moe-router-enable-expert-bias", dict(moe_router_enable_expert_bias=True)),
    ("--moe-router-force-load-balancing", dict(moe_router_force_load_balancing=True)),
    ("--moe-router-force-biased", dict(moe_router_force_biased=1.0)),
    ("--moe-enable-routing-replay", dict(moe_enable_routing_replay=True)),
    ("--moe-expert-capacity-factor", dict(moe_expert_capacity_factor=1.5)),
    ("--moe-router-padding-for-quantization", dict(moe_router_padding_for_quantization=True)),
    ("--moe-aux-loss-coeff", dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01)),
    ("--moe-router-load-balancing-type", dict(moe_router_load_balancing_type="sinkhorn")),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "settings"), REFUSED, ids=[flag for flag, _ in REFUSED])
def test_what_it_cannot_do_is_refused(flag: str, settings: dict[str, Any]) -> None:
    config = transformer_config(Layout())
    check_baseline("hash", config, BaselineConfig())
    changed = SimpleNamespace(**(vars(config) | settings))  # Megatron refuses some of them alone
    with pytest.raises(CompeteError, match=rf"{flag} .*--router hash"):
        check_baseline("hash", changed, BaselineConfig())  # type: ignore[arg-type]


def test_one_expert_a_token_may_come_with_the_softmax_that_megatron_asks_for() -> None:
    config = transformer_config(Layout(), moe_router_topk=1, moe_router_pre_softmax=True)
    check_baseline("hash", config, BaselineConfig())

import pytest
import torch

from megatron_compete.audit.weights import against, flat_experts, geometry
from tests.audit.models import tiny


def test_geometry_is_of_the_experts_and_the_router() -> None:
    layer = tiny("qwen3_moe").layers[0]
    gate_up, down = (parameter.flatten(1).double() for parameter in layer.experts.parameters())
    rows = torch.cat((gate_up, down), dim=1)
    assert torch.equal(flat_experts(layer).double(), rows)
    outputs = torch.tensor(
        [[1.0, 0.5, 0.1, 0.2], [0.5, 1, 0.3, 0], [0.1, 0.3, 1, 0.4], [0.2, 0, 0.4, 1]], dtype=torch.float64
    )
    found, matrices = geometry(layer, outputs)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    torch.testing.assert_close(matrices["weight_similarity"], cosine, atol=1e-6, rtol=0)
    pairs = ~torch.eye(4, dtype=torch.bool)
    assert found.weight_similarity == pytest.approx(float(cosine[pairs].mean()), abs=1e-6)
    assert found.output_similarity == pytest.approx(float(outputs[pairs].mean()))
    assert found.closest_pairs[0] == (0, 1, 0.5)
    assert 1 < found.router_rank <= 4


def test_experts_that_changed_places_are_matched() -> None:
    layer, other = (tiny("qwen3_moe").layers[0] for _ in range(2))
    order = torch.tensor([2, 0, 1, 3])
    for parameter in other.experts.parameters():
        parameter.data[:] = parameter.data[order]
    found = against(layer, other, 0.5, 0.25)
    assert (found.same_choice, found.changed_tokens) == (0.5, 0.25)
    assert found.matched == [order.tolist().index(expert) for expert in range(4)] and found.moved == 3
    assert found.router_drift == 0
    apart = flat_experts(layer) - flat_experts(other)
    assert found.expert_drift == pytest.approx(float(apart.norm() / flat_experts(other).norm()), rel=1e-5)

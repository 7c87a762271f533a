"""The own architecture's configuration: rotation in the forms of transformers 4 and 5, and choices that mean nothing."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from megatron_compete.checkpoint.custom_code.configuration_competesmoe import CompeteSMoEConfig
from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoERotaryEmbedding
from tests.checkpoint.custom_code.models import SIZES


def tables(**changes: Any) -> torch.Tensor:
    """Cosines [1, 24, rotated]."""
    return CompeteSMoERotaryEmbedding(CompeteSMoEConfig(**SIZES | changes))(torch.zeros(1), torch.arange(24)[None])[0]


def test_rotation_is_the_textbook() -> None:
    angles = torch.arange(24.0)[:, None] * 500.0 ** -torch.tensor([0.0, 0.5])
    assert_close(tables(rope_theta=500.0, partial_rotary_factor=0.5)[0], torch.cat((angles, angles), -1).cos())


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
    ids=["transformers 4", "older", "transformers 5"],
)
def test_stretched_rotation_is_not_ignored(changes: dict[str, Any]) -> None:
    assert_close(tables(**changes)[:, ::2], tables(rope_theta=500.0)[:, :12])


@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_other_stretches(kind: str) -> None:
    plain = CompeteSMoERotaryEmbedding(CompeteSMoEConfig(**SIZES))
    stretched = CompeteSMoERotaryEmbedding(
        CompeteSMoEConfig(**SIZES, rope_parameters={"rope_type": kind, "factor": 4.0})
    )
    places = torch.arange(200)[None]  # beyond max_position_embeddings, from which on "dynamic" stretches
    assert not plain(torch.zeros(1), places)[0].equal(stretched(torch.zeros(1), places)[0])


def test_there_and_back() -> None:
    config = CompeteSMoEConfig(
        **SIZES, rope_theta=500.0, partial_rotary_factor=0.5, attention_dropout=0.1, dense_layers=[1],
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    )  # fmt: skip
    again = CompeteSMoEConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert (again.rope_theta, again.partial_rotary_factor, again.attention_dropout) == (500.0, 0.5, 0.1)
    assert again.rope_parameters["factor"] == 2.0
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("change", [{"hidden_act": "tanh"}, {"score_function": "linear"}])
def test_a_configuration_that_means_nothing(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        CompeteSMoEConfig(**change)

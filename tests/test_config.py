"""Settings and their checks."""

import pytest

from megatron_compete.config import CompeteConfig, flag_of
from megatron_compete.errors import CompeteError


def test_defaults_are_the_authors_language_recipe() -> None:
    config = CompeteConfig()
    assert (config.rate, config.max_active_layers, config.warmup_steps) == (0.07, 3, 0)
    assert (config.distill_coeff, config.distill_winner_coeff) == (0.001, 0.2)
    assert (config.diversity_coeff, config.response_balance_coeff, config.router_balance_coeff) == (0.005, 0.005, 0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate", 1.01), ("rate", -0.1), ("rate", float("nan")), ("max_active_layers", 0), ("warmup_steps", -1)]
    + [("score_chunk_tokens", 0), ("diversity_coeff", -0.1), ("distill_winner_coeff", -1.0)],
)
def test_out_of_range_names_flag_and_value(field: str, value: float) -> None:
    with pytest.raises(CompeteError, match=f"{flag_of(field)} {value} is out of range"):
        CompeteConfig(**{field: value})

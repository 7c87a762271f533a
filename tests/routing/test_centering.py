"""Centred responses against numpy's mean and standard deviation."""

import torch

from megatron_compete.routing.centering import response_statistics

T, E = 40, 6


def test_statistics_are_the_means_and_variances_over_valid_tokens() -> None:
    responses = 0.7 + 1e-4 * torch.randn(T, E)
    valid = torch.rand(T) < 0.7
    for mask in (None, valid):
        statistics = response_statistics(responses, mask)
        exact = (responses if mask is None else responses[mask]).double()
        torch.testing.assert_close(statistics.mean_E.double(), exact.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(statistics.variance_E.double(), exact.var(0, unbiased=False), rtol=1e-3, atol=0)


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    responses = torch.randn(T, E)
    parts = responses.split([7, 0, 33])
    packed: list[torch.Tensor] = []
    for part in parts:
        response_statistics(part, gather=lambda vector: packed.append(vector) or vector[None])
    whole = response_statistics(responses)
    for part in parts:
        statistics = response_statistics(part, gather=lambda _: torch.stack(packed))
        torch.testing.assert_close(statistics.mean_E, whole.mean_E)
        torch.testing.assert_close(statistics.variance_E, whole.variance_E)


def test_centred_responses_have_mean_0_and_deviation_1() -> None:
    responses = torch.randn(T, E) * torch.arange(1, E + 1) + 10 * torch.arange(E)
    centred = response_statistics(responses).centre(responses)
    torch.testing.assert_close(centred.mean(0), torch.zeros(E), atol=1e-4, rtol=0)
    torch.testing.assert_close(centred.std(0, unbiased=False), torch.ones(E))
    alike = torch.full((T, E), 3.0)
    assert response_statistics(alike).centre(alike).abs().max() == 0

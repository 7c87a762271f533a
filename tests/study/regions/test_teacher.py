"""The teacher is a function of the seed, its targets are of variance 1, and an expert of twice its rank can be it."""

from itertools import islice

import torch
import torch.nn.functional as F

from megatron_compete.study.regions.teacher import Teacher, relative_loss

TEACHER = Teacher.of_seed(3, size=16, regions=16, rank=8)


def test_everything_is_a_function_of_the_seed() -> None:
    again, other = Teacher.of_seed(3, 16, 16, 8), Teacher.of_seed(4, 16, 16, 8)
    assert torch.equal(TEACHER.maps_RHH, again.maps_RHH) and torch.equal(TEACHER.directions_RH, again.directions_RH)
    assert not torch.equal(TEACHER.maps_RHH, other.maps_RHH)
    first, second = (next(TEACHER.batches(seed, 8)).inputs_NH for seed in (3, 3))
    assert torch.equal(first, second) and not torch.equal(first, next(TEACHER.batches(4, 8)).inputs_NH)


def test_targets_are_what_the_region_of_an_input_says() -> None:
    batch = next(TEACHER.batches(3, 32))
    for input_H, region, target_H in zip(batch.inputs_NH, batch.regions_N, batch.targets_NH):
        assert int((TEACHER.directions_RH @ input_H).argmax()) == int(region)
        assert torch.allclose(TEACHER.maps_RHH[region] @ input_H, target_H, atol=1e-5)


def test_directions_have_length_1_and_targets_variance_1() -> None:
    assert torch.allclose(TEACHER.directions_RH.norm(dim=-1), torch.ones(16))
    variances = [Teacher.of_seed(seed, 16, 16, 8).held_out(seed, 4096).targets_NH.var() for seed in range(20)]
    assert abs(torch.stack(variances).mean() - 1) < 0.1


def test_an_expert_of_twice_the_rank_computes_a_map_exactly() -> None:
    left, values, right = torch.linalg.svd(TEACHER.maps_RHH[0].double())
    assert int((values > 1e-5).sum()) == 8
    fc1 = torch.cat([right[:8], -right[:8]])
    fc2 = torch.cat([left[:, :8] * values[:8], -left[:, :8] * values[:8]], dim=1)
    inputs_NH = torch.randn(64, 16, dtype=torch.float64)
    expected = inputs_NH @ TEACHER.maps_RHH[0].double().T
    assert fc1.shape == (16, 16) and torch.allclose(F.relu(inputs_NH @ fc1.T) @ fc2.T, expected, atol=1e-5)


def test_a_fixed_set_is_read_whole_in_every_epoch_and_in_another_order_each_time() -> None:
    batches = [batch.inputs_NH for batch in islice(TEACHER.batches(3, 16, samples=40), 5)]
    rows = torch.cat(batches)  # two epochs of 40
    epochs = [{tuple(row.tolist()) for row in rows[start : start + 40]} for start in (0, 40)]
    assert len(epochs[0]) == 40 and epochs[0] == epochs[1]
    assert not torch.equal(rows[:40], rows[40:])


def test_held_out_inputs_are_none_of_the_training_s() -> None:
    trained = next(TEACHER.batches(3, 256)).inputs_NH
    assert not (TEACHER.held_out(3, 256).inputs_NH[:, None] == trained[None]).all(-1).any()


def test_the_relative_loss_is_0_for_the_truth_and_1_for_nothing() -> None:
    targets_NH = TEACHER.held_out(3, 512).targets_NH
    assert relative_loss(targets_NH, targets_NH) == 0.0
    assert relative_loss(torch.zeros_like(targets_NH), targets_NH) == 1.0
    assert abs(relative_loss(0.5 * targets_NH, targets_NH) - 0.25) < 1e-6

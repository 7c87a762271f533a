"""Scalars by layer."""

from pathlib import Path

import numpy as np

from megatron_compete.cluster.queue import Queue
from megatron_compete.report.event_files import Curve
from megatron_compete.report.layers import DeadExperts, by_layer, dead_since, layer_map
from megatron_compete.report.run import RunReader
from tests.report.made_runs import scalar, write_events


def curve(values: list[float], steps: list[int] | None = None) -> Curve:
    places = np.arange(1, len(values) + 1) if steps is None else np.array(steps)
    return Curve(places, np.array(values, np.float64), places.astype(np.float64))


def test_tags_of_ours_and_megatrons_name_layers_from_one(tmp_path: Path) -> None:
    tags = ["competition/agreement/layer-3", "competition/agreement", "moe/load_balancing_loss_layer_0", "lm loss"]
    write_events(tmp_path, [scalar(tag, 1.0, 1) for tag in tags])
    (run,) = RunReader([tmp_path]).read(Queue(False, {}))
    assert by_layer(run) == {"competition/agreement": {3: tags[0]}, "moe/load_balancing_loss": {1: tags[2]}}


def test_a_map_has_means_and_gaps_by_layer() -> None:
    cells = layer_map({2: curve([1, 3, 5, 7]), 1: curve([4.0, np.nan], [1, 4])}, columns=2)
    assert cells.layers == [1, 2] and cells.steps_C.tolist() == [1.5, 3.5]
    assert np.array_equal(cells.values_LC, [[4, np.nan], [2, 6]], equal_nan=True)
    assert layer_map({1: curve([1, 3, 5, 7])}, columns=2, of="greatest").values_LC.tolist() == [[3, 7]]


def test_a_map_has_no_more_columns_than_steps() -> None:
    assert layer_map({1: curve([1.0])}, columns=200).values_LC.shape == (1, 1)
    assert layer_map({1: curve([1, 2, 3])}, columns=200).steps_C.tolist() == [1, 2, 3]


def test_dead_since_the_last_step_without() -> None:
    curves = {1: curve([0, 1, 0, 2, 1]), 2: curve([0, 0]), 3: curve([3, 0]), 4: curve([2, 2]), 5: curve([np.nan])}
    assert dead_since(curves) == [
        DeadExperts(4, now=2, since=1, most=2, at=1),
        DeadExperts(1, now=1, since=4, most=2, at=4),
        DeadExperts(3, now=0, since=None, most=3, at=1),
    ]

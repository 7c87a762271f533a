"""Ranks of Megatron's groups, in layouts that can be written down by hand."""

from megatron_compete.layout.sizes import ParallelSizes

SIZES = ParallelSizes(world=8, tp=2, pp=2, vp=1, cp=1, ep=2, etp=1)


def test_what_is_left_is_data_parallel() -> None:
    assert (SIZES.dp, SIZES.edp) == (2, 2)  # 8 / (2 * 2) ranks hold a dense weight, 8 / (1 * 2 * 2) an expert


def test_ranks_of_every_group() -> None:
    """Tensor parallel ranks are neighbours, stages are halves of the world, experts are split over neighbours."""
    groups = {name: SIZES.groups(name).tolist() for name in ("tp", "dp-cp", "pp", "etp", "ep", "edp")}
    assert groups["tp"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert groups["dp-cp"] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert groups["pp"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert groups["etp"] == [[rank] for rank in range(8)]
    assert groups["ep"] == groups["tp"]
    assert groups["edp"] == groups["dp-cp"]


def test_stages_before_data_parallel_ranks() -> None:
    """With `--use-tp-pp-dp-mapping` the stages of a model are next to one another."""
    other = ParallelSizes(world=8, tp=2, pp=2, vp=1, cp=1, ep=1, etp=2, order="tp-cp-ep-pp-dp")
    assert other.groups("pp").tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert other.groups("tp").tolist() == other.groups("etp").tolist()

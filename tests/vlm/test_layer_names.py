"""Layers by their part."""

from megatron_compete.vlm.layer_names import layer_name


def test_each_part_counts_from_one() -> None:
    assert [layer_name(number, 2) for number in range(1, 6)] == ["tower 1", "tower 2", "projector", "decoder 1", "decoder 2"]  # fmt: skip
    assert layer_name(3, None) == "3"

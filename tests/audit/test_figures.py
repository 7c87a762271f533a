"""Figures as files: which there are, that something is drawn in them, and that nothing breaks them."""

import dataclasses
from pathlib import Path

import matplotlib.image
import pytest

from megatron_compete.audit.figures import write_figures
from megatron_compete.common.errors import CompeteError
from tests.audit.audits import audit_of, layer_audit, small_audit
from tests.audit.test_page import broken_layer, large_layer


def test_every_part_has_its_figure(tmp_path: Path) -> None:
    found = write_figures(small_audit(3), tmp_path / "figures")
    assert [path.name for path in found] == ["load.png", "agreement.png", "regret.png", "similarity.png", "against.png"]
    for path in found:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] > 1000 and (pixels[..., :3] < 0.9).any(axis=2).mean() > 0.005, path.name


def test_a_part_that_was_not_measured_has_none(tmp_path: Path) -> None:
    audit = audit_of(layers=[layer_audit(0, competition=None, regret=None, geometry=None, against=None)])
    assert [path.name for path in write_figures(audit, tmp_path)] == ["load.png"]
    assert write_figures(dataclasses.replace(audit, layers=[]), tmp_path / "none") == []


@pytest.mark.parametrize("layers", [[broken_layer(0)], [layer_audit(0), broken_layer(1)], [layer_audit(5)], [large_layer(layer) for layer in range(70)]])  # fmt: skip
def test_a_single_layer_many_and_broken_numbers_are_drawn(layers, tmp_path: Path) -> None:
    assert len(write_figures(audit_of(layers=layers), tmp_path)) == 5


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompeteError, match=r"load\.png cannot be written"):
        write_figures(small_audit(1), tmp_path / "file")

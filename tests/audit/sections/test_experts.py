"""Sections of pairs of experts, of the router's weights and of another checkpoint."""

import dataclasses
import math

import numpy as np
import torch

from megatron_compete.audit.results import Against, Experts
from megatron_compete.audit.sections.experts import PAIR_CELLS, PAIR_MAPS, against, experts, router
from tests.audit.audits import layer_audit, matrices, small_audit


def maps_of(section) -> list:
    """Small maps of the section, after its first figure."""
    return [figure for row in section.figures[1:] for figure in row.children]


def cells(figure) -> np.ndarray:
    return np.asarray(figure.renderers[0].data_source.data["image"][0])


def test_maps_of_pairs_leave_out_an_expert_beside_itself() -> None:
    maps = maps_of(experts(small_audit(2), matrices(2)))
    assert [one.title.text for one in maps] == [
        "Layer 0: outputs", "Layer 0: co-activation", "Layer 1: outputs", "Layer 1: co-activation",
    ]  # fmt: skip
    assert np.isnan(np.diagonal(cells(maps[0]))).all() and (cells(maps[0])[0, 1:] == 0.25).all()


def test_many_layers_and_experts_are_some_layers_and_means() -> None:
    wide = {f"{name}.{layer}": torch.rand(200, 200) for name in ("output_similarity", "coactivation") for layer in range(30)}  # fmt: skip
    maps = maps_of(experts(small_audit(30), wide))
    assert len(maps) == 2 * PAIR_MAPS and cells(maps[0]).shape == (PAIR_CELLS, PAIR_CELLS)
    assert maps[0].title.text.startswith("Layer 0:") and maps[-1].title.text.startswith("Layer 29:")
    assert np.isfinite(cells(maps[0])).all()


def test_without_matrices_there_are_no_maps() -> None:
    section = experts(small_audit(1), {})
    assert len(section.figures) == 1 and "maps" not in section.text


def test_pairs_stand_in_one_table() -> None:
    audit = small_audit(1)
    audit.layers[0] = layer_audit(0, geometry=Experts(0.1, 0.0, 0.0, 3.0, [(0, 2, 0.4), (1, 3, 0.7), (0, 1, math.nan)]))
    (table,) = experts(audit, {}).tables
    assert table.rows == [(0, "1 and 3", "0.700", 0, "0 and 1", "0.900"), (0, "0 and 2", "0.400", "", "", "")]


def test_moved_experts_are_listed() -> None:
    audit = small_audit(2)
    audit.layers[1] = layer_audit(1, against=Against(1.0, 0.0, 0.0, 0.0, [0, 1, 2, 3], 0))
    (table,) = against(audit).tables
    assert table.rows == [(0, "2 of 4", "expert 1 → 2, 2 → 1")]
    audit.layers[0] = layer_audit(0, against=audit.layers[1].against)
    assert not against(audit).tables and "like those of the same number" in against(audit).text


def test_parts_that_were_not_measured_are_a_line() -> None:
    audit = dataclasses.replace(small_audit(0), layers=[layer_audit(0, geometry=None, against=None)])
    for section in (experts(audit, {}), router(audit), against(audit)):
        assert section.text.endswith("not part of this audit.") and not section.figures

"""Megatron's logits against transformers', for every family, from checkpoints that four layouts wrote."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.families import FAMILIES
from tests.checkpoint import gpt
from tests.ranks import run_rank, run_ranks

LAYOUTS: dict[str, dict[str, int]] = {
    "one rank": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2-vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "tp2-ep2": {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1},
}
SLOW = ("pp2", "tp2-ep2")
"""Repeated by others here (stages in chunks) and by tests/checkpoint/test_export.py (experts on several ranks)."""

WITH_EXPERTS = {name: changes for name, changes in gpt.FAMILIES.items() if changes.get("num_experts", 4)}
WITHOUT_BIAS = {name: changes for name, changes in gpt.FAMILIES.items() if not changes.get("add_bias_linear")}
"""Megatron splits no experts that have one."""


def families_of(layout: str) -> dict[str, dict[str, Any]]:
    """Models that the layout can hold."""
    if "ep" in layout:
        return WITH_EXPERTS
    return WITHOUT_BIAS if layout == "tp2" else gpt.FAMILIES


MODELS = gpt.FAMILIES | {name: changes for name, (_, changes) in gpt.VARIANTS.items()}

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Folder of the checkpoints that one rank wrote, and the models' logits on `gpt.tokens()`."""
    folder = tmp_path_factory.mktemp("families")
    return folder, run_rank(gpt.save_all, str(folder / "one rank"), MODELS)


@pytest.fixture(scope="module")
def saved(logits: tuple[Path, dict[str, torch.Tensor]]) -> Saved:
    """Folder of a layout's checkpoints, one a family."""
    folder, _ = logits

    @cache
    def write(layout: str) -> Path:
        if LAYOUTS[layout]:
            source, target = str(folder / "one rank"), str(folder / layout)
            run_ranks(2, gpt.resave_all, source, target, families_of(layout), LAYOUTS[layout])
        return folder / layout

    return write


def check(checkpoint: Path, output: Path, family: str, wanted: torch.Tensor) -> None:
    exported = export_to_hf(Export(checkpoint, output, family=gpt.named(family)))
    assert exported.family is FAMILIES[family]
    options: dict[str, Any] = {"trust_remote_code": bool(exported.family.code)}
    model, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True, **options)
    assert type(model).__name__ == exported.family.architecture
    assert not any(report[kind] for kind in ("missing_keys", "mismatched_keys"))
    layers = model.config.num_hidden_layers
    assert all(re.match(rf"model\.layers\.[{layers}-9]\.", name) for name in report["unexpected_keys"])  # of MTP
    with torch.no_grad():
        found = model.eval()(gpt.tokens()).logits
    wanted = wanted[..., : gpt.VOCAB]
    assert wanted.std() > 0.5
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.argmax(-1).equal(wanted.argmax(-1))


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        pytest.param(family, layout, marks=[pytest.mark.slow] * (layout in SLOW))
        for layout in LAYOUTS
        for family in families_of(layout)
    ],
)
def test_logits_are_megatrons(
    logits: tuple[Path, dict[str, torch.Tensor]], saved: Saved, tmp_path: Path, family: str, layout: str
) -> None:
    check(saved(layout) / family, tmp_path / "hf", family, logits[1][family])


@pytest.mark.parametrize("variant", gpt.VARIANTS)
def test_logits_of_variants(
    logits: tuple[Path, dict[str, torch.Tensor]], saved: Saved, tmp_path: Path, variant: str
) -> None:
    check(saved("one rank") / variant, tmp_path / "hf", gpt.VARIANTS[variant][0], logits[1][variant])

"""The whole way: other forms and layouts of one model, several ranks, a kill."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_compete.audit import parts
from megatron_compete.audit.command import AuditOptions
from megatron_compete.audit.competition import CompetitionPart
from megatron_compete.audit.results import Audit, read_audit, read_matrices
from megatron_compete.audit.run import run_audit
from megatron_compete.common.errors import CompeteError
from tests.audit.models import dataset
from tests.checkpoint import gpt, hf_models
from tests.ranks import run_rank, run_ranks

FAMILIES = ("mixtral", "competesmoe")
LAYOUT = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2}


def options(checkpoint: Path, out: Path, **more: Any) -> AuditOptions:
    words = tuple(
        dataset(out.parent / name, documents=4, tokens=40, most=most)
        for name, most in (("books", 120), ("code", gpt.VOCAB))
    )
    small = {
        "tokens": 192,
        "competition_tokens": 96,
        "regret_tokens": 64,
        "seq_length": 16,
        "micro_batch_size": 3,
        "device": "cpu",
    }
    return AuditOptions((checkpoint,), out, words, **(small | more))


def numbers(audit: Audit) -> list[float]:
    """All that was measured, but what it cost."""

    def flat(value: Any) -> list[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            return [number for one in value for number in flat(one)]
        return [float(value)] if isinstance(value, int | float) else []

    return flat(dataclasses.asdict(dataclasses.replace(audit, cost={})))


@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers_of_a_checkpoint_its_export_and_another_layout(family: str, tmp_path: Path) -> None:
    from megatron_compete.checkpoint.export import Export, export_to_hf

    model = {family: gpt.FAMILIES[family]}
    run_rank(gpt.save_all, str(tmp_path / "one"), model)
    run_ranks(2, gpt.resave_all, str(tmp_path / "one"), str(tmp_path / "two"), model, LAYOUT)
    export_to_hf(Export(tmp_path / "one" / family, tmp_path / "hf"))
    found = {
        name: run_audit(options(path, tmp_path / f"audit-{name}"))
        for name, path in {
            "one": tmp_path / "one" / family,
            "two": tmp_path / "two" / family,
            "hf": tmp_path / "hf",
        }.items()
    }
    wanted = numbers(found["one"])
    assert len(wanted) > 100
    for other in ("two", "hf"):
        assert numbers(found[other]) == pytest.approx(wanted, abs=1e-5)
    assert read_audit(tmp_path / "audit-one") == found["one"]
    files = {path.name for path in (tmp_path / "audit-one").iterdir()}
    assert {"audit.html", "audit.json", "audit.safetensors"} <= files and "unfinished" not in files
    assert any(name.endswith(".png") for name in files)


def audit_on_rank(checkpoint: str, out: str) -> Audit:
    torch.set_num_threads(1)
    return run_audit(options(Path(checkpoint), Path(out)))


def test_several_ranks_find_the_same(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path / "hf", "qwen3_moe")
    alone = run_audit(options(folder, tmp_path / "alone"))
    together = run_ranks(2, audit_on_rank, str(folder), str(tmp_path / "together"))
    assert numbers(together[0]) == numbers(together[1]) == pytest.approx(numbers(alone), abs=1e-9)
    assert read_matrices(tmp_path / "together").keys() == read_matrices(tmp_path / "alone").keys()


def test_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hf_models.save(tmp_path / "hf", "qwen3_moe")
    whole = run_audit(options(folder, tmp_path / "whole"))
    monkeypatch.setattr(parts, "SAVE_SECONDS", 0.0)
    step, done = CompetitionPart.step, list[int]()

    def killed(self: CompetitionPart, unit: int) -> None:
        if unit == 1 and not done:
            raise KeyboardInterrupt
        done.append(unit)
        step(self, unit)

    monkeypatch.setattr(
        CompetitionPart, "step", lambda self, unit: step(self, unit) if unit == 0 else killed(self, unit)
    )
    with pytest.raises(KeyboardInterrupt):
        run_audit(options(folder, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "audit.json").exists()
    monkeypatch.setattr(CompetitionPart, "step", lambda self, unit: (done.append(unit), step(self, unit))[1])
    again = run_audit(options(folder, tmp_path / "killed"))
    assert done == [1]
    assert numbers(again) == numbers(whole)


def test_against_another_checkpoint(tmp_path: Path) -> None:
    folder, other = (hf_models.save(tmp_path / name, "qwen3_moe") for name in ("hf", "other"))
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.gate.weight"] *= -1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    found = run_audit(options(folder, tmp_path / "audit", against=other, competition_tokens=0))
    first, second = (layer.against for layer in found.layers)
    assert first is not None and (first.same_choice, first.changed_tokens, first.router_drift) == (1, 0, 0)
    assert second is not None and second.same_choice == 0 and second.changed_tokens == 1  # the other two of four
    assert second.router_drift == pytest.approx(2) and second.expert_drift == 0 and second.moved == 0
    assert found.against == str(other) and found.layers[0].competition is None

    third = hf_models.save(tmp_path / "third", "qwen3_moe", num_experts=8)
    with pytest.raises(CompeteError, match=r"--against .*third has other MoE layers, experts or experts per token"):
        run_audit(options(folder, tmp_path / "audit2", against=third))


def test_another_tokenizers_ids_are_refused(tmp_path: Path) -> None:
    folder = hf_models.save(tmp_path / "hf", "qwen3_moe", vocab_size=100)
    with pytest.raises(
        CompeteError, match=r"has token id \d+, and .*hf embeds 100: it was made with another tokenizer"
    ):
        run_audit(options(folder, tmp_path / "audit"))

"""Parts as mixtures: biases count once, the router is any, and which models are refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.vlm.upcycling import Within
from megatron_compete.common.errors import CompeteError
from tests.checkpoint.vlm import llava_models


def opened(folder: Path) -> TorchDistCheckpoint:
    return TorchDistCheckpoint(find_checkpoint(folder))


def mlp(x: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, fc1, bias1)), fc2, bias2)


def mixture(x_TH: Tensor, router: Tensor, experts: list[Tensor], k: int) -> Tensor:
    """Every expert computed; K weights from the softmax over the K largest logits."""
    logits_TE = x_TH @ router.T
    top_TK, chosen_TK = logits_TE.topk(k, dim=-1)
    weights_TE = torch.zeros_like(logits_TE).scatter(1, chosen_TK, top_TK.softmax(-1))
    outputs_TEH = torch.stack([mlp(x_TH, *one) for one in zip(*experts, strict=True)], dim=1)
    return (weights_TE.unsqueeze(-1) * outputs_TEH).sum(1)


@pytest.mark.parametrize(
    "how", [Upcycling(4), Upcycling(8, granularity=2), Upcycling(8, top_k=4, granularity=4)], ids=str
)
@pytest.mark.parametrize("part", ["vision_model.decoder.layers.mlp.", "vision_projection.encoder."])
def test_experts_with_biases_sum_to_the_dense_mlp(how: Upcycling, part: str, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source")
    import_checkpoint(Import(source, tmp_path / "dense"))
    import_checkpoint(Import(tmp_path / "dense", tmp_path / "moe", source="megatron", upcycling=how))
    dense, moe = (Within(opened(tmp_path / name), part) for name in ("dense", "moe"))
    names = [f"linear_fc{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
    at = (1,) if "layers" in part else ()
    x = torch.randn(30, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = mlp(x, *(dense.read(name, at).double() for name in names))
    experts = [moe.read(f"experts.experts.{name}", at).double() for name in names]
    for seed in range(2):  # the router's own rows, and any others that copies of an MLP share
        router = moe.read("router.weight", at).double()
        if seed:
            rows = torch.randn(
                how.experts // how.granularity, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
            )
            router = rows.repeat_interleave(how.granularity, 0)
        torch.testing.assert_close(mixture(x, router, experts, how.k), one, atol=1e-12, rtol=0)


def test_a_checkpoint_is_upcycled_as_its_folder_is(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", "clip", "mixtral")
    how = Upcycling(4, experts_in=("vision",))
    import_checkpoint(Import(source, tmp_path / "dense"))
    import_checkpoint(Import(source, tmp_path / "one", upcycling=how))
    import_checkpoint(Import(tmp_path / "dense", tmp_path / "other", source="megatron", upcycling=how))
    one, other = opened(tmp_path / "one"), opened(tmp_path / "other")
    assert one.tensors == other.tensors and all(one.read(key).equal(other.read(key)) for key in one.tensors)
    assert one.arguments == other.arguments | {
        name: one.arguments[name] for name in ("tokenizer_model", "image_processor")
    }
    assert one.arguments["experts_in"] == ["vision", "language"]
    assert (one.arguments["num_experts"], one.arguments["vision_num_experts"], one.arguments["vision_router_topk"]) == (
        4,
        4,
        2,
    )


@pytest.mark.parametrize(
    ("family", "how", "message"),
    [
        ("llama", Upcycling(6, granularity=3), "--granularity 3 does not divide the MLP's width 40"),
        ("qwen2_moe", Upcycling(4), "the language model has --moe-router-pre-softmax True, and tower and projector would"),
        ("mixtral", Upcycling(4, experts_in=("language",)), "--experts-in language: the checkpoint has experts in language already"),
    ],
)  # fmt: skip
def test_what_cannot_be_upcycled(family: str, how: Upcycling, message: str, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", "siglip", family)
    with pytest.raises(CompeteError, match=message):
        import_checkpoint(Import(source, tmp_path / "megatron", upcycling=how))


def test_all_parts_at_once(tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source")
    import_checkpoint(Import(source, tmp_path / "tower", upcycling=Upcycling(4, experts_in=("vision",))))
    again = Import(
        tmp_path / "tower", tmp_path / "both", source="megatron", upcycling=Upcycling(4, experts_in=("projector",))
    )
    with pytest.raises(
        CompeteError, match="has experts in vision already; upcycle all parts of the dense model at once"
    ):
        import_checkpoint(again)


def test_what_will_not_be_exported_is_said_before_it_is_trained(tmp_path: Path) -> None:
    """Biases of queries beside experts have no class of transformers' without shared experts."""
    source = llava_models.save(tmp_path / "source", "siglip", "qwen2")
    for part, said in (("language", True), ("vision", False)):
        how = Upcycling(4, experts_in=(part,))  # type: ignore[arg-type]
        notes = import_checkpoint(Import(source, tmp_path / part, upcycling=how)).notes
        assert any("it trains, and cannot be exported: the language model is none of" in note for note in notes) is said

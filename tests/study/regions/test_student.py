"""The student is Megatron-Core's layer: its function by hand, its routers, its initial weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.study.regions.arguments import parse_arguments
from megatron_compete.study.regions.growth import save_weights
from megatron_compete.study.regions.student import build_student, transformer_config
from megatron_compete.study.regions.train import start_process
from tests.ranks import run_rank

INPUTS_TH = torch.randn(32, 16, generator=torch.Generator().manual_seed(5))
REGIONS_T = torch.arange(32) % 16
PRE = "--moe-router-pre-softmax"


def outputs_of(*lines: str) -> list[tuple[Tensor, dict[str, Tensor]]]:
    start_process()
    found = []
    for line in lines:
        student, _ = build_student(parse_arguments(line.split()), lambda: 0)
        with torch.no_grad():
            found.append((student.eval()(INPUTS_TH, REGIONS_T), student.weights()))
    return found


def of_experts(weights: dict[str, Tensor]) -> Tensor:
    """Outputs [T, E, H] of all experts."""
    hidden = F.relu(torch.einsum("th,efh->tef", INPUTS_TH, weights["fc1"]))
    return torch.einsum("tef,ehf->teh", hidden, weights["fc2"])


def test_every_router_sends_the_same_experts_where_it_says() -> None:
    lines = [f"--router oracle {PRE}", f"--router topk {PRE}", f"--router topk --moe-router-topk 16 {PRE}",
             "--compete-rate 1 --moe-router-topk 2"]  # fmt: skip
    (oracle, weights), (top_1, of_top_1), (dense, _), (top_2, _) = run_rank(outputs_of, *lines)
    assert all(torch.equal(weights[name], of_top_1[name]) for name in weights)
    outputs_TEH = of_experts(weights)
    logits_TE = INPUTS_TH @ weights["router.weight"].T
    probs_TE = logits_TE.softmax(-1)
    rows = torch.arange(32)
    assert torch.allclose(oracle, outputs_TEH[rows, REGIONS_T], atol=1e-5)
    best_T = probs_TE.argmax(-1)
    assert torch.allclose(top_1, probs_TE[rows, best_T, None] * outputs_TEH[rows, best_T], atol=1e-5)
    assert torch.allclose(dense, torch.einsum("te,teh->th", probs_TE, outputs_TEH), atol=1e-5)
    chosen = logits_TE.topk(2)
    shares = chosen.values.softmax(-1)  # evaluation never competes
    expected = sum(shares[:, k, None] * outputs_TEH[rows, chosen.indices[:, k]] for k in range(2))
    assert torch.allclose(top_2, expected, atol=1e-5)


def test_weights_are_a_function_of_the_seed() -> None:
    one, again, other = run_rank(outputs_of, *(f"--router topk {PRE} --seed {seed}" for seed in (1, 1, 2)))
    assert torch.equal(one[1]["fc1"], again[1]["fc1"]) and not torch.equal(one[1]["fc1"], other[1]["fc1"])
    assert float(one[1]["fc1"].std()) == pytest.approx(0.25, rel=0.05)


def test_a_student_grows_from_another(tmp_path: Path) -> None:
    ((_, small),) = run_rank(outputs_of, f"--router topk {PRE} --num-experts 1 --seed 1")
    save_weights(small, tmp_path / "w.pt")
    line = f"--router topk {PRE} --num-experts 4 --seed 1 --initial {tmp_path / 'w.pt'} --grow-experts copies --grow-router random"
    ((_, found),) = run_rank(outputs_of, line)
    assert torch.equal(found["fc2"], small["fc2"].expand(4, -1, -1))
    assert torch.equal(found["router.weight"][:1], small["router.weight"])


def test_what_megatron_core_refuses_is_one_line() -> None:
    with pytest.raises(
        CompeteError, match=r"Megatron-Core refuses these arguments: .*--moe-router-pre-softmax when topk is 1"
    ):
        transformer_config(parse_arguments(["--router", "topk"]))

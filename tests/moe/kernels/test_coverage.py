"""What the kernels do not cover: refused with the reason where they are asked for, said once where they are not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.kernels import choice, coverage
from megatron_compete.moe.kernels.coverage import NotCovered, expert_form
from megatron_compete.moe.scoring import PlainScorer, choose_scorer
from megatron_compete.moe.validation import check_supported
from megatron_compete.routing.responses import softplus_response
from tests.moe import layouts
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout, transformer_config
from tests.moe.reference import Weights
from tests.ranks import run_rank

NOT_COVERED: dict[str, dict[str, Any]] = {
    "experts have biases; --disable-bias-linear leaves them out": {"add_bias_linear": True},
    "--expert-tensor-parallel-size 2: a rank has partial outputs": {"expert_tensor_parallel_size": 2},
    "the experts' activation is tanh": {"activation_func": torch.tanh},
    "gates are clamped": {"activation_func_clamp_value": 7.0},
    "gates have an offset": {"glu_linear_offset": 1.0},
    "gate and up are interleaved": {"moe_mlp_glu_interleave_size": 32},
    "--hidden-size 18 is not a multiple of 4": {"hidden_size": 18, "num_attention_heads": 2},
    "--moe-ffn-hidden-size 30 is not a multiple of 4": {"moe_ffn_hidden_size": 30},
}


def config(**settings: Any) -> Any:
    from types import SimpleNamespace

    plain = transformer_config(Layout())
    return SimpleNamespace(**{**vars(plain), **settings})  # some of these Megatron refuses without Transformer Engine


@pytest.mark.parametrize("reason", NOT_COVERED)
def test_what_is_not_covered_has_a_reason(reason: str) -> None:
    with pytest.raises(NotCovered, match=reason.split(";")[0].replace("(", r"\(")):
        expert_form(config(**NOT_COVERED[reason]))


def test_fp8_wants_rows_of_16_bytes() -> None:
    expert_form(config(moe_ffn_hidden_size=24))
    with pytest.raises(NotCovered, match="--moe-ffn-hidden-size 24 is not a multiple of 16"):
        expert_form(config(moe_ffn_hidden_size=24), fp8=True)


def test_forms_are_those_of_the_settings() -> None:
    from megatron.core.activations import squared_relu

    gated = expert_form(config())
    assert (gated.hidden, gated.ffn, gated.activation, gated.gated, gated.fc1_rows) == (
        HIDDEN,
        FFN,
        "silu",
        True,
        2 * FFN,
    )
    assert gated.round_gate and not expert_form(config(bias_activation_fusion=True)).round_gate
    two_matrices = expert_form(config(gated_linear_unit=False, activation_func=squared_relu))
    assert (two_matrices.activation, two_matrices.fc1_rows) == ("squared_relu", FFN)
    gelu = [expert_form(config(activation_func=F.gelu, use_te_activation_func=te)).activation for te in (False, True)]
    assert gelu == ["gelu", "gelu_tanh"]


@pytest.mark.parametrize("kernel", ["fused", "fused-fp8"])
def test_asked_for_and_not_covered_is_one_line(kernel: str) -> None:
    settings = CompeteConfig(score_kernel=kernel)
    with pytest.raises(
        CompeteError, match=f"--compete-score-kernel {kernel} cannot be used: .*partial outputs.*Give auto or plain"
    ):
        check_supported(transformer_config(Layout(world=2, etp=2)), settings)
    check_supported(transformer_config(Layout(world=2, etp=2)), CompeteConfig())


def test_without_a_gpu_fused_is_refused_and_auto_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompeteError, match="--compete-score-kernel fused cannot be used: there is no GPU"):
        choice.check_score_device("fused")
    choice.check_score_device("auto")
    experts = torch.nn.Linear(1, 1)
    scorer = choose_scorer("auto", None, experts, softplus_response, None, torch.zeros(1, 1))  # type: ignore[arg-type]
    assert isinstance(scorer, PlainScorer)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(NotCovered, match=r"compute capability 8.0, and the tiles need 9.0"):
        coverage.check_device()


class _OnGpu:
    """What `choose_scorer` asks of tokens, without a GPU."""

    is_cuda = True
    dtype = torch.float32


def chosen() -> dict[str, Any]:
    """The scorers of layers as built, and with experts that are not as the settings promise."""
    layouts.initialize(Layout())
    said: list[str] = []
    choice.log_single_rank = lambda logger, level, message: said.append(message)

    def choose(kernel: str, change: Any = None, reduction: Any = softplus_response) -> str:
        layer = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), CompeteConfig())
        if change:
            change(layer.experts.local_experts[1])
        try:
            tokens: Any = _OnGpu()
            return type(choose_scorer(kernel, layer.config, layer.experts, reduction, layer.groups, tokens)).__name__
        except CompeteError as error:
            return str(error)

    def to_bf16(expert: Any) -> None:
        expert.linear_fc2.weight.data = expert.linear_fc2.weight.data.bfloat16()

    def unaligned(expert: Any) -> None:
        weight = expert.linear_fc1.weight
        weight.data = torch.empty(weight.numel() + 1)[1:].view(weight.shape)

    def of_another_kind(expert: Any) -> None:
        class Quantized(torch.Tensor): ...

        del expert.linear_fc1.weight
        expert.linear_fc1.weight = torch.zeros(2 * FFN, HIDDEN).as_subclass(Quantized)

    def own(outputs: torch.Tensor) -> torch.Tensor:
        return outputs.sum(-1)

    return {
        "plain": choose("plain"), "auto": choose("auto"), "fused": choose("fused"), "own": choose("fused", reduction=own),
        "bf16": choose("fused", to_bf16), "unaligned": choose("fused", unaligned), "kind": choose("fused", of_another_kind),
        "auto-unaligned": [choose("auto", unaligned) for _ in range(3)], "said": said,
    }  # fmt: skip


def test_the_choice_looks_at_the_experts_and_speaks_once() -> None:
    scorers = run_rank(chosen)
    assert (scorers["plain"], scorers["auto"], scorers["fused"]) == ("PlainScorer", "FusedScorer", "FusedScorer")
    assert "the kernels do not have the response own" in scorers["own"]
    assert "a weight is torch.bfloat16" in scorers["bf16"]
    assert "not aligned to 16 bytes" in scorers["unaligned"]
    assert "weights are held as Quantized" in scorers["kind"]
    assert scorers["auto-unaligned"] == ["DirectScorer"] * 3
    fallbacks = [message for message in scorers["said"] if "not the fused kernels" in message]
    assert len(fallbacks) == 1 and "not aligned" in fallbacks[0]
    assert len(scorers["said"]) == 2  # and that they are used

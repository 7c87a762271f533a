import pytest
import torch
from torch import nn

from megatron_compete.audit.layers import Call, MoeLayer, find_layers, probing, sending
from megatron_compete.checkpoint.custom_code.configuration_competesmoe import CompeteSMoEConfig
from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoEForCausalLM
from megatron_compete.common.errors import CompeteError
from megatron_compete.routing.utility import utility
from tests.audit.models import FAMILIES, audited, make, text, tiny
from tests.checkpoint.custom_code.models import SIZES

NUMBERS = {"qwen3_next": [0, 2, 3], "nemotron_h": [1, 5], "deepseek_v3": [1], "deepseek_v2": [1], "glm4_moe": [1]}
IDS = text().ids_SL


def own() -> nn.Module:
    torch.manual_seed(1)
    return CompeteSMoEForCausalLM(CompeteSMoEConfig(**SIZES)).eval().requires_grad_(False)


def models() -> list[str]:
    return [*FAMILIES, "competesmoe"]


def build(family: str) -> nn.Module:
    return own() if family == "competesmoe" else make(family)


def calls_of(module: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, dict[MoeLayer, Call]]:
    calls: dict[MoeLayer, Call] = {}
    layers = find_layers(module, "tiny")
    with (
        torch.no_grad(),
        sending({layer: lambda call, layer=layer: calls.__setitem__(layer, call) for layer in layers}),
    ):  # type: ignore[misc]
        logits = module(ids).logits
    return logits, calls


@pytest.mark.parametrize("family", models())
def test_layers_are_found_and_watching_changes_nothing(family: str) -> None:
    module = build(family)
    ids = IDS[:, :-1] % 64
    with torch.no_grad():
        plain = module(ids).logits
    logits, calls = calls_of(module, ids)
    assert torch.equal(logits, plain)
    layers = list(calls)
    assert [layer.number for layer in layers] == NUMBERS.get(family, list(range(module.config.num_hidden_layers)))
    for layer, call in calls.items():
        assert call.logits_TE.shape == (ids.numel(), layer.count)
        assert call.choices_TK.shape == call.weights_TK.shape == (ids.numel(), layer.top_k)


@pytest.mark.parametrize("family", models())
def test_all_outputs_mix_to_what_the_layer_answers(family: str) -> None:
    module = build(family)
    _, calls = calls_of(module, IDS[:, :-1] % 64)
    for layer, call in calls.items():
        with torch.no_grad():
            outputs_ETH = layer.all_outputs(call.hidden_TH, call.weights_TK.dtype)
            answer_TH = layer.experts.forward(call.hidden_TH, call.choices_TK, call.weights_TK)
        chosen_TKH = outputs_ETH[call.choices_TK, torch.arange(len(call.hidden_TH))[:, None]]
        mixed_TH = (chosen_TKH * call.weights_TK[..., None]).sum(1)
        torch.testing.assert_close(mixed_TH, answer_TH, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", models())
def test_probes_have_the_gradient_of_the_mixture(family: str) -> None:
    """An expert's output times it is what autograd says of that expert's weight."""
    model = audited(build(family))
    ids = IDS % 64
    layer, calls = model.layers[0], []

    def free_weights(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(call)
        return call.choices_TK, call.weights_TK.requires_grad_()

    with sending({layer: free_weights}), probing([layer]) as probes, torch.enable_grad():
        loss = model.losses(ids).sum()
    (call,) = calls
    gradient_TH, wanted_TK = torch.autograd.grad(loss, [probes[layer], call.weights_TK])
    with torch.no_grad():
        outputs_ETH = layer.all_outputs(call.hidden_TH, call.weights_TK.dtype)
    utilities_TE = utility(outputs_ETH, gradient_TH).T
    torch.testing.assert_close(utilities_TE.gather(1, call.choices_TK), wanted_TK, atol=1e-5, rtol=1e-4)


def test_tokens_go_where_they_are_sent() -> None:
    model = tiny("qwen3_moe")
    layer = model.layers[1]

    def to_the_last(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(call.choices_TK[:, :1], layer.count - 1), call.weights_TK.sum(-1, keepdim=True)

    with torch.no_grad():
        plain = model.losses(IDS)
        with sending({layer: to_the_last}):
            sent = model.losses(IDS)
        for parameter in layer.experts.parameters():  # now all experts are the last one, wherever a token goes
            parameter.data[:] = parameter.data[-1:].clone()
        alike = model.losses(IDS)
    assert not torch.allclose(plain, sent)
    torch.testing.assert_close(sent, alike, atol=1e-4, rtol=0)


def test_experts_weights_are_all_of_them() -> None:
    for module in (make("gpt_oss"), own()):
        layer = find_layers(module, "tiny")[0]
        numbers = sum(flat.shape[1] for flat in layer.expert_weights()) * layer.count
        assert all(len(flat) == layer.count for flat in layer.expert_weights())
        assert numbers == sum(parameter.numel() for parameter in layer.experts.parameters())


def test_a_dense_model_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.checkpoint.hf_models import DECODER

    with pytest.raises(
        CompeteError, match=r"^dense: LlamaForCausalLM has no mixture-of-experts layers: there is nothing to audit$"
    ):
        find_layers(LlamaForCausalLM(LlamaConfig(**DECODER)), "dense")


def test_another_form_of_block_is_refused() -> None:
    """That of transformers 4, and of older exports: a list of experts."""
    module = own()
    for block in module.modules():
        if hasattr(block, "experts"):
            block.experts = nn.ModuleList(block.experts)
    with pytest.raises(
        CompeteError,
        match=r"does not hand its tokens to experts\(hidden, choices, weights\).*convert the checkpoint again",
    ):
        find_layers(module, "old")

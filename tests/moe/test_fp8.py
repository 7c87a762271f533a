"""FP8 training through Transformer Engine: scores of bf16, an untouched history of largest values, fresh weights."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.fp8 import without_fp8
from tests.moe.layouts import Layout, transformer_config

HIDDEN, FFN, EXPERTS, TOKENS = 128, 128, 8, 48
RECIPES = ("delayed", "tensorwise", "blockwise")
KERNELS = ("plain", "fused")
STRONG = CompeteConfig(rate=1.0, max_active_layers=1, distill_coeff=0.7, diversity_coeff=0.5, score_chunk_tokens=20)


class CachingLinear(torch.nn.Module):
    """What Megatron's wrapper of a Transformer Engine module, and the module, remember of a pass outside FP8."""

    def __init__(self) -> None:
        super().__init__()
        self.is_first_microbatch = self.fp8 = self.fp8_initialized = True
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": True, "num_gemms": 1}

    def forward(self) -> None:
        self.is_first_microbatch = self.fp8 = self.fp8_initialized = False
        self.fp8_meta |= {"fp8_checkpoint": False, "num_gemms": 2}


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A stand-in for Transformer Engine; whether FP8 is enabled, from the outermost autocast to the innermost."""
    inside: list[bool] = []

    @contextmanager
    def autocast(enabled: bool) -> Iterator[None]:
        inside.append(enabled)
        try:
            yield
        finally:
            inside.pop()

    pytorch = types.ModuleType("transformer_engine.pytorch")
    pytorch.autocast = autocast  # type: ignore[attr-defined]
    package = types.ModuleType("transformer_engine")
    package.pytorch = pytorch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", pytorch)
    return inside


def test_without_fp8_nothing_changes(states: list[bool]) -> None:
    linear = CachingLinear()
    with without_fp8(transformer_config(Layout()), linear):
        linear()
        assert states == []
    assert not linear.is_first_microbatch


@pytest.mark.parametrize("first", [True, False])
def test_scoring_does_not_count_as_the_first_microbatch(states: list[bool], first: bool) -> None:
    """Else the winners' pass would take the FP8 weights that were cast at the previous step."""
    config = transformer_config(Layout())
    config.fp8 = "hybrid"
    experts = torch.nn.ModuleList([CachingLinear(), torch.nn.Linear(2, 2)])
    experts[0].is_first_microbatch = first
    with without_fp8(config, experts):
        experts[0]()
        assert states == [False]
    assert states == []
    assert experts[0].is_first_microbatch == first
    with pytest.raises(RuntimeError), without_fp8(config, experts):
        experts[0]()
        raise RuntimeError
    assert experts[0].is_first_microbatch == first


def test_a_module_stays_one_that_trains_in_fp8(states: list[bool]) -> None:
    """A checkpoint saved after a scoring pass in the backward pass would otherwise lack its history."""
    config = transformer_config(Layout())
    config.fp8 = "hybrid"
    experts = torch.nn.ModuleList([CachingLinear(), torch.nn.Linear(2, 2)])
    with without_fp8(config, experts):
        experts[0]()
        assert not experts[0].fp8
    assert experts[0].fp8 and experts[0].fp8_initialized
    assert experts[0].fp8_meta == {"fp8_checkpoint": True, "num_gemms": 2}
    assert not hasattr(experts[1], "fp8")


def build(recipe: str | None, config: CompeteConfig = STRONG, **overrides: Any) -> Any:
    """A competing layer of Transformer Engine's grouped experts in bf16, on the GPU; the same weights each time."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from megatron_compete.moe.competition import Competition
    from megatron_compete.moe.layer import CompeteMoELayer

    if not torch.distributed.is_initialized():
        torch.cuda.set_device(0)
        store = torch.distributed.HashStore()  # no port, so that several processes may test at a time
        torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(7)
    fp8 = {} if recipe is None else {"fp8": "hybrid", "fp8_recipe": recipe}
    settings = transformer_config(
        Layout(), hidden_size=HIDDEN, ffn_hidden_size=FFN, moe_ffn_hidden_size=FFN, num_moe_experts=EXPERTS, bf16=True,
        params_dtype=torch.bfloat16, moe_router_dtype="fp32", moe_grouped_gemm=True, use_cpu_initialization=False, **fp8, **overrides,
    )  # fmt: skip
    spec = get_moe_module_spec(use_te=True, num_experts=EXPERTS, moe_grouped_gemm=True)
    layer = CompeteMoELayer(
        settings, spec.keywords["submodules"], pg_collection=get_default_pg_collection(),
        competition=Competition(config, (1,), current_step=lambda: 0),
    )  # fmt: skip
    layer.set_layer_number(1)
    return layer.cuda().train()


def tokens() -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randn(TOKENS, 1, HIDDEN, generator=random).to("cuda", torch.bfloat16).requires_grad_()


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_winners_are_those_of_bf16_and_gradients_are_close(recipe: str, kernel: str) -> None:
    pytest.importorskip("transformer_engine")
    from megatron.core.fp8_utils import get_fp8_context

    config = replace(STRONG, score_kernel=kernel)
    grads, winners = [], []
    for layer in (build(None, config), build(recipe, config)):
        inputs = tokens()
        with get_fp8_context(layer.config):
            layer.route(inputs)
            winners.append(layer._outcome.winners_TK)
            output, _ = layer(inputs)
        output.float().square().sum().backward()
        grads.append(inputs.grad.float())
    assert torch.equal(*winners)
    assert grads[1].isfinite().all()
    assert (grads[0] - grads[1]).norm() < 0.2 * grads[0].norm()


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
def test_scoring_leaves_the_history_of_largest_values_alone(kernel: str) -> None:
    pytest.importorskip("transformer_engine")
    from megatron.core.fp8_utils import get_fp8_context

    layer = build("delayed", replace(STRONG, score_kernel=kernel))
    linear = layer.experts.linear_fc1
    with get_fp8_context(layer.config):
        layer(tokens())
        history = linear.fp8_meta["scaling_fwd"].amax_history
        before = history.clone()
        layer.route(tokens() * 100)
    assert torch.equal(before, linear.fp8_meta["scaling_fwd"].amax_history)
    assert linear.get_extra_state().numel() > 0  # a checkpoint of now holds it


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_competing_step_runs_on_this_steps_weights(recipe: str, kernel: str) -> None:
    """After an optimizer step the FP8 copies of the weights are cast anew, also where scoring came first."""
    pytest.importorskip("transformer_engine")
    from megatron.core.fp8_utils import get_fp8_context

    config = replace(STRONG, score_kernel=kernel)
    layer, inputs = build(recipe, config), tokens()

    def output() -> torch.Tensor:
        with get_fp8_context(layer.config):
            return layer(inputs)[0].detach().float()

    before = output()
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.mul_(-1)
    layer.set_is_first_microbatch()
    after = output()
    fresh = build(recipe, config)
    fresh.load_state_dict(layer.state_dict())
    with get_fp8_context(fresh.config):
        expected = fresh(inputs)[0].detach().float()
    assert (after - expected).norm() < 0.1 * expected.norm()
    assert (after - before).norm() > 0.5 * before.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["response", "utility"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_router_padding_changes_no_competing_step(recipe: str, kind: str) -> None:
    """Rows that the router would pad are padded by the experts: the same rows, in the same GEMM."""
    pytest.importorskip("transformer_engine")
    from megatron.core.fp8_utils import get_fp8_context

    config = (
        replace(STRONG, kind=kind) if kind == "response" else CompeteConfig(rate=1.0, max_active_layers=1, kind=kind)
    )
    outputs, grads = [], []
    for padded in (False, True):
        layer, inputs = build(recipe, config, moe_router_padding_for_quantization=padded), tokens()
        with get_fp8_context(layer.config):
            output, _ = layer(inputs)
        output.float().square().sum().backward()
        outputs.append(output.detach().float())
        grads.append(inputs.grad.float())
    for plain, padded in (outputs, grads):
        assert padded.isfinite().all()
        assert (plain - padded).norm() < 0.02 * plain.norm()

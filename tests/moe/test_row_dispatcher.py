"""Competing steps beside settings of the dispatcher that they must not follow: padding, capacity, flex dispatchers."""

import types
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.moe.row_dispatcher import row_config
from megatron_compete.report.scalars import read_scalars
from tests.moe import layouts
from tests.moe.layouts import BATCH, SEQUENCE, Layout, transformer_config
from tests.moe.reference import Weights
from tests.moe.steps import Batch, Case, Result, check, random_batch, train_step
from tests.moe.test_layouts import CASES
from tests.ranks import run_ranks
from tests.training.runs import MODEL, train, train_on_rank


def test_the_layers_own_settings_stay() -> None:
    config = transformer_config(Layout(), moe_router_load_balancing_type="aux_loss", moe_expert_capacity_factor=1.0)
    config.moe_permute_fusion = config.moe_router_padding_for_quantization = True
    before = dict(vars(config))
    rows = row_config(config)
    assert vars(config) == before
    assert not rows.moe_permute_fusion and not rows.moe_router_padding_for_quantization
    assert rows.moe_expert_capacity_factor is None and rows.moe_token_dispatcher_type == "alltoall"


def train_padded(
    layout: Layout, batch: Batch, cases: dict[str, Case], weights: Weights, overrides: dict[str, Any]
) -> dict[str, Result]:
    """The steps with router padding to multiples of 16, whose rows Megatron's experts take as they come.

    Megatron's configuration accepts it with FP8 alone, which needs a device; the padding itself needs none.
    """
    from megatron.core.transformer.moe import token_dispatcher
    from megatron.core.transformer.moe.moe_utils import skip_routed_expert_padding

    plain = layouts.transformer_config

    def padding(*args: Any, **kwargs: Any) -> Any:
        config = plain(*args, **kwargs)
        config.moe_router_padding_for_quantization = True
        return config

    layouts.transformer_config = padding
    token_dispatcher.get_align_size_for_quantization = lambda config: 16
    layouts.initialize(layout)
    results = {}
    for name, case in cases.items():
        layer = layouts.build_layer(layout, weights, case.config, case.current_step, **overrides)
        seen: list[tuple[bool, bool]] = []

        def see(experts: Any, args: Any) -> None:
            if not args:  # scoring waits for parameters by these hooks, without a call
                return
            seen.append((bool((args[1] % 16 == 0).all()), skip_routed_expert_padding(experts.config)))  # noqa: B023

        layer.experts.register_forward_pre_hook(see)
        results[name] = train_step(layer, layout, batch)
        rows_alone = case.competes and case.config.kind == "response"
        assert {skips for _, skips in seen} == {not rows_alone}
        assert all(aligned for aligned, _ in seen) != rows_alone
        assert skip_routed_expert_padding(layer.experts.config)
    return results


@pytest.mark.parametrize("layout", [Layout(), Layout(world=2, ep=2)], ids=str)
def test_competing_experts_pad_for_themselves(layout: Layout) -> None:
    check(layout, random_batch(layout, SEQUENCE, BATCH), CASES, on_rank=train_padded)


def train_deepep(arguments: list[str]) -> None:
    """The trainer with DeepEP's dispatcher replaced by one that runs on a CPU, as those nodes treat it."""
    from megatron.core.transformer.moe import moe_layer
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    class DeepEPOnCpu(MoEAlltoAllTokenDispatcher):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._comm_manager = types.SimpleNamespace()

        def dispatch_postprocess(self, tokens: Any, probs: Any) -> Any:
            assert self._comm_manager.dispatched_probs is probs
            return super().dispatch_postprocess(tokens.clone(), probs)  # DeepEP permutes what it received

    moe_layer.MoEFlexTokenDispatcher = DeepEPOnCpu
    train_on_rank(arguments)


FLAGS = "--train-iters 3 --bf16 --tensorboard-log-interval 1 --expert-model-parallel-size 4"
DEEPEP = "--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep --overlap-moe-expert-parallel-comm"


def test_the_overlapped_schedule_of_deepep_frees_nothing_that_rows_need(tmp_path: Path) -> None:
    """One expert a rank: what is received is what the experts keep for their backward pass."""
    train(4, f"{FLAGS} --tensorboard-dir {tmp_path / 'alltoall'}")
    flags = [*MODEL.split(), *FLAGS.split(), *DEEPEP.split(), "--tensorboard-dir", str(tmp_path / "deepep")]
    run_ranks(4, train_deepep, flags)
    alltoall, deepep = read_scalars(tmp_path / "alltoall"), read_scalars(tmp_path / "deepep")
    assert max(alltoall["competition/active-layers"].values()) > 0
    for metric in ("lm loss", "grad-norm", "competition/agreement"):
        assert deepep[metric] == alltoall[metric], metric

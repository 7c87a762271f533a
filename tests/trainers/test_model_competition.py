"""The object that a trainer holds, in a model of plain Megatron-Core on one and on several ranks."""

import copy
from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.specs import compete_layer_spec, decoder_layer_spec
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.trainers import ModelCompetition
from tests.moe.layouts import FFN, Layout, initialize, transformer_config
from tests.ranks import run_rank, run_ranks

ALWAYS = CompeteConfig(rate=1.0, max_active_layers=4)
SOMETIMES = CompeteConfig(rate=0.4, max_active_layers=2, seed=3)


def config_of(ep: int = 1, **overrides: Any) -> Any:
    return transformer_config(
        Layout(ep=ep), num_layers=4, ffn_hidden_size=FFN, transformer_impl="local", moe_aux_loss_coeff=0.01,
        moe_router_load_balancing_type="aux_loss", moe_layer_freq=[0, 1, 1, 1], **overrides,
    )  # fmt: skip


def build(config: Any, competition: ModelCompetition, stock: bool = False) -> Any:
    """This stage's part of a GPT model."""
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt import GPTModel
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(1)
    layers = decoder_layer_spec(config) if stock else compete_layer_spec(config, competition=competition)
    return GPTModel(
        config, layers, vocab_size=64, max_sequence_length=8, position_embedding_type="rope",
        pre_process=mpu.is_pipeline_first_stage(), post_process=mpu.is_pipeline_last_stage(),
    )  # fmt: skip


def metrics_of_steps(pp: int, ep: int) -> dict[int, dict[str, float]]:
    """Metrics after each of four steps of two microbatches."""
    from megatron.core import parallel_state as mpu
    from megatron.core.pipeline_parallel import get_forward_backward_func

    torch.distributed.init_process_group("gloo")
    mpu.initialize_model_parallel(pipeline_model_parallel_size=pp, expert_model_parallel_size=ep)
    found, step = {}, 0
    config = config_of(ep, pipeline_model_parallel_size=pp, pipeline_dtype=torch.float32)
    competition = ModelCompetition(SOMETIMES, config, lambda: step)
    model = build(config, competition)
    assert competition.check_model([model]) == [model]
    torch.manual_seed(mpu.get_data_parallel_rank())
    tokens = torch.randint(64, (1, 8))

    def forward(batches: Any, chunk: Any) -> Any:
        position = torch.arange(8)[None]
        mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)
        return chunk(tokens, position, mask, labels=tokens), lambda loss: (loss.mean(), {})

    for step in (0, 1, 2, 3):
        get_forward_backward_func()(
            forward_step_func=forward, data_iterator=None, model=model, num_microbatches=2, seq_length=8,
            micro_batch_size=1, forward_only=False,
        )  # fmt: skip
        found[step] = competition.metrics(num_microbatches=2, per_layer=True)
    return found


@pytest.mark.parametrize("pp, ep", [(2, 1), (1, 2)])
def test_metrics_are_those_of_the_step_on_every_rank(pp: int, ep: int) -> None:
    steps, others = run_ranks(2, metrics_of_steps, pp, ep)
    assert steps == others
    active = [steps[step]["competition/active-layers"] for step in range(4)]
    places = ((0, 0), (pp - 1, 0), (pp - 1, 0))
    assert active == CompetitionSchedule.of(SOMETIMES, places).table(0, 4).sum(axis=1).tolist()
    assert min(active) == 0 < max(active)
    for scalars in steps.values():
        assert ("competition/agreement" in scalars) == (scalars["competition/active-layers"] > 0)
        assert 0.9 < scalars["load_balancing_loss"] < 1.6  # 1 is balance
        assert {f"moe/load-max/layer-{number}" for number in (2, 3, 4)} <= scalars.keys()


def checked(stock: bool) -> str:
    initialize(Layout())
    config = config_of()
    competition = ModelCompetition(ALWAYS, config, lambda: 0)
    try:
        competition.check_model([build(config, competition, stock)])
    except CompeteError as error:
        return str(error)
    return ""


def test_a_model_of_stock_layers_is_refused() -> None:
    assert run_rank(checked, False) == ""
    assert "0 competing layers instead of 3: its spec was replaced" in run_rank(checked, True)


def in_a_dense_model(microbatches: int) -> tuple[str, torch.Tensor]:
    """What is said of a model whose own config has no experts, and the gradient that Megatron makes of its routers' losses
    all the same, of one microbatch again and again."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    initialize(Layout())
    config = config_of(hidden_dropout=0.0, attention_dropout=0.0)
    competition = ModelCompetition(ALWAYS, config, lambda: 0)
    model = build(config, competition)
    model.config = copy.copy(config)  # as a vision-language model's, whose layers have that of the tower
    model.config.num_moe_experts = None
    said = ""
    try:
        competition.check_model([model])
    except CompeteError as error:
        said = str(error)
    tokens, position = torch.arange(8)[None], torch.arange(8)[None]
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)
    get_forward_backward_func()(
        forward_step_func=lambda _, chunk: (chunk(tokens, position, mask, labels=tokens), lambda loss: (0.0 * loss.mean(), {})),
        data_iterator=None, model=model, num_microbatches=microbatches, seq_length=8, micro_batch_size=1, forward_only=False,
    )  # fmt: skip
    return said, model.decoder.layers[1].mlp.router.weight.grad


def test_a_model_whose_own_config_has_no_experts_is_refused() -> None:
    """Fails when Megatron scales losses of routers by something else than the model's config: then nothing need be refused."""
    (said, one), (_, four) = (run_rank(in_a_dense_model, microbatches) for microbatches in (1, 4))
    assert "its own config has num_moe_experts None" in said and "\n" not in said
    assert one.abs().max() > 0
    torch.testing.assert_close(four, 4 * one)


def test_settings_are_checked_before_a_model_is_built() -> None:
    config = config_of()
    with pytest.raises(CompeteError, match="--compete-max-active-layers 2 is below rate"):
        ModelCompetition(CompeteConfig(rate=1.0, max_active_layers=2), config, lambda: 0)
    config.moe_enable_routing_replay = True
    with pytest.raises(CompeteError, match="--moe-enable-routing-replay"):
        ModelCompetition(ALWAYS, config, lambda: 0)
    config.num_moe_experts = None
    with pytest.raises(CompeteError, match="--num-experts"):
        ModelCompetition(ALWAYS, config, lambda: 0)


def test_the_state_is_continued_or_refused() -> None:
    config = config_of()
    first = ModelCompetition(CompeteConfig(rate=0.5, max_active_layers=3), config, lambda: 0)
    again = ModelCompetition(CompeteConfig(rate=0.5, max_active_layers=3), config, lambda: 0)
    again.load_state_dict(first.state_dict())
    assert again.schedule == first.schedule
    other = ModelCompetition(CompeteConfig(rate=0.25, max_active_layers=3), config, lambda: 0)
    with pytest.raises(CompeteError, match=r"--compete-rate 0.5 -> 0.25"):
        other.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict(), override=True)
    assert other.schedule.rate == 0.25


def test_a_copied_spec_has_the_same_competition() -> None:
    competition = ModelCompetition(ALWAYS, config_of(), lambda: 0)
    assert copy.deepcopy({"competition": competition})["competition"] is competition

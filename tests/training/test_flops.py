"""The scoring pass in Megatron's count of floating-point operations."""

from argparse import Namespace
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.training import training

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition
from megatron_compete.training.flops import RunningFlops, counted_scoring, scoring_flops
from megatron_compete.upstream import wrap_symbol

LAYERS, RATE, BATCH, TOKENS = 4, 0.25, 2, 2 * 10
ARGS = Namespace(
    num_layers=LAYERS, hidden_size=8, ffn_hidden_size=12, moe_ffn_hidden_size=6, num_experts=4, moe_router_topk=2,
    moe_layer_freq=1, swiglu=True, quick_geglu=False, seq_length=10, num_attention_heads=2, num_query_groups=2,
    kv_channels=4, group_query_attention=False, multi_latent_attention=False, attention_output_gate=False,
    padded_vocab_size=32, mtp_num_layers=None, moe_latent_size=None, moe_shared_expert_intermediate_size=None,
    experimental_attention_variant=None, hybrid_layer_pattern=None, linear_attention_freq=None,
)  # fmt: skip
SCORING = 2 * TOKENS * 4 * 3 * 8 * 6
"""By hand: multiply and add; tokens; experts; three matrices of 8 x 6."""
UPSTREAM = training.num_floating_point_operations, training.training_log


def competition(at: SimpleNamespace, **settings: Any) -> Competition:
    """Four layers that compete; `at.step` is the step."""
    config = CompeteConfig(rate=RATE, max_active_layers=2, **settings)
    return Competition(config, tuple(range(1, LAYERS + 1)), lambda: at.step)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    assert (training.num_floating_point_operations, training.training_log) == UPSTREAM


def test_scoring_flops_by_hand() -> None:
    assert scoring_flops(ARGS, TOKENS) == SCORING
    assert scoring_flops(ARGS, TOKENS, response_gradients="all") == 3 * SCORING
    assert scoring_flops(Namespace(**{**vars(ARGS), "swiglu": False}), TOKENS) == SCORING * 2 / 3
    assert scoring_flops(Namespace(**{**vars(ARGS), "moe_ffn_hidden_size": None}), TOKENS) == SCORING * 2


def test_latent_experts_by_hand() -> None:
    """Experts of width 3 in place of 8; tokens projected, and the answers of four experts, or by utility one vector."""
    latent = Namespace(**{**vars(ARGS), "moe_latent_size": 3})
    experts = 2 * TOKENS * 4 * 3 * 3 * 6
    assert scoring_flops(latent, TOKENS) == experts + 2 * TOKENS * (1 + 4) * 8 * 3
    assert scoring_flops(latent, TOKENS, kind="utility") == experts + 2 * TOKENS * 2 * 8 * 3


HYBRID = dict(
    hybrid_layer_pattern="*E-E/*E", num_layers=4, mtp_num_layers=1, seq_length=10, mamba_state_dim=4, mamba_head_dim=4,
    mamba_num_groups=1, mamba_num_heads=2, linear_key_head_dim=None,
    linear_value_head_dim=None, linear_num_key_heads=None, linear_num_value_heads=None, linear_conv_kernel_dim=None, group_query_attention=False, num_query_groups=None,
)  # fmt: skip


def test_a_hybrid_models_experts_are_counted_by_its_pattern() -> None:
    """With K = E, three forward passes of all experts in each E of the pattern, MTP's among them; scoring comes on top."""
    args = Namespace(**{**vars(ARGS), **HYBRID})
    dense, none = (Namespace(**{**vars(args), "moe_router_topk": experts}) for experts in (4, 0))
    assert UPSTREAM[0](dense, BATCH) - UPSTREAM[0](none, BATCH) == pytest.approx(3 * 3 * SCORING)
    at = SimpleNamespace(step=0)
    model = Competition(CompeteConfig(rate=0.5, max_active_layers=1), (2, 4), lambda: at.step)
    with counted_scoring(model):
        for at.step in range(8):
            extra = training.num_floating_point_operations(args, BATCH) - UPSTREAM[0](args, BATCH)
            assert extra == pytest.approx(SCORING * model.schedule.table(at.step, at.step + 1).sum())


def test_scoring_is_a_third_of_what_megatron_counts_for_all_experts() -> None:
    """Megatron counts K experts forward and backward: with K = E, three forward passes of all experts."""
    dense, none = (Namespace(**{**vars(ARGS), "moe_router_topk": experts}) for experts in (4, 0))
    routed = UPSTREAM[0](dense, BATCH) - UPSTREAM[0](none, BATCH)
    assert routed == 3 * LAYERS * SCORING


def test_each_step_counts_the_layers_that_compete_in_it() -> None:
    at = SimpleNamespace(step=0)
    model = competition(at, warmup_steps=3)
    extras = []
    with counted_scoring(model):
        for at.step in range(3 + model.schedule.window_steps):
            extra = training.num_floating_point_operations(ARGS, BATCH) - UPSTREAM[0](ARGS, BATCH)
            assert extra == SCORING * model.schedule.table(at.step, at.step + 1).sum()
            extras.append(extra)
    assert sum(extras[:3]) == 0
    assert sum(extras) / model.schedule.window_steps == RATE * LAYERS * SCORING


def test_a_sample_counts_its_share() -> None:
    at = SimpleNamespace(step=0)
    model = competition(at, token_fraction=0.25)
    at.step = int(model.schedule.table(0, 100).any(axis=1).argmax())
    with counted_scoring(model):
        extra = training.num_floating_point_operations(ARGS, BATCH) - UPSTREAM[0](ARGS, BATCH)
    assert extra == pytest.approx(0.25 * SCORING * model.schedule.table(at.step, at.step + 1).sum()) and extra > 0


def test_packed_batches_count_their_real_tokens() -> None:
    at = SimpleNamespace(step=0)
    model = competition(at)
    at.step = int(model.schedule.table(0, 100).any(axis=1).argmax())
    packed = dict(seqlen_squared_sum_in_batch=50.0, total_real_tokens_in_batch=TOKENS / 2)
    with counted_scoring(model):
        extra = training.num_floating_point_operations(ARGS, BATCH, **packed) - UPSTREAM[0](ARGS, BATCH, **packed)
    assert extra == SCORING / 2 * model.schedule.table(at.step, at.step + 1).sum()


def test_a_line_of_the_log_counts_the_mean_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    at = SimpleNamespace(step=0)
    model = competition(at)
    counted: list[float] = []

    def log(loss_dict: dict[str, float], total_loss_dict: dict[str, int], iteration: int) -> None:
        total_loss_dict["advanced iterations"] += 1
        counted.append(training.num_floating_point_operations(ARGS, BATCH) - UPSTREAM[0](ARGS, BATCH))
        total_loss_dict["advanced iterations"] = 0

    monkeypatch.setattr(training, "training_log", log)
    with counted_scoring(model):
        for at.step in (9, 29):
            training.training_log({}, {"advanced iterations": 9, "skipped iterations": 0}, at.step + 1)
    monkeypatch.undo()
    table = model.schedule.table(0, 30)
    assert counted == [SCORING * table[:10].sum() / 10, SCORING * table[20:].sum() / 10]


def test_without_competition_the_trainer_stays_as_it_is() -> None:
    with counted_scoring(Competition(CompeteConfig(rate=0.0), (1, 2), lambda: 0)):
        assert (training.num_floating_point_operations, training.training_log) == UPSTREAM


@pytest.mark.parametrize("packed", [None, (TOKENS / 2, 50.0)])
def test_the_running_count_is_the_loops_and_takes_nothing_from_it(
    packed: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed steps differ in their tokens, which upstream forgets once they are read."""
    at = SimpleNamespace(step=0)
    model = competition(at)
    waiting: list[tuple[float | None, float | None]] = []
    monkeypatch.setattr(training, "consume_seqlen_stats_in_iteration", lambda: waiting.pop())
    monkeypatch.setattr("megatron_compete.training.flops.get_num_microbatches", lambda: 1)
    args = Namespace(**vars(ARGS), micro_batch_size=BATCH, data_parallel_size=1, num_floating_point_operations_so_far=7)
    flops = RunningFlops(args)
    flops.begin()
    assert flops.total == 7.0
    loop = 7.0
    with (
        counted_scoring(model),
        wrap_symbol("megatron.training.training:consume_seqlen_stats_in_iteration", flops.consume),
    ):
        for at.step in range(model.schedule.window_steps):
            tokens, squares = (None, None) if packed is None else (packed[0] + at.step, packed[1] + at.step)
            waiting.append((tokens, squares))
            flops.add_step()
            assert training.consume_seqlen_stats_in_iteration() == (tokens, squares) and not waiting
            loop += training.num_floating_point_operations(ARGS, BATCH, squares, tokens)
            assert flops.total == loop
    monkeypatch.undo()
    if packed is None:
        steps = model.schedule.window_steps
        assert flops.total == 7 + steps * (UPSTREAM[0](ARGS, BATCH) + RATE * LAYERS * SCORING)

"""The own architecture under transformers: what a stock class does, it does, and gives the same numbers where it can."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from megatron_compete.checkpoint.custom_code.modeling_competesmoe import CompeteSMoEForCausalLM
from tests.checkpoint.custom_code.models import (
    EXPERTS,
    HEADS,
    HIDDEN,
    KINDS,
    LAYERS,
    SIGMOID,
    build,
    gradients,
    mixtral_of,
    tokens,
)


@pytest.mark.parametrize("items", [None, 20])
def test_losses_and_gradients_are_mixtrals(items: int | None) -> None:
    ours = build()
    stock = mixtral_of(ours)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, :5] = 0
    labels = tokens().masked_fill(mask == 0, -100)
    given = {"attention_mask": mask, "labels": labels, "num_items_in_batch": items}
    one, other = ours.train()(tokens(), **given), stock.train()(tokens(), **given)
    assert_close(one.logits, other.logits)
    assert_close(one.loss, other.loss)
    one.loss.backward()
    other.loss.backward()
    wanted, found = gradients(stock), gradients(ours)
    for name in wanted.keys() & found.keys():
        assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-4)
    for layer in range(LAYERS):
        mlp = f"model.layers.{layer}.mlp.experts."
        down = torch.stack([found[f"{mlp}{expert}.down_proj.weight"] for expert in range(EXPERTS)])
        assert_close(down, wanted[f"{mlp}down_proj"], atol=1e-5, rtol=1e-4)


def test_balancing_loss_is_mixtrals() -> None:
    ours = build()
    stock = mixtral_of(ours)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, :5] = 0
    for given in ({}, {"attention_mask": mask}, {"attention_mask": mask, "labels": tokens()}):
        one, other = (model(tokens(), output_router_logits=True, **given) for model in (ours, stock))
        assert_close(one.aux_loss, other.aux_loss)
        assert "labels" not in given or one.loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    assert build(num_experts=0)(tokens(), output_router_logits=True).aux_loss is None


def test_balancing_loss_of_scores_that_are_no_shares() -> None:
    """Even use of 6 experts, 2 a token: E * sum (K / E) * (1 / E) = K, and more where one is preferred."""
    model = build(**SIGMOID)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.gate.weight.zero_()
            layer.mlp.gate.e_score_correction_bias.zero_()
    even = model(tokens(), output_router_logits=True).aux_loss
    assert even.item() == pytest.approx(2)


class Rows(list[dict[str, list[int]]]):
    """Eight rows for Trainer, with as many labels as tokens."""

    def __init__(self) -> None:
        super().__init__({"input_ids": row, "labels": row} for row in tokens(8).tolist())


def train_a_step(model: CompeteSMoEForCausalLM, folder: Path, **more: Any) -> dict[str, float]:
    arguments = TrainingArguments(
        str(folder), max_steps=1, learning_rate=0.0, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
        max_grad_norm=1e9, disable_tqdm=True, **more,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Rows())  # type: ignore[arg-type]
    assert trainer.model_accepts_loss_kwargs
    trainer.train()
    return trainer.state.log_history[0]


def test_accumulation_changes_neither_loss_nor_gradient(tmp_path: Path) -> None:
    whole = train_a_step(build(), tmp_path, per_device_train_batch_size=8)
    parts = train_a_step(build(), tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    checkpointed = train_a_step(build(), tmp_path, per_device_train_batch_size=8, gradient_checkpointing=True)
    for found in (parts, checkpointed):
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_accumulation_does_not_multiply_the_balancing_loss() -> None:
    """Micro-batches of the same row: their mean is the row's, balancing loss included."""
    model = build(output_router_logits=True).train()
    row = tokens(1)
    whole = model(row, labels=row).loss
    parts = [model(row, labels=row, num_items_in_batch=torch.tensor(4 * 11)).loss for _ in range(4)]
    assert_close(sum(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str, reentrant: bool) -> None:
    plain, saving = build(**KINDS[kind]).train(), build(**KINDS[kind]).train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert saving.is_gradient_checkpointing
    calls = []
    saving.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, saving):
        model(tokens(), labels=tokens()).loss.backward()
    assert_close(gradients(saving), gradients(plain))
    assert len(calls) == 2  # once more in the backward pass


def test_every_expert_has_a_gradient() -> None:
    """Also one that no token chose: with DDP and ZeRO a rank without it would wait, or fail."""
    model = build().train()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[2:] = 0
            layer.mlp.gate.weight[:2] = 1
    model(tokens(), labels=tokens()).loss.backward()
    assert len(gradients(model)) == len(list(model.parameters()))


GREEDY: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_static_and_dynamic_cache_and_none_give_the_same(kind: str, attention: str) -> None:
    model = build(attention, **KINDS[kind])
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :4] = 0
    prompts = tokens().masked_fill(mask == 0, 0)
    wanted = model.generate(prompts, attention_mask=mask, use_cache=False, **GREEDY)
    assert wanted.shape == (3, 21)
    for cache in ("static", "dynamic"):
        assert model.generate(prompts, attention_mask=mask, cache_implementation=cache, **GREEDY).equal(wanted)
    alone = model.generate(prompts[:1, 4:], **GREEDY)
    assert alone[0, 8:].equal(wanted[0, 12:])


def test_assisted_and_beam_search() -> None:
    model = build()
    wanted = model.generate(tokens(1), **GREEDY)
    assert model.generate(tokens(1), assistant_model=build(), **GREEDY).equal(wanted)
    assert model.generate(tokens(), num_beams=3, **GREEDY).shape == (3, 21)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_outputs(kind: str) -> None:
    model = build("eager", **KINDS[kind])
    mixtures = LAYERS - len(KINDS[kind].get("dense_layers", []))
    found = model(tokens(), output_hidden_states=True, output_attentions=True, output_router_logits=True)
    assert [one.shape for one in found.hidden_states] == [(3, 12, HIDDEN)] * (LAYERS + 1)
    assert [one.shape for one in found.attentions] == [(3, HEADS, 12, 12)] * LAYERS
    assert [one.shape for one in found.router_logits] == [(36, EXPERTS)] * mixtures
    assert_close(found.hidden_states[0], model.model.embed_tokens(tokens()))
    assert_close(model.lm_head(found.hidden_states[-1]), found.logits)
    assert_close(found.attentions[0].sum(-1), torch.ones(3, HEADS, 12))
    assert not found.attentions[0].triu(1).any()
    plain = model(tokens())
    assert plain.hidden_states is None and plain.attentions is None and plain.router_logits is None
    assert_close(plain.logits, found.logits)
    assert isinstance(model(tokens(), return_dict=False), tuple)


def test_recorded_outputs_by_configuration() -> None:
    model = build(output_router_logits=True, output_hidden_states=True)
    found = model(tokens())
    assert len(found.router_logits) == LAYERS and len(found.hidden_states) == LAYERS + 1


@pytest.mark.parametrize("kind", KINDS)
def test_implementations_of_attention_agree(kind: str) -> None:
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[2, :7] = 0
    model = build("sdpa", **KINDS[kind])
    wanted = model(tokens(), attention_mask=mask)
    model.set_attn_implementation("eager")
    found = model(tokens(), attention_mask=mask, output_attentions=True)
    assert len(found.attentions) == LAYERS  # SDPA has none
    assert_close(found.logits[mask == 1], wanted.logits[mask == 1])


def test_dropout_of_attention_is_of_training_alone() -> None:
    for attention in ("eager", "sdpa"):
        model = build(attention, attention_dropout=0.5)
        assert_close(model(tokens()).logits, model(tokens()).logits)
        model.train()
        assert not model(tokens()).logits.equal(model(tokens()).logits)


def test_packed_documents_do_not_see_each_other() -> None:
    model = build()
    two = model(tokens(2, 6)).logits
    packed = model(tokens(2, 6).reshape(1, 12), position_ids=torch.arange(6).repeat(1, 2), use_cache=False).logits
    assert_close(packed, two.reshape(1, 12, -1))


def test_embeddings_are_resized_and_tied(tmp_path: Path) -> None:
    model = build(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.resize_token_embeddings(70)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(tokens(), labels=tokens()).logits.shape == (3, 12, 70)
    model.save_pretrained(tmp_path)
    again = CompeteSMoEForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.vocab_size == 70
    assert_close(again(tokens()).logits, model(tokens()).logits, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(kind: str, tmp_path: Path) -> None:
    model = build(**KINDS[kind])
    model.save_pretrained(tmp_path)
    again, report = CompeteSMoEForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(loaded[name].equal(saved[name]) for name in saved)
    assert_close(again.eval()(tokens()).logits, model(tokens()).logits)


def test_no_warning_of_transformers_on_the_way(caplog: pytest.LogCaptureFixture) -> None:
    """Deprecated arguments of forward are reported once, in generate."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        build().generate(tokens(), **GREEDY)
    assert "deprecated" not in caplog.text


def test_compiled_with_breaks_in_the_graph() -> None:
    model = build()
    compiled = torch.compile(model, backend="eager")
    assert_close(compiled(tokens()).logits, model(tokens()).logits)


def test_ids_or_embeddings() -> None:
    model = build()
    embedded = model.model.embed_tokens(tokens())
    assert_close(model(inputs_embeds=embedded).logits, model(tokens()).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(tokens(), inputs_embeds=embedded)

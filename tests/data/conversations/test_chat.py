"""Ids against transformers' `apply_chat_template`, and what is learned against its `{% generation %}` mask."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.chat import Chat, hugging_face_tokenizer
from megatron_compete.data.conversations.conversation import Message
from megatron_compete.data.conversations.templates import CHATML, TEMPLATES, VICUNA_V1
from tests.data.conversations.tiny import SYSTEM_FIRST, pieces_tokenizer, tokenizer

QWEN2 = SYSTEM_FIRST + CHATML
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system prompt') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MARKED = {
    QWEN2: QWEN2.replace(
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' and message.content.strip() %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    ),
    VICUNA_V1: VICUNA_V1.replace(
        "{{ 'ASSISTANT: ' + message.content + eos_token }}",
        "{{ 'ASSISTANT:' }}{% if message.content.strip() %}"
        "{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}"
        "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}",
    ),
    LLAMA2: LLAMA2.replace(
        "{{ ' ' + m.content.strip() + ' ' + eos_token }}",
        "{% if m.content.strip() %}{% generation %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endgeneration %}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}",
    ),
}
"""Templates with the answers marked as transformers wants them: its own masks are what ours are compared with."""

TEXT = st.text(st.sampled_from("aA s.\n😀é語:[</>|"), max_size=12) | st.sampled_from(
    ["answer", "USER: ", "1", "</s>", ""]
)
"""Also what looks like a template's own words, and special tokens that a text spells out."""


@st.composite
def dialogues(draw: st.DrawFn) -> list[Message]:
    """One to three questions and answers, some with images, the last answer not empty; a system prompt or none."""
    said: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        images = "<image>\n" * draw(st.integers(0, 2))
        said += [{"role": "user", "content": images + draw(TEXT)}, {"role": "assistant", "content": draw(TEXT)}]
    said[-1]["content"] += "end"
    return draw(st.sampled_from([[], [{"role": "system", "content": "Be brief."}]])) + said


def with_template(template: str, made: Any = None) -> Any:
    own = copy.copy(made or tokenizer())
    own.chat_template = template
    return own


@pytest.mark.parametrize("make", [tokenizer, pieces_tokenizer])
@pytest.mark.parametrize("template", MARKED, ids=["qwen2", "vicuna_v1", "llama2"])
@settings(max_examples=100, deadline=None)
@given(messages=dialogues())
def test_ids_and_learned_tokens_are_those_of_transformers(
    template: str, make: Callable[[], Any], messages: list[Message]
) -> None:
    if template == LLAMA2 and messages[0]["role"] == "system":
        messages = messages[1:]
    chat = Chat(with_template(template, make()))
    images = sum(one["content"].count("<image>") for one in messages)
    encoded = chat.encode(messages, images)
    applied = chat.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    marked = chat.tokenizer.apply_chat_template(
        messages, chat_template=MARKED[template], return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.ids.tolist() == applied == marked["input_ids"]
    assert encoded.learned.tolist() == [bool(one) for one in marked["assistant_masks"]]


def test_learned_text_reads_as_the_answers() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes é😀."},
    ]
    for template, wanted in {
        "tokenizer": "A cat.<|im_end|>Yes é😀.<|im_end|>",
        "chatml": "A cat.<|im_end|>Yes é😀.<|im_end|>",
        "vicuna_v1": " A cat.</s> Yes é😀.</s>",
    }.items():
        chat = Chat(tokenizer(), template)
        encoded = chat.encode(messages, 1)
        assert chat.tokenizer.decode(encoded.ids[encoded.learned]) == wanted


def test_vicuna_is_what_llava_writes() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "<image>\nHi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "!"},
    ]
    said = Chat(tokenizer(), "vicuna_v1").render(messages)
    assert said.startswith("<s>A chat between a curious user")
    assert said.endswith("questions. USER: <image>\nHi ASSISTANT: Ho</s>USER: ? ASSISTANT: !</s>")
    own = Chat(tokenizer(), "vicuna_v1").render([{"role": "system", "content": "S"}, *messages[:2]])
    assert own == "<s>S USER: <image>\nHi ASSISTANT: Ho</s>"


@pytest.mark.parametrize("images", [1, 2])
def test_a_conversation_that_ends_with_an_image_is_refused(images: int) -> None:
    """The last token is no input, and its embeddings would be one image's more than there are places."""
    nothing_behind = "{% for m in messages %}{{ m.content + ('</s>' if m.role == 'assistant' else '') }}{% endfor %}"
    chat = Chat(with_template(nothing_behind))
    said: list[Message] = [
        {"role": "user", "content": "<image>" * (images - 1) + "What?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "<image>"},
    ]
    with pytest.raises(BadSample, match="it ends with <image>, behind which nothing is said") as bad:
        chat.encode(said, images)
    assert bad.value.kind == "image_count"
    assert chat.encode([*said, {"role": "assistant", "content": "A dog."}], images).ids[-1] != chat.image_id
    said[-1]["content"] += " and this?"
    assert chat.encode(said, images).ids[-1] != chat.image_id


def test_plain_is_image_and_caption() -> None:
    """The first token of the caption lies behind the image, where the model has no loss."""
    chat = Chat(tokenizer(), "plain")
    messages: list[Message] = [
        {"role": "user", "content": "<image>\nDescribe."},
        {"role": "assistant", "content": "A cat."},
    ]
    encoded = chat.encode(messages, 1)
    assert chat.tokenizer.decode(encoded.ids) == "<s><image>A cat.\n"
    assert encoded.learned.tolist() == [False] * 3 + [True] * (len(encoded.ids) - 3)
    for bad in (messages * 2, [messages[0] | {"content": "text"}, messages[1]]):
        with pytest.raises(BadSample, match="plain takes"):
            chat.encode(bad, 1)


def test_another_image_token() -> None:
    chat = Chat(tokenizer(), image_token="<pad>")
    encoded = chat.encode([{"role": "user", "content": "<pad>"}, {"role": "assistant", "content": "a"}], 1)
    assert (encoded.ids == chat.image_id).sum() == 1 and chat.pad_id != chat.image_id


@pytest.mark.parametrize(
    ("messages", "kind", "reason"),
    [
        ([("system", "s"), ("user", "q"), ("assistant", "a")], "refused_by_template", "no system prompt"),
        ([("user", "<image>"), ("assistant", "a")], "image_count", "1 tokens <image> in the text, and 0 images"),
        ([("user", "q"), ("assistant", " ")], "nothing_to_learn", "no token of an answer"),
    ],
)
def test_what_cannot_be_used(messages: list[tuple[str, str]], kind: str, reason: str) -> None:
    chat = Chat(with_template(LLAMA2))
    with pytest.raises(BadSample, match=reason) as bad:
        chat.encode([{"role": role, "content": text} for role, text in messages], 0)
    assert bad.value.kind == kind


def test_an_empty_answer_among_others_teaches_nothing() -> None:
    chat = Chat(tokenizer())
    roles = ["user", "assistant"] * 2
    encoded = chat.encode([{"role": role, "content": text} for role, text in zip(roles, ["q", "", "q", "a"])], 0)
    assert chat.tokenizer.decode(encoded.ids[encoded.learned]) == "a<|im_end|>"


def test_tokenizers_that_cannot_serve() -> None:
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    bare.name_or_path = "models/bare"
    with pytest.raises(CompeteError, match=r"models/bare has no chat template: add chat_template.jinja"):
        Chat(bare)
    assert Chat(bare, "chatml").template == "chatml"
    with pytest.raises(
        CompeteError, match="--image-token <img> is no token of its own in --tokenizer-model models/bare"
    ):
        Chat(bare, "chatml", "<img>")
    with pytest.raises(
        CompeteError, match=r"rewrites the answer of turn 1, for a conversation .*give one of vicuna_v1"
    ):
        Chat(with_template(THINKING))
    with pytest.raises(CompeteError, match="give --tokenizer-type HuggingFaceTokenizer"):
        hugging_face_tokenizer(SimpleNamespace())


def test_the_fingerprint_follows_tokenizer_and_template() -> None:
    chats = [
        Chat(tokenizer()),
        Chat(tokenizer(), "chatml"),
        Chat(with_template(LLAMA2)),
        Chat(tokenizer(), image_token="<s>"),
    ]
    more = copy.deepcopy(tokenizer())
    more.add_tokens(["new"])
    prints = [chat.fingerprint() for chat in [*chats, Chat(more)]]
    assert len(set(prints)) == len(prints) and prints[0] == Chat(tokenizer()).fingerprint()
    assert set(TEMPLATES) == {"vicuna_v1", "chatml", "plain"} and np.all([len(one) == 64 for one in prints])

from typing import Any

import pytest

from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.conversation import Conversation, id_of, read_conversation
from tests.data.conversations.tiny import turns


def read(*texts: str, **more: Any) -> Conversation:
    return read_conversation({"id": 7, "conversations": turns(*texts)} | more)


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in conversation.messages]


def test_a_sample_of_llavas() -> None:
    """`image` first or last, as in its pretraining file; other keys are not looked at."""
    for question in ("<image>\nWhat is it?", "What is it?\n<image>", " <image> What is it?", "<image>What is it?\n"):
        found = read(question, "A cat.", image="coco/1.jpg", model="")
        assert said(found) == [("user", "<image>\nWhat is it?"), ("assistant", "A cat.")]
        assert found.images == ("coco/1.jpg",) and found.dropped_turns == 0


def test_text_alone_system_prompt_and_several_images() -> None:
    assert said(read("Hi", "Ho")) == [("user", "Hi"), ("assistant", "Ho")] and read("Hi", "Ho", image=None).images == ()
    record = {"conversations": turns("a <image> b <image>", "c", "<image>", "d", system="S"), "image": ["1", "2", "3"]}
    found = read_conversation(record)
    assert said(found)[:2] == [("system", "S"), ("user", "a <image> b <image>")]
    assert said(found)[3] == ("user", "<image>") and found.images == ("1", "2", "3")


def test_another_image_token_stands_for_llavas() -> None:
    record = {"conversations": turns("What?<image>", "a"), "image": "1"}
    assert said(read_conversation(record, "<|image_pad|>"))[0][1] == "<|image_pad|>\nWhat?"


def test_answers_before_the_first_question_are_left_out() -> None:
    """Some of LLaVA's text samples begin in the middle; its own code does the same."""
    found = read_conversation({"conversations": [{"from": "gpt", "value": "early"}, *turns("q", "a")]})
    assert said(found) == [("user", "q"), ("assistant", "a")] and found.dropped_turns == 1


def test_a_last_question_may_stay_open() -> None:
    assert said(read("q", "a", "open"))[-1] == ("user", "open")


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        ([], "not_a_conversation", r"no list of turns under the key conversations, but \[\]"),
        ({"messages": []}, "not_a_conversation", "no list of turns"),
        ({"conversations": []}, "not_a_conversation", "no list of turns"),
        ({"conversations": [{"from": "human", "value": None}]}, "not_a_conversation", "without the texts from and value"),
        ({"conversations": ["hi"]}, "not_a_conversation", "without the texts from and value: 'hi'"),
        ({"conversations": turns("q", "a"), "image": {"path": 1}}, "not_a_conversation", "neither a path nor a list"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "unknown_role", "a turn from 'bing', which is none of human, gpt, system"),
        ({"conversations": turns("q") + turns("q", "a")}, "turn_order", "turn 1 is from user, where assistant is to speak"),
        ({"conversations": turns("q", "a") + turns("q", system="S")}, "turn_order", "turn 2 is from system"),
        ({"conversations": turns("no token", "a"), "image": "1.jpg"}, "image_count", "0 <image> in the text, and 1 images"),
        ({"conversations": turns("<image><image>", "a"), "image": "1.jpg"}, "image_count", "2 <image> in the text, and 1"),
        ({"conversations": turns("the tag <image>", "a")}, "image_count", "1 <image> in the text, and 0 images"),
        ({"conversations": turns("q", "<image>"), "image": "1.jpg"}, "image_count", "<image> in a turn of assistant"),
        ({"conversations": turns("q", " \n")}, "nothing_to_learn", "no answer that is not empty"),
        ({"conversations": turns("q")}, "nothing_to_learn", "no answer"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(record: Any, kind: str, reason: str) -> None:
    with pytest.raises(BadSample, match=reason) as bad:
        read_conversation(record)
    assert bad.value.kind == kind


def test_an_id_is_what_the_sample_says() -> None:
    assert [id_of(one) for one in ({"id": 7}, {"id": "a"}, {}, [], None)] == ["7", "a", "", "", ""]

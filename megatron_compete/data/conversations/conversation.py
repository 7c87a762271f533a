"""A sample as LLaVA writes it, checked, as messages and image paths.

    {"id": "a", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                         {"from": "gpt", "value": "A cat."}]}

Other keys are not looked at.
"""

from dataclasses import dataclass
from typing import Any

from megatron_compete.data.conversations.bad_samples import BadSample

IMAGE = "<image>"
"""What LLaVA's files write where an image is."""

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
"""Roles of chat templates."""

Message = dict[str, str]
"""`role` and `content`, as chat templates take them."""


@dataclass(frozen=True)
class Conversation:
    """What a sample says and shows."""

    messages: tuple[Message, ...]
    images: tuple[str, ...]
    """Paths within the image folder."""
    dropped_turns: int = 0
    """Answers before the first question, which LLaVA leaves out."""


def id_of(record: Any) -> str:
    """What a sample calls itself."""
    return str(record.get("id", "")) if isinstance(record, dict) else ""


def read_conversation(record: Any, image_token: str = IMAGE) -> Conversation:
    """Check a parsed sample.

    Args:
        image_token: what the tokenizer knows an image by, in place of `<image>`.
    Raises:
        BadSample: not_a_conversation, unknown_role, turn_order, image_count, nothing_to_learn.
    """
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise BadSample("not_a_conversation", f"no list of turns under the key conversations, but {_shown(record)}")
    messages, dropped = _without_early_answers([_message(turn) for turn in turns])
    _check_order(messages)
    images = _images(record)
    _check_images(messages, images)
    if not any(one["role"] == "assistant" and one["content"].strip() for one in messages):
        raise BadSample("nothing_to_learn", "no answer that is not empty")
    placed = (_place_image(one) for one in messages)
    return Conversation(
        tuple(one | {"content": one["content"].replace(IMAGE, image_token)} for one in placed), images, dropped
    )


def _message(turn: Any) -> Message:
    role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(text, str):
        raise BadSample("not_a_conversation", f"a turn without the texts from and value: {_shown(turn)}")
    if role not in ROLES:
        raise BadSample("unknown_role", f"a turn from {role!r}, which is none of {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": text}


def _without_early_answers(messages: list[Message]) -> tuple[list[Message], int]:
    """As LLaVA has it: some of its text samples begin in the middle of a conversation."""
    system = 1 if messages[0]["role"] == "system" else 0
    first = system
    while first < len(messages) and messages[first]["role"] == "assistant":
        first += 1
    return messages[:system] + messages[first:], first - system


def _check_order(messages: list[Message]) -> None:
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for number, message in enumerate(turns):
        wanted = "assistant" if number % 2 else "user"
        if message["role"] != wanted:
            raise BadSample("turn_order", f"turn {number} is from {message['role']}, where {wanted} is to speak")


def _images(record: dict[str, Any]) -> tuple[str, ...]:
    images = record.get("image")
    listed = [images] if isinstance(images, str) else [] if images is None else images
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise BadSample("not_a_conversation", f"image is neither a path nor a list of paths: {_shown(images)}")
    return tuple(listed)


def _check_images(messages: list[Message], images: tuple[str, ...]) -> None:
    wanted = 0
    for message in messages:
        count = message["content"].count(IMAGE)
        if count and message["role"] != "user":
            raise BadSample("image_count", f"{IMAGE} in a turn of {message['role']}, which nobody can answer with")
        wanted += count
    if wanted != len(images):
        raise BadSample("image_count", f"{wanted} {IMAGE} in the text, and {len(images)} images")


def _place_image(message: Message) -> Message:
    """A single image of a turn goes to its beginning, as LLaVA has it; several stay where they are."""
    text = message["content"]
    if text.count(IMAGE) != 1:
        return message
    return message | {"content": f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()}


def _shown(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."

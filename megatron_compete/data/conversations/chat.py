"""A conversation as token ids, and which of them are learned: answers and the token that ends a turn.

Ids are `tokenizer.apply_chat_template(messages)`, an image being the one token `<image>`. An answer is what stands between
the conversation before it with the prompt for an answer, and the conversation through it: of that its text, and from
there through the first special token, or through the end where the template has none.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.conversation import IMAGE, Message
from megatron_compete.data.conversations.templates import TEMPLATES

_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": f"{IMAGE}\nfirst question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
)


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids."""

    ids: NDArray[np.int64]
    learned: NDArray[np.bool_]
    """Of answers and the ends of their turns; never an image, nor what stands right behind one."""


class Chat:
    """A tokenizer with a chat template.

    Args:
        tokenizer: transformers', with offsets (a fast one).
        template: `tokenizer` for its own, or one of `TEMPLATES`.
        image_token: the token that stands for an image.
    Raises:
        CompeteError: the tokenizer has no template, no such token or no offsets, or answers cannot be told from prompts.
    """

    def __init__(self, tokenizer: Any, template: str = "tokenizer", image_token: str = IMAGE) -> None:
        self.tokenizer, self.template, self.image_token = tokenizer, template, image_token
        self.text = _template_text(tokenizer, template)
        self.image_id = _image_id(tokenizer, image_token)
        if not tokenizer.is_fast:
            raise CompeteError(
                f"--tokenizer-model {tokenizer.name_or_path} does not say where in a text its tokens lie: give a fast one "
                "(tokenizer.json)"
            )
        special = sorted({*tokenizer.all_special_tokens, *_added_special(tokenizer)}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._check_template()

    @property
    def pad_id(self) -> int:
        """What fills microbatches and packs up; never an image."""
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            value = getattr(self.tokenizer, name)
            if value is not None and value != self.image_id:
                return int(value)
        return 0 if self.image_id != 0 else 1

    def fingerprint(self) -> str:
        """Sha256 of all that decides about ids and what is learned."""
        parts = (self.template, self.text, self.image_token, self.tokenizer.backend_tokenizer.to_str())
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text of messages, with the beginning of an answer behind it if `prompt`."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.text, tokenize=False, add_generation_prompt=prompt
            )
        )

    def encode(self, messages: Sequence[Message], images: int) -> Encoded:
        """Ids and what is learned of them.

        Args:
            images: how many there are.
        Raises:
            BadSample: refused_by_template, image_count, nothing_to_learn.
        """
        from jinja2 import TemplateError

        if self.template == "plain":
            messages = self._caption(messages)
        try:
            text = self.render(messages)
            spans = list(self._answers(messages, text))
        except TemplateError as error:
            raise BadSample("refused_by_template", f"the chat template refuses it: {error}") from None
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.array(coded["input_ids"], dtype=np.int64)
        learned = _touched(np.array(coded["offset_mapping"], dtype=np.int64).reshape(-1, 2), spans, len(text))
        learned &= ids != self.image_id
        learned[1:] &= ids[:-1] != self.image_id  # `LLaVAModel` has no loss where an image's embeddings are
        count = int((ids == self.image_id).sum())
        if count != images:
            raise BadSample("image_count", f"{count} tokens {self.image_token} in the text, and {images} images")
        if not learned[1:].any():
            raise BadSample("nothing_to_learn", "no token of an answer")
        if (
            ids[-1] == self.image_id
        ):  # the last token is only a label, so this image would have no place among the tokens
            raise BadSample("image_count", f"it ends with {self.image_token}, behind which nothing is said")
        return Encoded(ids, learned)

    def _caption(self, messages: Sequence[Message]) -> list[Message]:
        """For `plain`: the question is nothing but its images."""
        if [one["role"] for one in messages] != ["user", "assistant"]:
            raise BadSample("refused_by_template", "plain takes one question and one answer, and there are other turns")
        count = messages[0]["content"].count(self.image_token)
        if not count:
            raise BadSample("refused_by_template", "plain takes an image with its caption, and there is no image")
        return [{"role": "user", "content": self.image_token * count}, messages[1]]

    def _answers(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """Ranges of characters of answers, from their first one through the end of their turn."""
        for number, message in enumerate(messages):
            answer = message["content"].strip()
            if message["role"] != "assistant" or not answer:
                continue
            before = self.render(messages[:number], prompt=True)
            through = text if number == len(messages) - 1 else self.render(messages[: number + 1])
            said = through[len(before) :].lstrip()
            if not through.startswith(before) or not text.startswith(through) or not said.startswith(answer):
                raise BadSample("refused_by_template", f"the chat template rewrites the answer of turn {number}")
            mark = self._special.search(through, len(through) - len(said) + len(answer))
            yield len(before), mark.end() if mark else len(through)

    def _check_template(self) -> None:
        """Whether answers can be told from prompts at all."""
        probe = _PROBE[:2] if self.template == "plain" else _PROBE
        messages = [one | {"content": one["content"].replace(IMAGE, self.image_token)} for one in probe]
        try:
            self.encode(messages, images=1)
        except BadSample as bad:
            raise CompeteError(
                f"--conversation-template {self.template} of {self.tokenizer.name_or_path}: {bad.reason}, for a "
                f"conversation of two questions: give one of {', '.join(TEMPLATES)}"
            ) from None


def _touched(offsets: NDArray[np.int64], spans: Sequence[tuple[int, int]], length: int) -> NDArray[np.bool_]:
    """Tokens with a character in a span; one without characters counts where it stands."""
    marks = np.zeros(length + 2, dtype=np.int64)
    for begin, end in spans:
        marks[begin + 1 : end + 1] = 1
    before = np.cumsum(marks)  # marked characters before each position
    begins, ends = offsets[:, 0], offsets[:, 1]
    touched: NDArray[np.bool_] = before[np.maximum(ends, begins + 1)] > before[begins]
    return touched


def _template_text(tokenizer: Any, template: str) -> str:
    if template != "tokenizer":
        return TEMPLATES[template]
    own = getattr(tokenizer, "chat_template", None)
    if not isinstance(own, str):
        raise CompeteError(
            f"--tokenizer-model {tokenizer.name_or_path} has no chat template: add chat_template.jinja to the folder, or "
            f"give --conversation-template {', '.join(TEMPLATES)}"
        )
    return own


def _image_id(tokenizer: Any, image_token: str) -> int:
    known = tokenizer.get_added_vocab().get(image_token)
    if known is None:
        raise CompeteError(
            f"--image-token {image_token} is no token of its own in --tokenizer-model {tokenizer.name_or_path}: add it with "
            f"transformers' add_special_tokens({{'additional_special_tokens': ['{image_token}']}}) and save_pretrained"
        )
    return int(known)


def _added_special(tokenizer: Any) -> Iterator[str]:
    return (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def hugging_face_tokenizer(tokenizer: Any) -> Any:
    """transformers' tokenizer within Megatron's.

    Raises:
        CompeteError: it is of another kind.
    """
    inner = getattr(getattr(tokenizer, "_tokenizer", None), "tokenizer", None)
    if not hasattr(inner, "apply_chat_template"):
        raise CompeteError(
            "conversations need a tokenizer with a chat template: give --tokenizer-type HuggingFaceTokenizer "
            "--tokenizer-model FOLDER"
        )
    return inner

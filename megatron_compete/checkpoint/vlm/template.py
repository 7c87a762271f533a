"""The chat template of an exported vision-language model: what training rendered, for messages in parts too.

Training has text with the image token in it; transformers' processors and servers hand over `{"type": "image"}` and
`{"type": "text"}`. A prelude in front of the template makes text of parts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.hf_model import load_hf_tokenizer
from megatron_compete.checkpoint.hf_reader import read_json
from megatron_compete.checkpoint.hf_tokenizer import has_tokenizer
from megatron_compete.checkpoint.vlm.processor import TEMPLATE
from megatron_compete.data.conversations.templates import TEMPLATES

_JOIN = (
    "{%- set joined = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set content -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content or [] -%}"
    "{%- if part.type == 'image' -%}{{ IMAGE }}{%- elif part.type == 'text' -%}{{ part.text }}"
    "{%- else -%}{{ raise_exception('messages have parts of type image and text, and there is ' ~ part.type) }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endset -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=content)] -%}"
    "{%- endfor -%}"
    "{%- set messages = joined.messages -%}"
)
"""Jinja: `messages` with text for contents; IMAGE is a literal to be put in."""

TOKENIZER_CONFIG = "tokenizer_config.json"


def trained_template(arguments: Mapping[str, Any]) -> str | None:
    """--conversation-template; None of an import that has not been trained."""
    found = arguments.get("conversation_template")
    return None if found is None else str(found)


def with_parts(template: str, image: str) -> str:
    """A template for contents that are text, for contents in parts too; `image` stands for an image part."""
    return _JOIN.replace("IMAGE", json.dumps(image)) + template


def write_template(folder: Path, arguments: Mapping[str, Any], image_token: str) -> None:
    """Make `chat_template.jinja` of an export's folder, whose tokenizer is there, that of training.

    The tokenizer's own stays as it is where it takes parts already, or where it takes nothing else.
    """
    trained = trained_template(arguments)
    if trained in TEMPLATES:  # plain trains on images with nothing between them and the caption
        _write(folder, with_parts(TEMPLATES[trained], image_token + ("" if trained == "plain" else "\n")))
    elif has_tokenizer(folder):
        tokenizer = load_hf_tokenizer(folder, "--tokenizer-model")
        if _needs_parts(tokenizer, image_token, trained is not None):
            _write(folder, with_parts(tokenizer.chat_template, f"{image_token}\n"))


def adds_special_tokens(source: Path, arguments: Mapping[str, Any]) -> bool:
    """Whether the tokenizer would add to a prompt what training, which has the template's text alone, did not."""
    trained = trained_template(arguments)
    if trained is None:
        return False
    tokenizer = load_hf_tokenizer(source, "--tokenizer-model")
    text, bos = _rendered(tokenizer, "question", TEMPLATES.get(trained)), tokenizer.bos_token
    if text is None or (bos and text.startswith(bos)):
        return False
    return bool(tokenizer(text)["input_ids"] != tokenizer(text, add_special_tokens=False)["input_ids"])


def _write(folder: Path, template: str) -> None:
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    path = folder / TOKENIZER_CONFIG
    settings = read_json(path) if path.is_file() else {}
    if settings.pop("chat_template", None) is not None:  # some programs read this one first
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _needs_parts(tokenizer: Any, image_token: str, trained: bool) -> bool:
    """Whether the tokenizer's template takes text and makes something else of the same in parts.

    Args:
        trained: with this template; otherwise its own way with parts counts, where it has one.
    """
    if not isinstance(tokenizer.chat_template, str):
        return False
    question = "question"
    text = _rendered(tokenizer, f"{image_token}\n{question}")
    parts = _rendered(tokenizer, [{"type": "image"}, {"type": "text", "text": question}])
    if not _has(text, image_token, question):
        return False
    return text != parts and (trained or not _has(parts, image_token, question))


def _has(rendered: str | None, *wanted: str) -> bool:
    return rendered is not None and all(rendered.count(one) == 1 for one in wanted)


def _rendered(tokenizer: Any, content: Any, template: str | None = None) -> str | None:
    """A question as the template, or the tokenizer's own, renders it; None where it fails, as it does in many ways."""
    messages = [{"role": "user", "content": content}]
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
    except Exception:
        return None

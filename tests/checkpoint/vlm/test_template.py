"""Prompts of an export against what training renders."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.vlm.template import write_template
from megatron_compete.data.conversations.chat import Chat
from tests.checkpoint.vlm import llava_models
from tests.checkpoint.vlm.test_writing import changed
from tests.data.conversations.test_chat import QWEN2
from tests.data.conversations.tiny import tokenizer

TALK = [
    {"role": "user", "content": "<image>\nWhat is it?"},
    {"role": "assistant", "content": ' A cat\'s "ear" & tail.\n'},
    {"role": "user", "content": "And\nthis: <image>\n?"},
    {"role": "assistant", "content": ""},
]
PARTS_ALONE = (
    "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<image>{% endfor %}"
)
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}{% endfor %}"
)


def in_parts(message: dict[str, str]) -> dict[str, Any]:
    before, *after = message["content"].split("<image>\n")
    parts = [{"type": "text", "text": before}] if before else []
    for text in after:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return {"role": message["role"], "content": parts}


def same_prompts(processor: Any, chat: Chat, talk: list[dict[str, str]]) -> None:
    for length in range(1, len(talk) + 1):
        for messages in (talk[:length], [in_parts(one) for one in talk[:length]]):
            for prompt in (False, True):
                found = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                assert found == chat.render(talk[:length], prompt=prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("template", ["vicuna_v1", "chatml", "tokenizer"])
def test_an_export_renders_what_training_did(template: str, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source")
    import_checkpoint(Import(source, tmp_path / "megatron"))
    run = changed(tmp_path / "megatron", tmp_path, conversation_template=template)
    export_to_hf(Export(run, tmp_path / "hf"))
    trained_with = AutoTokenizer.from_pretrained(tmp_path / "megatron" / "tokenizer")
    chat = Chat(trained_with, template)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    same_prompts(processor, chat, TALK)
    same_prompts(processor, chat, [{"role": "system", "content": "Be brief."}, *TALK])
    assert processor.chat_template == processor.tokenizer.chat_template


def saved(folder: Path, template: str | None) -> Path:
    """A tokenizer's folder, with the template inside of its configuration as older ones have it."""
    tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | ({"chat_template": template} if template else {})
    path.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("arguments", [{}, {"conversation_template": "tokenizer"}], ids=["imported", "trained"])
def test_a_template_for_text_takes_parts(arguments: dict[str, Any], tmp_path: Path) -> None:
    """As Qwen2's, which fails on them."""
    folder = saved(tmp_path / "tokenizer", QWEN2)
    chat = Chat(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(TypeError):
        chat.tokenizer.apply_chat_template([in_parts(TALK[0])], tokenize=False)
    write_template(folder, arguments, "<image>")
    same_prompts(AutoTokenizer.from_pretrained(folder), chat, TALK)
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("template", "arguments", "kept"),
    [
        (PARTS_ALONE, {}, True),
        (BOTH, {}, True),
        (BOTH, {"conversation_template": "tokenizer"}, False),  # trained with a line break behind pictures
        (None, {}, True),
    ],
)
def test_templates_that_take_parts_stay(template: str | None, arguments: dict[str, Any], kept: bool, tmp_path: Path) -> None:  # fmt: skip
    folder = saved(tmp_path / "tokenizer", template)
    write_template(folder, arguments, "<image>")
    assert (AutoTokenizer.from_pretrained(folder).chat_template == template) is kept


def test_plain_is_image_and_caption(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", None)
    write_template(folder, {"conversation_template": "plain"}, "<image>")
    messages = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}]
    found = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert found == Chat(tokenizer(), "plain").render(
        [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A cat."}]
    )


def test_other_parts_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", QWEN2)
    write_template(folder, {}, "<image>")
    with pytest.raises(Exception, match="parts of type image and text, and there is video"):
        AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_a_tokenizer_that_adds_more_than_training_had(tmp_path: Path) -> None:
    """chatml renders no BOS, and training adds none: evaluation reads that in config.json, and the card says it."""
    from tokenizers.processors import TemplateProcessing

    source = llava_models.save(tmp_path / "source")
    made = AutoTokenizer.from_pretrained(source)
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save_pretrained(source)
    assert AutoTokenizer.from_pretrained(source)("w5")["input_ids"] == [1, 5]
    import_checkpoint(Import(source, tmp_path / "megatron"))
    for template, said in (("chatml", True), ("vicuna_v1", False), (None, False)):
        (tmp_path / str(template)).mkdir()
        run = changed(tmp_path / "megatron", tmp_path / str(template), conversation_template=template)
        hf = export_to_hf(Export(run, tmp_path / str(template) / "hf")).output
        assert ("add_special_tokens=False" in (hf / "README.md").read_text()) is said
        assert getattr(AutoConfig.from_pretrained(hf), "conversation_template", None) == template

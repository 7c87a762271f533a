"""The folder that goes with the pictures of digits, as transformers and Megatron load it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from megatron_compete.data.conversations.chat import Chat
from megatron_compete.data.conversations.conversation import read_conversation
from megatron_compete.data.digit_pictures import write_digit_pictures
from megatron_compete.data.digit_processor import IMAGE, write_digit_processor
from megatron_compete.data.megatron_tokenizer import TokenizerChoice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_processor(tmp_path_factory.mktemp("processor") / "made")


def test_every_record_is_a_conversation_whose_answer_is_learned(folder: Path, tmp_path: Path) -> None:
    """As training reads it: the text is question, space, answer and `<eos>`, of words that the tokenizer knows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = Chat(tokenizer)
    pictures = write_digit_pictures(tmp_path, train=300, heldout=100)
    for path in (pictures.train_path, pictures.heldout_path):
        for record in json.loads(path.read_text()):
            question, answer = (turn["value"] for turn in record["conversations"])
            conversation = read_conversation(record)
            assert chat.render(conversation.messages) == f"{question} {answer}<eos>"
            encoded = chat.encode(conversation.messages, images=int("image" in record))
            assert tokenizer.decode(encoded.ids[encoded.learned]) == f"{answer} <eos>"
            assert tokenizer.unk_token_id not in encoded.ids


def test_content_in_parts_is_the_same_prompt(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = [{"type": "image"}, {"type": "text", "text": "where is the two ?"}]
    assert tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False) == (
        "<image>\nwhere is the two ? "
    )


def test_the_processor_finds_the_image_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.image_token, tokenizer.image_token_id) == (IMAGE, tokenizer.convert_tokens_to_ids(IMAGE))


def test_pictures_keep_their_pixels(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    found = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found[0], pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_megatron_loads_the_same_words(folder: Path) -> None:
    ours = AutoTokenizer.from_pretrained(folder)
    megatron = TokenizerChoice("HuggingFaceTokenizer", str(folder)).build()
    text = "<image>\nwhat colour is upper-left ? red<eos>"
    assert megatron.tokenize(text) == ours(text)["input_ids"]
    assert (megatron.vocab_size, megatron.eod) == (len(ours), ours.eos_token_id)

"""A tiny chat tokenizer, pictures of digits and conversations about them."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from megatron_compete.data.conversations.build import build_reader
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.reader import Reader
from megatron_compete.data.conversations.templates import CHATML

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "What is in the picture? A cat. The digit upper left is a seven.",
    "USER: ASSISTANT: system user assistant\n A chat between a curious user and an artificial intelligence assistant.",
]

SYSTEM_FIRST = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
"""A system prompt of the template's own, as Qwen2's."""


@cache
def tokenizer(template: str | None = SYSTEM_FIRST + CHATML) -> Any:
    """Byte-level, as Llama 3's and Qwen2's; every text has ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return _as_fast(made, template)


@cache
def pieces_tokenizer(template: str | None = None) -> Any:
    """Pieces with a mark for a space, and bytes for other characters, as Llama 2's and Vicuna's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    )
    state = json.loads(made.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _as_fast(made, template)


def _as_fast(made: Any, template: str | None) -> Any:
    from tokenizers import AddedToken

    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = template
    return fast


def reader(
    folder: Path | None, *, seq_length: int = 96, image_embeddings: int = 4, side: int = 16, **config: Any
) -> Reader:
    """Reads samples with images of `folder`, at 16 x 16 pixels and 4 embeddings a tile unless said otherwise."""
    workers = {} if "energon_path" in config else {"workers": 1}
    settings = ConversationConfig(image_folder=None if folder is None else str(folder), **workers | config)
    return build_reader(
        settings,
        tokenizer(),
        vision_model_type="siglip",
        img_h=side,
        img_w=side,
        seq_length=seq_length,
        image_embeddings=image_embeddings,
    )


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def save_pictures(folder: Path, count: int) -> list[str]:
    """`0.png`, `1.png`, ... of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        picture(10 + 3 * number % 17, 12 + number % 5, number).save(folder / name)
    return names


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Human and gpt by turns."""
    said = [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]
    return ([{"from": "system", "value": system}] if system else []) + said


def sample(id_: str, image: str | Sequence[str] | None = None, *texts: str) -> dict[str, Any]:
    """A record; by default one question about its image."""
    said = texts or ("<image>\nWhat is it?" if image else "What is a cat?", f"A {id_}.")
    return {"id": id_, **({"image": image} if image else {}), "conversations": turns(*said)}


def write_json(path: Path, records: Sequence[Any]) -> str:
    """An array, as LLaVA's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(records), indent=2))
    return str(path)


def mixed_dataset(folder: Path, pictures: int = 9, texts: int = 5) -> tuple[str, Path]:
    """A file and its image folder: samples with one or two images, and text alone, of different lengths."""
    names = save_pictures(folder / "images", pictures)
    records = [sample(f"with-{number}", name) for number, name in enumerate(names)]
    records[1] = sample("with-1", names[:2], "<image>\nand <image>: the same?", "no" * 9)
    records[2]["conversations"] += turns("And what else is there?", "nothing" * 3)
    records += [
        sample(f"text-{number}", None, "Say a word." * (number % 3 + 1), "word " * (number + 1))
        for number in range(texts)
    ]
    return write_json(folder / "data.json", records), folder / "images"

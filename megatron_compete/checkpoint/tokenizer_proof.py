"""Proof by comparison: the exported folder's tokenizer and SentencePiece give the same ids.

`tokenizer.py` says why they must. This looks, at every export, whether they do: the folder as a user loads it
(`AutoTokenizer.from_pretrained`) against the processor that Megatron trains with, on strings made to hurt, on strings
put together from the model's own pieces, and on text of the user's.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.custom_code import is_own_code
from megatron_compete.checkpoint.texts import JSON_LINES, read_documents
from megatron_compete.checkpoint.tokenizer import NORMAL, SPACE, UNKNOWN, SentencePieceModel
from megatron_compete.common.errors import CompeteError

SAMPLES = 2000
"""Pseudo-random strings that an export compares."""

ODD_STRINGS = (
    "", " ", "  ", "   a", "a   ", " a  b   c ", "\t", "\n", "\r\n", " \n \t ", "\n\n\n", "a\nb\r\nc\td",
    "    def f(x):\n        return x  # comment\n", "\u00a0", "\u2003\u3000", "\u200b\ufeff\u00ad",
    "▁", "▁▁a", " ▁ ▁", "a▁b", "<s>", "</s>", "<unk>", "<s>hello</s>", " <s> ", "</s></s>", "<pad>", "[INST] x [/INST]",
    "<0x41>", "<0x0A>x<0x", "<|endoftext|>", "\x00", "a\x00b", "\x01\x1f\x7f\x80\x9f", "\ufffd", "\uffff\U0010ffff",
    "\U000e0001\ue000", "\u0378", "e\u0301\u0323", "\u0301", "a" + "\u0300" * 40, "ﬁ ² ½ Å Ⅳ ㎏", "\u1100\u1161\u11a8",
    "Ünïcödé naïve façade", "日本語のテキスト", "한국어", "русский текст", "العربية", "ไทย", "हिन्दी", "𝕏𝒴", "ẞßſ",
    "\U0001f44d\U0001f3fd\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea", "don't can't we'll", "...", "?!?!",
    "=" * 5, "=" * 31, "=" * 257, "-" * 80, " " * 33, "\n" * 17, "\t" * 9, "a" * 1000, "ab" * 300, "aba" * 99, "0" * 50,
    "'" * 7 + '"' * 7, "(((((())))))", "1234567890 3.14159 1,000,000", "x=1;y=-2", "word " * 2000,
    ("line of text\n" + " " * 7) * 500, "".join(map(chr, range(32, 127))), "".join(map(chr, range(256))),
)  # fmt: skip


def prove(folder: Path, model: SentencePieceModel, verify_text: Path | None = None, samples: int = SAMPLES) -> int:
    """Compare the folder's tokenizer with SentencePiece; number of strings compared.

    Args:
        folder: exported, with `config.json`.
        verify_text: JSON Lines with a "text" each, or plain text.
        samples: how many strings to make from the model's pieces.
    Raises:
        CompeteError: the first string whose ids, or whose decoded text, differ.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer, PretrainedConfig

    processor = SentencePieceProcessor(model_file=str(model.path))
    # Beside modeling files of our own transformers would ask on a terminal whether to run them for the configuration,
    # and wait. The tokenizer does not need it.
    config = PretrainedConfig() if is_own_code(folder) else None
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), config=config, local_files_only=True, trust_remote_code=False
    )
    texts: Iterable[str] = chain(ODD_STRINGS, sampled_strings(model, samples))
    if verify_text is not None:
        texts = chain(texts, read_texts(verify_text))
    count = 0
    for text in texts:
        _compare(processor, tokenizer, model, text)
        count += 1
    return count


def _compare(processor: Any, tokenizer: Any, model: SentencePieceModel, text: str) -> None:
    expected = processor.encode_as_ids(text)
    found = tokenizer(text, verbose=False)["input_ids"]  # not verbose: long texts are meant to be long
    if found != expected:
        at = next((i for i, (one, other) in enumerate(zip(expected, found)) if one != other), len(expected))
        raise CompeteError(
            f"the converted tokenizer differs from {model.path} on {text[:60]!r}: at token {at} SentencePiece has "
            f"{expected[at : at + 4]} and the converted one {found[at : at + 4]}. Nothing was written"
        )
    # SentencePiece decodes <unk> as ⁇, and a ▁ of the text at its very start as a dummy prefix.
    if model.unk_id in expected or SPACE in text:
        return
    if tokenizer.decode(found, skip_special_tokens=True) != processor.decode_ids(expected):
        raise CompeteError(f"the converted tokenizer decodes the ids of {text[:60]!r} otherwise. Nothing was written")


def sampled_strings(model: SentencePieceModel, count: int) -> Iterator[str]:
    """Pseudo-random strings from the model's pieces, always the same: whole ones, fragments, runs, any character."""
    generator = random.Random(0)
    pieces = [piece for piece, _, type_ in model.pieces if type_ not in (UNKNOWN,)]
    letters = sorted({letter for piece, _, type_ in model.pieces if type_ == NORMAL for letter in piece})
    kinds = (
        lambda: generator.choice(pieces),
        lambda: _fragment(generator, generator.choice(pieces)),
        lambda: generator.choice(letters) * generator.randint(1, 40),
        lambda: generator.choice((" ", "  ", "\n", "\t", SPACE, _any_character(generator))),
    )
    for _ in range(count):
        # Mostly one kind, so that runs meet runs and fragments meet fragments.
        weights = [generator.random() ** 3 for _ in kinds]
        parts = generator.choices(kinds, weights, k=generator.randint(1, 16))
        text = "".join(part() for part in parts)
        yield text if generator.random() < 0.1 else text.replace(SPACE, " ")


def _fragment(generator: random.Random, piece: str) -> str:
    length = generator.randint(1, len(piece))
    return piece[:length] if generator.random() < 0.5 else piece[-length:]


def _any_character(generator: random.Random) -> str:
    code = generator.choice((generator.randrange(0x300), generator.randrange(0x10000), generator.randrange(0x110000)))
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)  # surrogates are no text


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a file: the "text" of every line of a `.jsonl`, else each line and then the whole.

    Raises:
        CompeteError: see `read_documents`.
    """
    documents = read_documents(path, "--verify-text")
    if path.suffix not in JSON_LINES:
        yield from documents[0].splitlines(keepends=True)
    yield from documents

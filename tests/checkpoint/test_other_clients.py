"""What other programs make of an exported tokenizer: llama.cpp, `tokenizers` and SentencePiece read the same files."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from megatron_compete.checkpoint.tokenizer import CONTROL, UNKNOWN, read_sentencepiece, write_tokenizer
from megatron_compete.checkpoint.tokenizer_proof import ODD_STRINGS, sampled_strings

SYMBOLS = ["<|im|>", "▁▁▁", "xa", "\n\n"]
KINDS: dict[str, dict[str, Any]] = {
    "lossless": {},
    "dummy-prefix": {"add_dummy_prefix": True},
    "symbols": {"user_defined_symbols": SYMBOLS, "allow_whitespace_only_pieces": False},
}


@dataclass
class LlamaCpp:
    """What llama.cpp's converter takes from a folder (conversion/llama.py, `_create_vocab_sentencepiece`, `SpecialVocab`)
    and how its SPM tokenizer (src/llama-vocab.cpp) then reads a text without special tokens."""

    folder: Path
    ids: dict[str, int] = field(init=False)
    scores: dict[str, float] = field(init=False)
    symbols: dict[str, int] = field(init=False)
    symbols_of_spaces: list[str] = field(init=False)

    def __post_init__(self) -> None:
        pieces = SentencePieceProcessor(model_file=str(self.folder / "tokenizer.model"))
        self.ids = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
        self.scores = {piece: pieces.get_score(i) for piece, i in self.ids.items()}
        self.config = json.loads((self.folder / "tokenizer_config.json").read_text())
        added = self.config.get("added_tokens_decoder", {}).items()
        symbols = {one["content"]: int(i) for i, one in added if not one["special"]}
        self.symbols_of_spaces = [symbol for symbol in symbols if "▁" in symbol]
        self.symbols = {symbol.replace("▁", " "): i for symbol, i in symbols.items()}

    def encode(self, text: str) -> list[int]:
        before = [self.ids["<s>"]] if self.config.get("add_bos_token", True) else []
        after = [self.ids["</s>"]] if self.config.get("add_eos_token", False) else []
        return before + self._split(text, sorted(self.symbols, key=len, reverse=True)) + after

    def _split(self, text: str, symbols: list[str]) -> list[int]:
        """Symbols are cut out of the text, the longest first."""
        if not symbols:
            prefix = " " if text and self.config.get("add_prefix_space", True) else ""
            return self._merge((prefix + text).replace(" ", "▁"))
        parts = [self._split(part, symbols[1:]) for part in text.split(symbols[0])]
        result = parts[0]
        for part in parts[1:]:
            result = [*result, self.symbols[symbols[0]], *part]
        return result

    def _merge(self, text: str) -> list[int]:
        """The pair of neighbours with the best score becomes one, the leftmost first; what is no piece becomes bytes."""
        parts = list(text)
        while True:
            pairs = {i: self.scores.get(parts[i] + parts[i + 1]) for i in range(len(parts) - 1)}
            known = {i: score for i, score in pairs.items() if score is not None}
            if not known:
                break
            best = max(known, key=lambda i: (known[i], -i))
            parts[best : best + 2] = ["".join(parts[best : best + 2])]
        return [one for part in parts for one in self._ids(part)]

    def _ids(self, part: str) -> list[int]:
        if part in self.ids:
            return [self.ids[part]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, train_model: Callable[..., Path], tmp_path: Path) -> Path:
    write_tokenizer(read_sentencepiece(train_model(**KINDS[request.param])), tmp_path, 128)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    return tmp_path


def texts(folder: Path) -> list[str]:
    """Strings of moderate length in which no special token is written out: clients differ on what that means."""
    model = read_sentencepiece(folder / "tokenizer.model")
    special = model.of_type(CONTROL) + model.of_type(UNKNOWN)
    plain = (text for text in (*ODD_STRINGS, *sampled_strings(model, 300)) if len(text) < 300)
    return [text for text in plain if not any(one in text for one in special)]


def test_llama_cpp(folder: Path) -> None:
    client, tokenizer = LlamaCpp(folder), AutoTokenizer.from_pretrained(str(folder))
    for text in texts(folder):
        if client.symbols_of_spaces and "▁" in text:
            continue  # it knows the symbol as spaces alone, training also where the text itself has ▁
        assert client.encode(text) == tokenizer(text)["input_ids"], text


def test_tokenizers_without_transformers(folder: Path) -> None:
    client, tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(str(folder))
    for text in texts(folder):
        assert client.encode(text).ids == tokenizer(text)["input_ids"], text


def test_sentencepiece(folder: Path) -> None:
    client = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    for text in texts(folder):
        assert client.encode(text) == tokenizer(text)["input_ids"], text

"""How each engine takes over a tokenizer that Megatron built: the reference, split, kitoken, gigatoken.

An engine is given the tokenizer's own data (SentencePiece's model, a fast tokenizer's `tokenizer.json`, tiktoken's
ranks), never the user's path, so that all flags have had their effect on it. Where it is known to read a text in
another way than the reference, the difference is closed here: see `_Guarded` and `_Wrapped`. Whether that was enough is
for `sample_check` to say.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_compete.data.engines.split import SplitEncoder, conditions_missing
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

Ids = Sequence[int] | np.ndarray
"""Token ids of one text."""

Encode = Callable[[list[str]], Sequence[Ids]]
"""Ids of every text of a batch, on the calling thread."""

REFERENCE, SPLIT = "reference", "split"
CACHE_BYTES = 64_000_000
"""Text after which gigatoken is built anew: it remembers every word it met. 7 bytes of memory for a byte of text
without repetition (random hexadecimal numbers), 1.3 for Python sources."""

_GUARD_CHARACTERS = 4


class CannotLoad(Exception):
    """An engine is not installed, or has no way to read this tokenizer; the message says which."""


def reference_encode(tokenizer: Any) -> Encode:
    """Megatron's own tokenizer, text by text.

    SentencePiece's batch call is no quicker on one thread, nor is that of a Hugging Face tokenizer; tiktoken's arrays
    spare the Python list.
    """
    encoding = _tiktoken_encoding(tokenizer)
    if encoding is not None:
        return lambda texts: [encoding.encode_to_numpy(text, allowed_special="all") for text in texts]
    return lambda texts: [tokenizer.tokenize(text) for text in texts]


def load_engine(name: str, choice: TokenizerChoice, tokenizer: Any) -> Encode:
    """An engine that encodes as `tokenizer` does, as far as is known.

    Args:
        name: `reference`, `split`, `kitoken` or `gigatoken`.
        tokenizer: what `choice.build()` gave.
    Raises:
        CannotLoad: with the reason.
    """
    reference = reference_encode(tokenizer)
    if name == REFERENCE:
        return reference
    try:
        return _load(name, choice, tokenizer, reference)
    except CannotLoad:
        raise
    except ImportError as error:
        raise CannotLoad(f"not installed ({error}): pip install {name}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise CannotLoad(
            f"cannot read this tokenizer: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None


def _load(name: str, choice: TokenizerChoice, tokenizer: Any, reference: Encode) -> Encode:
    inner = getattr(tokenizer, "_tokenizer", None)
    if choice.library == "SentencePiece":
        return _load_sentencepiece(name, inner, reference)
    if name == SPLIT:
        raise CannotLoad("it is for SentencePiece models")
    if _tiktoken_encoding(tokenizer) is not None:
        return _json_engine(name, _tiktoken_json(_tiktoken_encoding(tokenizer)))
    fast = getattr(inner, "tokenizer", None) or getattr(inner, "_tokenizer", None)
    if fast is not None and getattr(fast, "is_fast", False):
        return _Wrapped(_json_engine(name, fast.backend_tokenizer.to_str()), fast, tokenizer)
    if choice.tokenizer_type.startswith("Null"):
        raise CannotLoad("NullTokenizer reads numbers")
    raise CannotLoad("a Hugging Face tokenizer written in Python has no tokenizer.json")


def _load_sentencepiece(name: str, inner: Any, reference: Encode) -> Encode:
    if inner.legacy or (inner.removed_extra_spaces and not inner.ignore_extra_whitespaces):
        raise CannotLoad("Megatron changes the text before SentencePiece sees it (legacy, or extra whitespace kept)")
    processor = inner.tokenizer
    model = processor.serialized_model_proto()
    if name == SPLIT:
        return _load_split(model, reference)
    if name == "kitoken":
        from kitoken import Kitoken

        # False: control pieces written out in a text are ordinary characters, as they are to SentencePiece.
        engine = Kitoken.from_sentencepiece(model)
        return lambda texts: engine.encode_all(texts, False)
    from gigatoken import Tokenizer

    return _Guarded(_Gigatoken(lambda: Tokenizer.from_sentencepiece(model)), reference, _guards(processor))


def _load_split(model: bytes, reference: Encode) -> Encode:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    if missing := conditions_missing(proto):
        raise CannotLoad(missing)
    return SplitEncoder(proto, reference)


def _json_engine(name: str, tokenizer_json: str) -> Encode:
    if name == "kitoken":
        from kitoken import Kitoken

        engine = Kitoken.from_tokenizers(tokenizer_json.encode())
        return lambda texts: engine.encode_all(texts, True)
    from gigatoken import Tokenizer

    return _Gigatoken(lambda: Tokenizer.from_json(tokenizer_json))


class _Gigatoken:
    """gigatoken on the calling thread, with bounded memory."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._tokenizer = build()
        self._characters = 0

    def __call__(self, texts: list[str]) -> Sequence[Ids]:
        self._characters += sum(map(len, texts))
        if self._characters > CACHE_BYTES:
            self._tokenizer, self._characters = self._build(), 0
        # One text at a time never touches gigatoken's thread pool, and gives arrays without Python integers.
        encode = self._tokenizer.encode
        return [encode(text) for text in texts]


class _Guarded:
    """An engine that reads written-out control pieces (`<s>` in a page of HTML) as such, where SentencePiece does not.

    Texts that hold one go to the reference.
    """

    def __init__(self, encode: Encode, reference: Encode, guards: Sequence[str]) -> None:
        self._encode = encode
        self._reference = reference
        self._guards = guards

    def __call__(self, texts: list[str]) -> Sequence[Ids]:
        guards = self._guards
        guarded = {index for index, text in enumerate(texts) if any(guard in text for guard in guards)}
        if not guarded:
            return self._encode(texts)
        quick = iter(self._encode([text for index, text in enumerate(texts) if index not in guarded]))
        exact = iter(self._reference([texts[index] for index in sorted(guarded)]))
        return [next(exact) if index in guarded else next(quick) for index in range(len(texts))]


def _guards(processor: Any) -> list[str]:
    """Beginnings of the pieces that SentencePiece never finds in a text; few, because each is sought in every text."""
    found = set()
    for index in range(processor.get_piece_size()):
        if processor.is_byte(index):
            found.add("<0x")
        elif processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
            found.add(processor.id_to_piece(index)[:_GUARD_CHARACTERS])
    return sorted(found - {""})


class _Wrapped:
    """An engine under a Hugging Face post-processor: the ids it puts before and after every text (<s>, [CLS] [SEP]).

    Raises:
        CannotLoad: they are not the same around two texts.
    """

    def __init__(self, encode: Encode, fast: Any, tokenizer: Any) -> None:
        self._encode = encode
        around = {self._around(text, fast, tokenizer) for text in ("a", "b a")}
        if len(around) != 1:
            raise CannotLoad("its post-processor does not put the same ids around every text")
        self._prefix, self._suffix = (np.array(ids, dtype=np.int64) for ids in around.pop())

    @staticmethod
    def _around(text: str, fast: Any, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        bare = fast.backend_tokenizer.encode(text, add_special_tokens=False).ids
        whole = list(tokenizer.tokenize(text))
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
        raise CannotLoad("its post-processor changes the ids of a text")

    def __call__(self, texts: list[str]) -> Sequence[Ids]:
        if not self._prefix.size and not self._suffix.size:
            return self._encode(texts)
        return [np.concatenate([self._prefix, ids, self._suffix]).astype(np.int64) for ids in self._encode(texts)]


def _tiktoken_encoding(tokenizer: Any) -> Any:
    """The `tiktoken.Encoding` inside Megatron's TikTokenizer, or None."""
    encoding = getattr(getattr(tokenizer, "_tokenizer", None), "tokenizer", None)
    return encoding if type(encoding).__module__.startswith("tiktoken") else None


@functools.lru_cache(maxsize=1)  # seconds for a large vocabulary; workers are forked from the process that chose
def _tiktoken_json(encoding: Any) -> str:
    """A `tiktoken.Encoding` as `tokenizer.json`.

    A word that is a token is taken whole (`ignore_merges`). Otherwise tiktoken joins, again and again, the neighbours
    whose joint bytes have the lowest rank, leftmost first: SentencePiece's rule with -rank for the score, for which
    `canonical_merges` gives the one merge of each token.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from megatron_compete.data.tokenizer_merges import canonical_merges

    character = bytes_to_unicode()
    ids = {"".join(character[byte] for byte in token): rank for token, rank in encoding._mergeable_ranks.items()}
    merges = canonical_merges({token: -float(rank) for token, rank in ids.items()})
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(encoding._pat_str), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    record = json.loads(tokenizer.to_str())
    # Written by hand: `tokenizers` would give special tokens ids after the ranks, tiktoken has them before.
    same = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    record["added_tokens"] = [{"id": id_, "content": text} | same for text, id_ in encoding._special_tokens.items()]
    return json.dumps(record)

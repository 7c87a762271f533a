"""Parts of a text that no piece crosses give the ids of the whole: against SentencePiece itself, and when refused."""

import io
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from megatron_compete.data.engines import split
from megatron_compete.data.engines.sample_check import odd_strings
from megatron_compete.data.engines.split import SplitEncoder, conditions_missing

LOSSLESS: dict[str, Any] = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "add_dummy_prefix": False, "allow_whitespace_only_pieces": True, "vocab_size": 400,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "as our tokenizers are": {},
    "pieces across words": {"split_by_whitespace": False, "split_by_unicode_script": False},
    "with symbols": {"user_defined_symbols": ["<|end|>", "<|end|>>", "\u2581;", "e\u2581"]},
    "with digits apart": {"split_digits": True},
}

Train = Callable[..., sentencepiece.SentencePieceProcessor]


@pytest.fixture(scope="module")
def train(texts: list[str]) -> Train:
    def train_one(**options: Any) -> sentencepiece.SentencePieceProcessor:
        model = io.BytesIO()
        lines = [line for text in texts[:20] for line in text.split("\n") if line]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, **LOSSLESS | options
        )
        return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    return train_one


def proto_of(processor: sentencepiece.SentencePieceProcessor) -> Any:
    return sentencepiece_model_pb2.ModelProto.FromString(processor.serialized_model_proto())


def split_encoder(processor: sentencepiece.SentencePieceProcessor) -> SplitEncoder:
    proto = proto_of(processor)
    assert conditions_missing(proto) is None
    return SplitEncoder(proto, lambda texts: [processor.encode_as_ids(text) for text in texts])


@pytest.mark.parametrize("way", WAYS)
def test_the_ids_are_sentencepieces(train: Train, texts: list[str], way: str) -> None:
    processor = train(**WAYS[way])
    encode = split_encoder(processor)
    short = ["".join(one) for length in range(6) for one in product(" e\u2581\n;\u2603", repeat=length)]
    symbols = ["a<|end|>>>b <|end| <|end|><|end|>;", " ;\u2581; e e\u2581"]
    for text in [*texts, *odd_strings(texts), *short, *symbols]:
        assert encode([text])[0] == processor.encode_as_ids(text), repr(text)


def test_texts_fall_into_many_parts(train: Train, texts: list[str]) -> None:
    encode = split_encoder(train())
    starts = encode._starts(texts[0])
    assert len(starts) > len(texts[0]) / 20
    assert encode._starts("") == []


def test_memory_is_bounded(train: Train, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "REMEMBERED_PARTS", 10)
    monkeypatch.setattr(split, "LONGEST_REMEMBERED", 3)
    processor = train()
    encode = split_encoder(processor)
    assert encode(texts[:5]) == [processor.encode_as_ids(text) for text in texts[:5]]
    assert 0 < len(encode._ids) <= 10
    assert max(map(len, encode._ids)) <= 3


def test_half_of_a_surrogate_pair_is_left_to_the_reference(train: Train) -> None:
    processor = train()
    with pytest.raises(Exception) as wanted:
        processor.encode_as_ids("a\ud800")
    with pytest.raises(type(wanted.value)) as found:
        split_encoder(processor)(["a\ud800"])
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "it is no BPE model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises texts (nmt_nfkc)"),
        ({"add_dummy_prefix": True}, "it puts a space before a text"),
        ({"remove_extra_whitespaces": True}, "it removes extra spaces"),
        ({"byte_fallback": False}, "not every character has a piece or bytes"),
    ],
)
def test_what_cannot_be_split(train: Train, options: dict[str, Any], reason: str) -> None:
    assert conditions_missing(proto_of(train(**options))) == reason


def test_unused_pieces_and_bare_spaces_cannot_be_split(train: Train) -> None:
    proto = proto_of(train())
    proto.pieces[300].type = split.UNUSED
    assert conditions_missing(proto) == "it has pieces of the type unused"
    proto = proto_of(train())
    proto.normalizer_spec.escape_whitespaces = False
    assert conditions_missing(proto) == "it leaves spaces as they are"

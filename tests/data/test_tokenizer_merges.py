"""BPE merges, against SentencePiece itself on random sets of pieces with random scores."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, models

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.tokenizer_merges import canonical_merges


def random_scores(seed: int) -> dict[str, float]:
    """Pieces over a small alphabet, rich in overlaps, with unique scores in random order."""
    generator = random.Random(seed)
    alphabet = generator.choice(("a", "ab", "ab", "abc"))
    pieces = set(alphabet)
    longest = generator.choice((3, 5, 9))
    for _ in range(300):
        joint = generator.choice(sorted(pieces)) + generator.choice(sorted(pieces))
        if len(joint) <= longest and len(pieces) < 40:
            pieces.add(joint)
    ranked = sorted(pieces, key=lambda piece: (len(piece) == 1, generator.random()))
    return {piece: -float(rank) for rank, piece in enumerate(ranked)}


def processor(scores: dict[str, float]) -> SentencePieceProcessor:
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 2
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.pieces.add(piece="<unk>", score=0, type=2)
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score)
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def hugging_face(scores: dict[str, float], merges: list[tuple[str, str]]) -> Tokenizer:
    vocabulary = {"<unk>": 0} | {piece: index for index, piece in enumerate(scores, 1)}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_one_merge_a_piece_gives_sentencepieces_ids(seed: int) -> None:
    scores = random_scores(seed)
    ours, theirs = hugging_face(scores, canonical_merges(scores)), processor(scores)
    generator = random.Random(seed + 1)
    letters = sorted(piece for piece in scores if len(piece) == 1)
    for _ in range(40):
        runs = (generator.choice(letters) * generator.choice((1, 1, 2, 7)) for _ in range(generator.randint(1, 14)))
        text = "".join(runs)
        assert ours.encode(text).ids == theirs.encode(text), text


def test_the_split_is_the_one_that_encoding_the_piece_alone_ends_in() -> None:
    scores = {"ab": -0.0, "bc": -1.0, "abc": -2.0, "a": -3.0, "b": -4.0, "c": -5.0}
    assert canonical_merges(scores) == [("a", "b"), ("b", "c"), ("ab", "c")]


def test_a_run_is_joined_from_the_left() -> None:
    scores = {"==": -0.0, "===": -1.0, "=": -2.0}
    assert canonical_merges(scores) == [("=", "="), ("==", "=")]


def test_a_piece_that_no_text_can_reach_has_no_merge() -> None:
    # ab + cd would be abcd, but between a and d the pair bc always comes first.
    scores = {"bc": -0.0, "ab": -1.0, "cd": -2.0, "abcd": -3.0, "a": -4.0, "b": -5.0, "c": -6.0, "d": -7.0}
    assert canonical_merges(scores) == [("b", "c"), ("a", "b"), ("c", "d")]
    assert processor(scores).encode("abcd", out_type=str) == ["a", "bc", "d"]


def test_equal_scores_are_refused() -> None:
    with pytest.raises(CompeteError, match="'ab' and 'bc' have the same score -1"):
        canonical_merges({"ab": -1.0, "bc": -1.0, "a": -2.0, "b": -3.0, "c": -4.0})


def test_a_missing_character_is_refused() -> None:
    with pytest.raises(CompeteError, match="'ab' is made from 'b', which is not a piece"):
        canonical_merges({"ab": -1.0, "a": -2.0})

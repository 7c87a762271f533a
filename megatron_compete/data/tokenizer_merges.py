"""The merges of a SentencePiece BPE model, exactly.

SentencePiece's BPE (src/bpe_model.cc) starts from characters and, again and again, joins the two neighbours whose
joint string is the piece with the highest score; of several places for the same piece the leftmost comes first.
Hugging Face's BPE joins the pair with the lowest rank; of several places for the same pair the leftmost comes first.
A piece can be split into two pieces in several ways, and the second ranks each of these pairs apart while the first
does not know them apart. Still one merge a piece, ranked by score, gives the same result for every text:

Take any moment of SentencePiece's work at which neighbours x, y are about to become the piece P. No joint so far has
crossed the borders of these len(P) characters, or x and y would not fill them. So the joints inside were made in the
order in which they are made when the string P is all there is: which joint comes next depends on scores and on the
order of places, and neither is changed by what lies around. Encoding P alone passes through exactly one state of two
symbols. Hence (x, y) is that state, always; no other split of P can ever occur, in no context. `canonical_merges`
finds it by encoding each piece. A piece whose own encoding does not end in itself is never produced and needs no merge.

transformers' `generate_merges` ranks every split of a piece instead: no text out of 11,888 told the two apart, and no
proof says that none does.

What this needs, and `canonical_merges` checks: no two pieces with the same score (their order would depend on the
place), and no split into a character that is not itself a piece (Hugging Face sees bytes or <unk> there).
"""

from collections.abc import Mapping
from itertools import pairwise

from megatron_compete.common.errors import CompeteError


def canonical_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """One merge for each piece that BPE can produce, best score first.

    Args:
        scores: score of every piece that may take part in merges (type NORMAL).
    Raises:
        CompeteError: the merges cannot be ranked, or need characters that are not pieces.
    """
    ranked = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    merges: list[tuple[str, str]] = []
    for piece in ranked:
        split = _last_merge(piece, scores)
        if split is not None:
            _check_characters(piece, split, scores)
            merges.append(split)
    for one, other in pairwise(ranked):
        if scores[one] == scores[other]:
            raise CompeteError(
                f"the tokenizer's pieces {one!r} and {other!r} have the same score {scores[one]:g}: which is joined "
                "first depends on the text, and a Hugging Face tokenizer has no such rule"
            )
    return merges


def _last_merge(piece: str, scores: Mapping[str, float]) -> tuple[str, str] | None:
    """The last join when `piece` is encoded; None where the encoding ends in more than one symbol."""
    symbols = list(piece)
    while len(symbols) > 2:
        joints = [one + other for one, other in pairwise(symbols)]
        # max() takes the first of equals: the leftmost.
        best = max(range(len(joints)), key=lambda at: scores.get(joints[at], float("-inf")))
        if joints[best] not in scores:
            return None
        symbols[best : best + 2] = [joints[best]]
    return (symbols[0], symbols[1])


def _check_characters(piece: str, split: tuple[str, str], scores: Mapping[str, float]) -> None:
    for part in split:
        if part not in scores:
            raise CompeteError(
                f"the tokenizer's piece {piece!r} is made from {part!r}, which is not a piece: "
                "a Hugging Face tokenizer cannot join it"
            )

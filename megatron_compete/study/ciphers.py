"""Languages whose mappings conflict: one text under several substitution ciphers.

A document is cut into pieces, and each piece is written in one of N fixed permutations of the alphabet. What a byte means and
which byte follows depend then on the piece's cipher, which no byte tells by itself but the text before it does: a router
that reads the hidden state can send a piece's tokens to experts of its cipher, and routing by token cannot. It is the
teacher-student task of `study.regions` as text: regions of the input with maps of their own.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

ASCII = "\n" + "".join(map(chr, range(32, 127)))
"""Newline and printable ASCII, 96 symbols of one byte each. All else, rare in source text, stays as it is."""
LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""What a text is brought to first, as in text8: lower-case letters, and a space for each stretch of anything else."""
PIECE_BYTES = 2048
"""A piece ends with the line that reaches this many bytes: many sequences long, and far shorter than most modules."""


def cipher(number: int, alphabet: str = ASCII) -> dict[int, int]:
    """A permutation of the alphabet, for `str.translate`: the same on every machine, by hashes of its number."""
    order = sorted(alphabet, key=lambda symbol: hashlib.sha256(f"cipher:{number}:{symbol}".encode()).digest())
    return {ord(symbol): ord(image) for symbol, image in zip(alphabet, order)}


def letters_of(text: str) -> str:
    """The text in `LETTERS`."""
    return re.sub("[^a-z]+", " ", text.lower())


def pieces(text: str) -> Iterator[str]:
    """The text in order, cut after lines: together the text itself."""
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line.encode())
        if size >= PIECE_BYTES:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def enciphered(documents: Sequence[tuple[str, str]], count: int, alphabet: str = ASCII) -> list[tuple[str, str, int]]:
    """The documents' pieces under `count` ciphers.

    Pieces take turns in the order of a hash of their names, so that ciphers are equally frequent to within one piece and
    have nothing to do with what a text says.

    Args:
        documents: name and text of each.
        alphabet: `ASCII`, or `LETTERS`, to which each piece is brought first.
    Returns:
        Name, enciphered text and number of the cipher of each piece, in the documents' order; names are "source:number".
    """
    plain = [(f"{name}:{at}", piece) for name, text in documents for at, piece in enumerate(pieces(text))]
    if alphabet == LETTERS:
        plain = [(name, letters_of(piece)) for name, piece in plain]
    drawn = sorted(range(len(plain)), key=lambda one: hashlib.sha256(f"piece:{plain[one][0]}".encode()).digest())
    turn = {one: rank % count for rank, one in enumerate(drawn)}
    tables = [cipher(number, alphabet) for number in range(count)]
    return [(name, piece.translate(tables[turn[one]]), turn[one]) for one, (name, piece) in enumerate(plain)]

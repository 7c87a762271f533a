"""Ciphers: permutations of the alphabet, and texts cut into pieces that are written in them."""

import hashlib
from collections import Counter

from megatron_compete.study.ciphers import ASCII, LETTERS, PIECE_BYTES, cipher, enciphered, letters_of, pieces

TEXT = "".join(f"def f{number}(x):\n\treturn 'ä€😀' + x{number}  # \x0c {{~}}\r\n" for number in range(400))


def test_a_cipher_permutes_the_alphabet() -> None:
    assert len(set(ASCII)) == 96 and all(symbol == "\n" or " " <= symbol <= "~" for symbol in ASCII)
    for number in range(20):
        table = cipher(number)
        assert sorted(map(chr, table)) == sorted(map(chr, table.values())) == sorted(ASCII)
    assert len({tuple(cipher(number).values()) for number in range(100)}) == 100


def test_ciphers_never_change() -> None:
    whole = "".join(ASCII.translate(cipher(number)) for number in range(32))
    assert hashlib.sha256(whole.encode()).hexdigest()[:16] == "7bfe98f0058a017d"


def test_ciphers_conflict() -> None:
    """Of two ciphers about one symbol has the same image: 1 in expectation for random permutations."""
    same = [sum(cipher(a)[symbol] == cipher(b)[symbol] for symbol in cipher(a)) for a in range(12) for b in range(a)]
    assert 0.6 < sum(same) / len(same) < 1.4


def test_pieces_are_the_text() -> None:
    cut = list(pieces(TEXT))
    assert "".join(cut) == TEXT and len(cut) > 5
    assert all(PIECE_BYTES <= len(piece.encode()) < PIECE_BYTES + 80 for piece in cut[:-1])
    assert list(pieces("")) == [] and list(pieces("x")) == ["x"]


def test_every_piece_comes_back_under_its_cipher_alone() -> None:
    documents = [(f"module{number}.py", TEXT[number:]) for number in range(5)]
    written = enciphered(documents, 4)
    back = [{image: symbol for symbol, image in cipher(number).items()} for number in range(4)]
    plain: dict[str, str] = {}
    for name, text, number in written:
        source = name.rpartition(":")[0]
        plain[source] = plain.get(source, "") + text.translate(back[number])
        assert text.translate(back[(number + 1) % 4]) != text.translate(back[number])
        assert [symbol for symbol in text if symbol not in ASCII] == [
            symbol for symbol in text.translate(back[number]) if symbol not in ASCII
        ]
    assert plain == dict(documents)


def test_ciphers_take_turns_in_an_order_of_their_own() -> None:
    documents = [(f"module{number}.py", TEXT) for number in range(5)]
    written = enciphered(documents, 7)
    counts = Counter(number for _, _, number in written)
    assert set(counts) == set(range(7)) and max(counts.values()) - min(counts.values()) <= 1
    assert [number for _, _, number in written] != [at % 7 for at in range(len(written))]
    assert written == enciphered(documents, 7)
    assert [name for name, _, _ in written] == [f"{name}:{at}" for name, text in documents for at in range(len(list(pieces(text))))]  # fmt: skip


def test_letters_are_the_text_without_the_rest() -> None:
    assert letters_of("Def  f_1(Xyz):\n\treturn 'ä€'; # Ω") == "def f xyz return "
    assert len(set(LETTERS)) == 27


def test_text_of_letters_stays_text_of_letters() -> None:
    documents = [("a.py", TEXT), ("b.py", TEXT.upper())]
    plain = {name: text for name, text, _ in enciphered(documents, 1)}
    for name, text, number in enciphered(documents, 3, LETTERS):
        table = cipher(number, LETTERS)
        assert sorted(table) == sorted(table.values()) == sorted(map(ord, LETTERS)) and set(text) <= set(LETTERS)
        source, at = name.split(":")
        piece = list(pieces(dict(documents)[source]))[int(at)]
        assert text.translate({image: symbol for symbol, image in table.items()}) == letters_of(piece)
    assert len(plain) == len(enciphered(documents, 3, LETTERS))

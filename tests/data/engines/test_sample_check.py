"""The check by sample: what it compares, and what it says of an engine that differs or fails."""

from megatron_compete.data.engines.sample_check import compare, encode_reference, odd_strings


def lengths(texts: list[str]) -> list[list[int]]:
    """A reference for these tests: a text's length."""
    return [[len(text)] for text in texts]


def test_an_engine_that_fails() -> None:
    class Panic(BaseException):
        """As pyo3 raises it."""

    def panic(texts: list[str]) -> list[list[int]]:
        raise Panic("index out of range")

    compared = compare(panic, encode_reference(lengths, ["a"]))  # type: ignore[arg-type]
    assert compared.differing_documents == 1 and "it fails: index out of range" in str(compared.difference)


def test_one_document_that_differs() -> None:
    expected = encode_reference(lengths, ["one", "three"])
    compared = compare(lambda texts: [[len(text) - (text == "three")] for text in texts], expected)
    assert (compared.documents, compared.differing_documents) == (2, 1)
    assert compared.difference == "document of the sample 1 ('three'): token 0 is 4 where the reference has 5"
    assert compare(lengths, expected).identical


def test_odd_strings_are_the_same_for_the_same_sample() -> None:
    strings = list(odd_strings(["a sample"], count=50))
    assert strings == list(odd_strings(["a sample"], count=50)) != list(odd_strings(["b sample"], count=50))
    assert {"", "<s>", "'s\n"} & set(strings)

"""The mutations keep up with the code that they change: fast, so that a change of that code shows at once."""

import pytest

from tests.mutations.copies import PROJECT, Mutation
from tests.mutations.mutations import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_changes_one_place_and_names_a_test(mutation: Mutation) -> None:
    mutation.mutated((PROJECT / "megatron_compete" / mutation.file).read_text())
    file, _, function = mutation.test.partition("::")
    assert f"def {function.partition('[')[0]}(" in (PROJECT / "tests" / file).read_text()


def test_text_that_is_elsewhere_too_or_nowhere_is_refused() -> None:
    mutation = Mutation("routing/winners.py", "a", "b", "")
    for text in ("", "a a"):
        with pytest.raises(AssertionError, match="must change one place"):
            mutation.mutated(text)
    assert mutation.mutated("x a y") == "x b y"

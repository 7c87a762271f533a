"""Tests notice what they are there for: each named mutation of the package makes its named test fail.

Everything happens in a copy; `make test-mutations` runs this alone.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations.copies import Mutant, Mutation, TestServer, copy_project
from tests.mutations.mutations import MUTATIONS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy").resolve()
    copy_project(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    server = TestServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def unchanged(copy: Path, server: TestServer) -> dict[str, int | str]:
    """What becomes of all named tests without a mutation."""
    return server.run(copy, *dict.fromkeys(mutation.test for mutation in MUTATIONS))


def test_without_a_mutation_the_named_tests_pass(unchanged: dict[str, int | str]) -> None:
    assert (unchanged["failed"], unchanged["broken"]) == (0, "")
    assert int(unchanged["passed"]) >= len({mutation.test for mutation in MUTATIONS})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_noticed(mutation: Mutation, copy: Path, server: TestServer, unchanged: object) -> None:
    with Mutant(copy, mutation):
        result = server.run(copy, mutation.test)
    assert result["broken"] == "", "the mutated package must still import"
    assert result["failed"], f"{mutation.test} passes all the same"

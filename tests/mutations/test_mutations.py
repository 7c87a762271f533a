"""Tests notice what they are there for: each named mutation of the package makes its named test fail.

Everything happens in a copy; `make test-mutations` runs this alone.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations.copies import Mutant, Mutation, TestServer, copy_project
from tests.mutations.mutations import MUTATIONS

pytestmark = pytest.mark.slow

HALF = {test: number % 2 for number, test in enumerate(sorted({mutation.test for mutation in MUTATIONS}))}
"""Two workers share the mutations, each with the tests of its own."""


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


def of_half(half: int, value: object) -> object:
    return pytest.param(value, id=str(value), marks=pytest.mark.xdist_group(f"half {half}"))


@pytest.mark.parametrize("half", [of_half(half, half) for half in (0, 1)])
def test_without_a_mutation_the_named_tests_pass(half: int, copy: Path, server: TestServer) -> None:
    tests = [test for test, its_half in HALF.items() if its_half == half]
    result = server.run(copy, *tests)
    assert (result["failed"], result["broken"]) == (0, "")
    assert int(result["passed"]) >= len(tests)


@pytest.mark.parametrize("mutation", [of_half(HALF[mutation.test], mutation) for mutation in MUTATIONS])
def test_a_mutation_is_noticed(mutation: Mutation, copy: Path, server: TestServer) -> None:
    with Mutant(copy, mutation):
        result = server.run(copy, mutation.test)
    assert result["broken"] == "", "the mutated package must still import"
    assert result["failed"], f"{mutation.test} passes all the same"

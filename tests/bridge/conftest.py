"""These tests need Megatron-Bridge's wheel, which is in an environment of its own (`make test-bridge`)."""

import pytest

from tests.bridge.environment import is_installed
from tests.ranks import run_rank


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where the wheel is missing, with the reason."""
    if is_installed():
        return
    for item in items:
        if item.get_closest_marker("bridge"):
            item.add_marker(pytest.mark.skip(reason="needs Megatron-Bridge: run `make test-bridge`"))


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model in Hugging Face's format."""
    from tests.bridge.jobs import make_hf

    folder = str(tmp_path_factory.mktemp("hf") / "model")
    run_rank(make_hf, folder)
    return folder

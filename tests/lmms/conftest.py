"""These tests need lmms-eval, which is in an environment of its own (`make test-lmms`)."""

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where it is missing, with the reason."""
    if importlib.util.find_spec("lmms_eval") is not None:
        return
    for item in items:
        if item.get_closest_marker("lmms"):
            item.add_marker(pytest.mark.skip(reason="needs lmms-eval: run `make test-lmms`"))

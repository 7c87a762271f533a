"""Shared by the tests of submitting."""

from tests.cluster.stand_in import login_node  # noqa: F401  a fixture

"""Shared by the tests of submitting."""

from tests.cluster.stand_in import desk  # noqa: F401  a fixture

"""The cluster that all tests of this folder share."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, running_cluster, why_not


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes; skips where no Slurm can be started."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """The cluster with an empty queue and all nodes up, and none of this test's jobs left behind."""
    yield slurm
    slurm.cancel_all()


def pytest_configure(config: pytest.Config) -> None:
    """`pytest tests/slurm` means these tests; with another path or none they stay deselected."""
    if any("tests/slurm" in str(argument) for argument in config.invocation_params.args):
        config.option.markexpr = config.option.markexpr.replace(" and not slurm", "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the jobs of a failed test wrote."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.when == "call" and report.failed and isinstance(folder, Path):
        for path in sorted([*folder.rglob("logs/*"), *folder.rglob("attempts.tsv")]):
            report.sections.append((str(path), "\n".join(path.read_text(errors="replace").splitlines()[-80:])))
    return report

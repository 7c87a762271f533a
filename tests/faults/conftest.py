"""The run that the others are compared with."""

from pathlib import Path

import pytest

from tests.faults.injected import RUN, train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TensorBoard folder of a run without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(2, f"{RUN} --save {folder}/ckpt --tensorboard-dir {folder}/tensorboard")
    return folder / "tensorboard"

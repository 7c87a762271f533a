"""Checkpoints and tokenizers that several tests share."""

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint import gpt
from tests.ranks import run_rank
from tests.shared import Shared, shared_folder

Saved = tuple[Path, torch.Tensor]


@pytest.fixture(scope="session")
def saved(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A `--save` folder written by one rank, and the model's logits on `gpt.tokens()`."""
    folder = shared_folder(tmp_path_factory) / "saved"
    return folder, shared(run_rank, gpt.save, str(folder))


@pytest.fixture(scope="session")
def train_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a small SentencePiece model on Python sources; the same options give the same file."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = _source_lines()
    models: dict[str, Path] = {}

    def train(**options: Any) -> Path:
        import sentencepiece

        key = repr(sorted(options.items()))
        if key not in models:
            prefix = folder / str(len(models))
            given = LOSSLESS | {"vocab_size": 700} | options
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_prefix=str(prefix), minloglevel=2, num_threads=1, **given
            )
            models[key] = prefix.with_suffix(".model")
        return models[key]

    return train


LOSSLESS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
}
"""As `tools/train_tokenizer.py` trains."""


def _source_lines() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    return [line for name in ("argparse.py", "ast.py", "typing.py") for line in _lines(library / name)]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split(os.linesep) if line]

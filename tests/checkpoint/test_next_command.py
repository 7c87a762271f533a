"""The command that an import prints as the next one runs as it is printed."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_compete.cli.convert import main
from tests.checkpoint import hf_models
from tests.checkpoint.conftest import train_model  # noqa: F401  fixture

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_command_that_an_import_prints(
    train_model: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from megatron_compete.checkpoint.tokenizer import read_sentencepiece, write_tokenizer

    source = hf_models.save(tmp_path / "hf", "mixtral", vocab_size=700)
    write_tokenizer(read_sentencepiece(train_model()), source, 64)
    output = tmp_path / "a folder"
    main(["--to", "megatron", "--checkpoint", str(source), "--output", str(output)])
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("megatron-compete "))
    (tmp_path / "text.txt").write_text("\n".join([Path(__file__).read_text()] * 3))
    run("tools/preprocess_data.py", "--input", str(tmp_path / "text.txt"), "--output-prefix", str(tmp_path / "data"),
        "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(output / "tokenizer"), "--append-eod")  # fmt: skip
    places = {"DATA": str(tmp_path / "data_text_document"), "RUN": str(tmp_path / "run")}
    words = [places.get(word, word) for word in shlex.split(printed)][1:]
    # At the printed rate, 1e-5, a hundred steps move the loss by less than two batches differ.
    said = run("-m", "megatron_compete", *words, "--data-cache-path", str(tmp_path / "cache"), "--lr", "1e-3")
    losses = [float(found) for found in re.findall(r"lm loss: (\S+)", said)]
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "100"

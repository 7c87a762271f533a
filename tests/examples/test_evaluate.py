"""`examples/evaluate.sh` on an exported model, without a network: the harness runs, and no untrained BOS comes in."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_compete.checkpoint.export import Export, export_to_hf
from tests.checkpoint.conftest import saved, train_model  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "examples" / "evaluate.sh"
TEXTS = [json.loads(line)["opening"] for line in (ROOT / "tests/evaluation/license.jsonl").read_text().splitlines()]


def evaluate(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHON": sys.executable}
    return subprocess.run(
        [str(SCRIPT), *arguments], env=os.environ | offline | variables, capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def exported(
    saved: tuple[Path, torch.Tensor],  # noqa: F811
    train_model: Callable[..., Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "hf"
    model = train_model(vocab_size=230, byte_fallback=False)
    export_to_hf(Export(saved[0], folder, tokenizer_model=model))
    return folder


def byte_perplexity(folder: Path, prefix: int) -> float:
    """Of `TEXTS`, each behind one `prefix` token."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    loss = 0.0
    for text in TEXTS:
        ids = torch.tensor([[prefix, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits[0]
        loss += float(torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="sum"))
    return float(torch.tensor(loss / sum(len(text.encode()) for text in TEXTS)).exp())


@pytest.mark.slow  # the harness; test_the_command_keeps_an_untrained_bos_out has what we hand to it
def test_an_exported_model_is_evaluated(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra [eval]")
    done = evaluate(
        str(exported), str(tmp_path / "out"), TASKS="license_words,license_text", INCLUDE=str(ROOT / "tests/evaluation"),
        DEVICE="cpu", DTYPE="float32", HF_HOME=str(tmp_path / "cache"), BATCH="4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]
    assert 0 <= results["license_words"]["acc,none"] <= 1
    config = json.loads((exported / "config.json").read_text())
    found = results["license_text"]["byte_perplexity,none"]
    assert found == pytest.approx(byte_perplexity(exported, config["eos_token_id"]), rel=1e-4)
    assert found != pytest.approx(byte_perplexity(exported, config["bos_token_id"]), rel=1e-4)


def test_the_command_keeps_an_untrained_bos_out(exported: Path) -> None:
    done = evaluate(str(exported), DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    assert "add_bos_token=False\\,prefix_token_id=2" in done.stdout
    assert "lambada_openai\\,blimp\\,hellaswag\\,piqa\\,arc_easy\\,arc_challenge" in done.stdout
    assert f"{exported}-evaluation" in done.stdout


def test_a_tokenizer_that_adds_bos_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [2, 3]}')
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert "prefix_token_id" not in evaluate(str(tmp_path), DRY_RUN="1").stdout
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert "prefix_token_id=2" in evaluate(str(tmp_path), DRY_RUN="1").stdout


def test_no_model(tmp_path: Path) -> None:
    done = evaluate(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "config.json is missing" in done.stderr
    assert evaluate().returncode == 2

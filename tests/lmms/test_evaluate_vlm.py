"""`examples/evaluate_vlm.sh` end to end, without a network: lmms-eval asks a tiny model and scores what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.data.digit_answers import exact_match
from megatron_compete.data.digit_pictures import write_digit_pictures

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.lmms


def evaluate(*arguments: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TASKS", "DATA")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHON": sys.executable, "DEVICE": "cpu"}
    script = str(ROOT / "examples" / "evaluate_vlm.sh")
    return subprocess.run(
        [script, *map(str, arguments)],
        env=environment | offline | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("experts", [False, True])
def test_answers_are_the_models_and_scored_by_kind(tmp_path: Path, experts: bool) -> None:
    """Every second record wants what the model says by transformers alone, so that scores are known and not 0."""
    from tests.lmms.folders import answers, write_experts, write_model

    model = write_experts(tmp_path / "model") if experts else write_model(tmp_path / "model")
    pictures = write_digit_pictures(tmp_path / "data", train=0, heldout=60)
    records: list[dict[str, Any]] = json.loads(pictures.heldout_path.read_text())
    said = answers(model, records, pictures.image_folder)
    assert len(set(said)) > 10
    for record, answer in list(zip(records, said))[::2]:
        record["conversations"][1]["value"] = answer
    pictures.heldout_path.write_text(json.dumps(records))

    code = {"TRUST_REMOTE_CODE": "1"} if experts else {}
    done = evaluate(model, tmp_path / "out", DATA=str(tmp_path / "data"), HF_HOME=str(tmp_path / "cache"), **code)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    samples = next((tmp_path / "out").rglob("*samples_digit_pictures.jsonl")).read_text().splitlines()
    found = {sample["doc_id"]: sample["filtered_resps"] for sample in map(json.loads, samples)}
    assert [found[number] for number in range(60)] == said
    wanted = exact_match(
        (record["kind"], answer, record["conversations"][1]["value"]) for record, answer in zip(records, said)
    )
    assert 0.4 < wanted["all"] < 0.7
    results = json.loads(next((tmp_path / "out").rglob("*results.json")).read_text())["results"]["digit_pictures"]
    assert results["exact_match,none"] == pytest.approx(wanted.pop("all"))
    assert {kind: results[f"exact_match_{kind},none"] for kind in wanted} == pytest.approx(wanted)


def test_a_model_that_cannot_be_loaded_ends_with_an_error(tmp_path: Path) -> None:
    from tests.lmms.folders import write_experts

    model = write_experts(tmp_path / "model")
    done = evaluate(model, LIMIT="1", DATA=str(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (2, f"error: DATA={tmp_path}/data has no heldout.json: name a folder that "
        "write_digit_pictures wrote, or leave DATA out\n")  # fmt: skip
    write_digit_pictures(tmp_path / "data", train=0, heldout=5)
    done = evaluate(model, tmp_path / "out", LIMIT="1", DATA=str(tmp_path / "data"))
    assert done.returncode == 1 and "trust_remote_code" in done.stderr
    assert done.stderr.endswith(f"error: lmms-eval ended without results for {model}: the reason is above\n")

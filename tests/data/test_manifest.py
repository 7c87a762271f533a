"""The manifest beside a dataset."""

import json
from pathlib import Path

import pytest

from megatron_compete.data.manifest import DatasetManifest, manifest_path, read_manifest
from megatron_compete.errors import CompeteError

MANIFEST = DatasetManifest(
    tokenizer_type="SentencePieceTokenizer",
    tokenizer_model="é.model",
    tokenizer_sha256="ab",
    vocab_size=10,
    append_eod=True,
    documents=3,
    sequences=2,
    tokens=7,
    inputs=[{"name": "c.jsonl", "bytes": 5}],
    skipped={"not_json": 1},
)


def test_round_trip(tmp_path: Path) -> None:
    prefix = str(tmp_path / "d")
    assert read_manifest(prefix) is None
    MANIFEST.write(manifest_path(prefix))
    assert read_manifest(prefix) == MANIFEST
    assert json.loads(Path(prefix + ".json").read_text())["format"] == "megatron-compete dataset 1"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "megatron-compete dataset 1"}', '{"format": "other"}'])
def test_what_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(CompeteError, match=r"d\.json is no manifest"):
        read_manifest(str(tmp_path / "d"))

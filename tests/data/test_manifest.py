"""The manifest beside a dataset."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.manifest import DatasetManifest, TokenizerOptions, manifest_path, read_manifest
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

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


NO_MANIFESTS = [
    "",
    "[]",
    "{}",
    '{"format": "megatron-compete dataset 1"}',
    '{"format": "other"}',
    "\xff",
    "[" * 100_000,
]


@pytest.mark.parametrize("content", NO_MANIFESTS)
def test_what_is_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.json").write_text(content, encoding="latin-1")
    with pytest.raises(CompeteError, match=r"d\.json is no manifest"):
        read_manifest(str(tmp_path / "d"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_type", 5),
        ("tokenizer_model", ["a"]),
        ("tokenizer_type", "\ud800"),
        ("vocab_size", "10"),
        ("vocab_size", 10.0),
        ("append_eod", 1),
        ("documents", True),
        ("tokens", None),
        ("inputs", {}),
        ("inputs", ["c.jsonl"]),
        ("inputs", [{"name": ["c"]}]),
        ("skipped", {"not_json": "1"}),
        ("skipped", []),
        ("engine", "reference"),
        ("engine", {"name": "kitoken", "proof": {"documents": 1}}),
        ("engine", {"merged": [{"name": 5}]}),
        ("tokenizer_options", []),
        ("tokenizer_options", {"tokenizer_hf_no_use_fast": "no"}),
        ("tokenizer_options", {"special_tokens": "<a>"}),
        ("job", 1),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, name: str, value: object) -> None:
    record = {"format": "megatron-compete dataset 1"} | asdict(MANIFEST) | {name: value}
    (tmp_path / "d.json").write_text(json.dumps(record))
    with pytest.raises(CompeteError, match=rf"d\.json is no manifest of this tool \(its {name} is"):
        read_manifest(str(tmp_path / "d"))


@pytest.mark.parametrize("name", ["trust_remote_code", "tokenizer_model", "vocab_file", "metadata_path", "other"])
def test_options_that_are_not_known_are_refused(tmp_path: Path, name: str) -> None:
    record = {"format": "megatron-compete dataset 1"} | asdict(MANIFEST) | {"tokenizer_options": {name: True}}
    (tmp_path / "d.json").write_text(json.dumps(record))
    with pytest.raises(CompeteError, match=f"its tokenizer_options have '{name}', which is none of"):
        read_manifest(str(tmp_path / "d"))


def test_options_are_what_the_flags_can_say() -> None:
    """A new flag that decides about ids must be taken from a manifest too; what runs code or names files must not."""
    flags = {one.name for one in fields(TokenizerChoice)}
    others = {"tokenizer_type", "tokenizer_model", "vocab_size", "vocab_file", "merge_file", "trust_remote_code"}
    assert TokenizerOptions.__optional_keys__ == flags - others
    changed = TokenizerChoice(
        "TikTokenizer", "m", 5, "v", "m", ("<a>",), "v1", 5, True, False, True, True, True, null_tokenizer_eod_id=3
    )
    assert changed.options.keys() == flags - others
    assert replace(changed, trust_remote_code=False).options == changed.options

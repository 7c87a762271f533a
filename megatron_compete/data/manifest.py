"""The manifest beside a dataset (`{prefix}.json`): which tokenizer and which corpus it was made of."""

import json
import os
import types
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from megatron_compete.common.errors import CompeteError

FORMAT = "megatron-compete dataset 1"


class TokenizerOptions(TypedDict, total=False):
    """Flags of the tokenizer that decide about ids (`TokenizerChoice.options`): no others are taken from a file.

    What lets a tokenizer run code of its own, --trust-remote-code, is the user's to give and never here.
    """

    special_tokens: list[str]
    tiktoken_pattern: str
    tiktoken_num_special_tokens: int
    tokenizer_sentencepiece_legacy: bool
    tokenizer_sentencepiece_ignore_extra_whitespaces: bool
    tokenizer_hf_no_use_fast: bool
    tokenizer_hf_no_include_special_tokens: bool
    null_tokenizer_eod_id: int


class EngineProof(TypedDict):
    """What of `engines.sample_check.Comparison` is shown."""

    documents: int
    strings: int
    difference: str | None


class EngineRecord(TypedDict, total=False):
    """What is shown of the engine that tokenised (`engines.EngineChoice`); a merged dataset has several."""

    name: str
    proof: EngineProof | None
    checked: int
    differing: int
    merged: list["EngineRecord | None"]


@dataclass(frozen=True)
class DatasetManifest:
    """What `megatron-compete preprocess` writes down about one `.bin/.idx` pair; the fields are the JSON's keys."""

    tokenizer_type: str
    tokenizer_model: str | None
    """As it was given on the command line."""

    tokenizer_sha256: str | None
    """Over the files that decide about ids; None where there are none."""

    vocab_size: int
    append_eod: bool
    documents: int
    sequences: int
    """Sentences that have tokens; without sentence splitting, documents that have."""

    tokens: int
    inputs: list[dict[str, str | int]]
    """`{"name": ..., "bytes": ...}` of every input file, in order."""

    skipped: dict[str, int]
    """Documents left out, by kind of fault (`faults.KINDS`)."""

    empty_documents: int = 0
    """Documents without tokens that are in the dataset."""

    engine: EngineRecord | None = None
    """What tokenised, on what it was compared before, and how many texts meanwhile (`engines.EngineChoice`)."""

    tokenizer_options: TokenizerOptions = field(default_factory=TokenizerOptions)
    """Other flags of the tokenizer that decide about ids, where they are not at their defaults."""

    job: str | None = None
    """Names the input's state and the flags: the same command finds that its work is done."""

    def write(self, path: str) -> None:
        """Write as JSON; the caller stages the path."""
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"format": FORMAT} | asdict(self), stream, indent=2, ensure_ascii=False)
            stream.write("\n")


def manifest_path(prefix: str) -> str:
    """Where the manifest of the dataset at `prefix` lies."""
    return prefix + ".json"


def read_manifest(prefix: str) -> DatasetManifest | None:
    """The manifest of the dataset at `prefix` (without `.bin`); None when another tool made the dataset.

    Raises:
        CompeteError: there is one, but it cannot be read, or a field has another type than this tool gives it.
    """
    path = manifest_path(prefix)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            return _manifest(json.load(stream))
    except (OSError, ValueError, RecursionError) as error:
        raise CompeteError(f"{path} is no manifest of this tool ({error}): preprocess again, or remove it") from None


def _manifest(record: Any) -> DatasetManifest:
    """Raises: ValueError: what is wrong with the JSON."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    hints = get_type_hints(DatasetManifest)
    known = {name: record[name] for name in hints if name in record}
    for name, value in known.items():
        if name == "tokenizer_options" and isinstance(value, dict) and value.keys() - _options():
            unknown = min(value.keys() - _options())
            raise ValueError(
                f"its tokenizer_options have {unknown!r}, which is none of {', '.join(sorted(_options()))}"
            )
        if not _is_of(value, hints[name]):
            raise ValueError(f"its {name} is {json.dumps(value)[:100]}")
    if missing := [one.name for one in fields(DatasetManifest) if _is_required(one) and one.name not in known]:
        raise ValueError(f"it has no {missing[0]}")
    return DatasetManifest(**known)


def _options() -> frozenset[str]:
    return TokenizerOptions.__optional_keys__


def _is_required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON has the type that `hint` names; further keys of an object are left alone."""
    origin, of = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, one) for one in of)
    if origin is list:
        return isinstance(value, list) and all(_is_of(one, of[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(one, of[1]) for one in value.values())
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return (
            isinstance(value, dict)
            and value.keys() >= hint.__required_keys__
            and all(_is_of(value[name], hints[name]) for name in hints if name in value)
        )
    if hint is str and isinstance(value, str):
        return (
            value.encode("utf-8", "ignore").decode() == value
        )  # no halves of surrogate pairs, which nothing can print
    return type(value) is hint  # a bool is no int here

"""What makes two runs the same job: its inputs and everything that decides about the bytes of its output."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.progress import MEGABYTE
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.preprocessing.job import Preprocessing

FORMAT = "megatron-compete preprocessing 2"
_SAMPLE_BYTES = 1 << 16
"""Bytes at either end of a file that go into its fingerprint."""

Identity = dict[str, Any]


def identity_of(job: Preprocessing, sources: Sequence[Source], shard_bytes: int) -> Identity:
    """The job as JSON. The number of workers, the log and `--on-error` are no part of it: they change no shard."""
    settings = _tokenizer_settings(job) | {
        "--json-keys": list(job.json_keys),
        "--append-eod": job.append_eod,
        "--empty-documents": job.empty_documents,
        "--tokenizer-engine": job.engine,
        "--input-format": job.reading.format,
        "--text-documents": job.reading.text_documents,
        "--shard-size": shard_bytes / MEGABYTE,
    }
    return {"format": FORMAT, "settings": settings, "inputs": [_input(source) for source in sources]}


def _tokenizer_settings(job: Preprocessing) -> dict[str, Any]:
    """The tokenizer by its files' content, if it has files: they may lie elsewhere today."""
    choice, fingerprint = job.tokenizer, job.tokenizer.fingerprint()
    names = {"--tokenizer-model": choice.tokenizer_model, "--vocab-size": choice.vocab_size}
    return {
        "--tokenizer-type": choice.library,
        **(names if fingerprint is None else {"the content of the tokenizer's files": fingerprint}),
        **{"--" + name.replace("_", "-"): value for name, value in choice.options.items()},
    }


def _input(source: Source) -> dict[str, Any]:
    if source.is_pipe:
        return {"path": source.path}
    state = os.stat(source.path)
    return {
        "path": os.path.abspath(source.path),
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ends_sha256": _sha256_of_ends(source.path, state.st_size),
    }


def _sha256_of_ends(path: str, size: int) -> str:
    with open(path, "rb") as stream:
        digest = hashlib.sha256(stream.read(_SAMPLE_BYTES))
        stream.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(stream.read())
    return digest.hexdigest()


def digest(identity: Identity) -> str:
    """One short name for a job."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def dropped_keys(old: Identity, new: Identity) -> list[str]:
    """Keys that the old job has and the new one has not, if that is all they differ in."""
    keys, fewer = old["settings"].get("--json-keys", []), new["settings"]["--json-keys"]
    same = old | {"settings": old["settings"] | {"--json-keys": fewer}} == new
    return [key for key in keys if key not in fewer] if same and set(fewer) < set(keys) else []


def refuse_difference(old: Identity, new: Identity, folder: str) -> None:
    """Compare the job that left `folder` unfinished with this one.

    Raises:
        CompeteError: they differ; names the first difference.
    """
    if old == new:
        return
    raise CompeteError(
        f"{folder} holds an unfinished run, and since then {_first_difference(old, new)}: give the same command as "
        "then, or --restart to begin again"
    )


def _first_difference(old: Identity, new: Identity) -> str:
    if old.get("format") != new["format"]:
        return f"the tool's format changed ({old.get('format')} then, {new['format']} now)"
    for name in old["settings"] | new["settings"]:
        before, after = old["settings"].get(name), new["settings"].get(name)
        if before != after:
            return f"{name} changed ({_show(before)} then, {_show(after)} now)"
    before_paths, after_paths = ([entry["path"] for entry in one["inputs"]] for one in (old, new))
    if before_paths != after_paths:
        return _changed_list(before_paths, after_paths)
    for before, after in zip(old["inputs"], new["inputs"]):
        for name, what in (("bytes", "size"), ("mtime_ns", "time of change"), ("ends_sha256", "content")):
            if before.get(name) != after.get(name):
                return f"the {what} of input {after['path']} changed ({before.get(name)} then, {after.get(name)} now)"
    return "its description changed"


def _changed_list(before: Sequence[str], after: Sequence[str]) -> str:
    gone = [path for path in before if path not in set(after)]
    new = [path for path in after if path not in set(before)]
    if gone:
        return f"input {gone[0]} is no longer among the inputs"
    return f"input {new[0]} has come to the inputs" if new else "the order of the inputs changed"


def _show(value: object) -> str:
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

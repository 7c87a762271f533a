"""Finished datasets on disk, as the tools find and compare them."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.index_file import DamagedIndex, IndexFile, read_index
from megatron_compete.data.manifest import DatasetManifest, manifest_path, read_manifest
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

_WAY_OUT = "copy it again from where it is whole, or preprocess the corpus again"


@dataclass(frozen=True)
class Dataset:
    """A `.bin/.idx` pair, and its manifest if it has one."""

    prefix: str
    index: IndexFile
    manifest: DatasetManifest | None

    @property
    def bin_path(self) -> str:
        """Where the ids lie."""
        return self.prefix + ".bin"

    def ids(self) -> np.ndarray:
        """All ids, as a map of the file."""
        if not os.path.getsize(self.bin_path):
            return np.empty(0, self.index.dtype)
        return np.memmap(self.bin_path, self.index.dtype, "r")


def open_dataset(prefix: str, ignore_manifest: bool = False) -> Dataset:
    """Open a dataset and check that its tables, its `.bin` and its manifest fit one another; ids are not read.

    Args:
        prefix: with or without either file's suffix.
        ignore_manifest: do as if there were none.
    Raises:
        CompeteError: they do not fit, a file is missing, or it is a multimodal dataset.
    """
    prefix = without_suffix(prefix)
    for suffix in (".bin", ".idx"):
        if not os.path.isfile(prefix + suffix):
            raise CompeteError(f"no dataset at {prefix}: {prefix}{suffix} is missing")
    try:
        index = read_index(prefix + ".idx")
    except DamagedIndex as damage:
        raise CompeteError(f"{prefix}.idx is damaged: {damage}; {_WAY_OUT}") from None
    if index.multimodal:
        raise CompeteError(f"{prefix} is a multimodal dataset: only text is read here; give a dataset of text")
    manifest = None if ignore_manifest else read_manifest(prefix)
    for fault in (bin_fault(prefix, index), None if manifest is None else manifest_fault(prefix, manifest, index)):
        if fault is not None:
            raise CompeteError(f"{fault}; {_WAY_OUT}")
    return Dataset(prefix, index, manifest)


def bin_fault(prefix: str, index: IndexFile) -> str | None:
    """What is wrong with the size of a dataset's `.bin`, or None."""
    expected, size = index.tokens * index.item_bytes, os.path.getsize(prefix + ".bin")
    if size == expected:
        return None
    return (
        f"{prefix}.bin has {size} bytes where {prefix}.idx expects {expected}: the two are not of one run, or the copy is "
        "incomplete"
    )


def manifest_fault(prefix: str, manifest: DatasetManifest, index: IndexFile) -> str | None:
    """Which count of a manifest is not the dataset's, or None."""
    found = {"documents": index.documents, "sequences": index.sequences, "tokens": index.tokens}
    for what, count in found.items():
        if (written := getattr(manifest, what)) != count:
            return (
                f"{manifest_path(prefix)} is of another dataset than {prefix}.bin ({written} {what} against {count}): "
                "remove it if another tool wrote the dataset"
            )
    return None


def without_suffix(path: str) -> str:
    """A prefix, from a prefix or either file's name."""
    return path.removesuffix(".bin").removesuffix(".idx")


def find_prefixes(inputs: Sequence[str]) -> list[str]:
    """Prefixes that the inputs name: each a prefix, either file of it, a folder, or a glob pattern.

    What a folder or a pattern holds is taken in sorted order.

    Raises:
        CompeteError: nothing is there, a file has no partner, or a dataset is named twice.
    """
    prefixes: list[str] = []
    for named in inputs:
        prefixes.extend(_find(named))
    seen: set[str] = set()
    for prefix in prefixes:
        real = os.path.realpath(prefix)
        if real in seen:
            raise CompeteError(f"--input names {prefix} twice: its documents would count double; name it once")
        seen.add(real)
    return prefixes


def _find(named: str) -> list[str]:
    if os.path.isdir(named):
        paths = glob.glob(os.path.join(glob.escape(named), "*.idx")) + glob.glob(
            os.path.join(glob.escape(named), "*.bin")
        )
        if not paths:
            raise CompeteError(f"--input {named}: no .bin and .idx files are in this folder")
    else:
        prefix = without_suffix(named)
        if os.path.exists(prefix + ".idx") or os.path.exists(prefix + ".bin"):
            return [prefix]
        paths = [path for path in glob.glob(named, recursive=True) if path.endswith((".bin", ".idx"))]
        paths += [path for path in glob.glob(named + ".idx", recursive=True) if path not in paths]
        if not paths:
            raise CompeteError(f"--input {named}: no dataset has this prefix, and no .idx file matches it as a pattern")
    return sorted({without_suffix(path) for path in paths})


def same_tokenizer(one: DatasetManifest, other: DatasetManifest) -> bool:
    """Whether two datasets' ids mean the same text."""
    return _identity(one) == _identity(other)


def _identity(manifest: DatasetManifest) -> tuple[object, ...]:
    library = TokenizerChoice(manifest.tokenizer_type).library
    options = sorted((name, str(value)) for name, value in manifest.tokenizer_options.items())
    # Without files to compare (a hub name, NullTokenizer) the names must be the same.
    files = manifest.tokenizer_sha256 or (manifest.tokenizer_model, manifest.vocab_size)
    return library, files, tuple(options)


def tokenizer_of(manifest: DatasetManifest) -> TokenizerChoice:
    """The tokenizer that a manifest names."""
    options: dict[str, Any] = dict(manifest.tokenizer_options)  # checked keys and types: no --trust-remote-code
    if "special_tokens" in options:
        options["special_tokens"] = tuple(options["special_tokens"])
    needs_size = manifest.tokenizer_type in ("NullTokenizer", "TikTokenizer")
    size = manifest.vocab_size if needs_size else None
    return TokenizerChoice(manifest.tokenizer_type, manifest.tokenizer_model, size, **options)


def check_same_kind(datasets: Sequence[Dataset], purpose: str) -> None:
    """Refuse datasets whose ids cannot be put side by side.

    Args:
        purpose: `merged`, `blended`; for the message.
    Raises:
        CompeteError: another tokenizer (by the manifests that there are).
    """
    with_manifest = [dataset for dataset in datasets if dataset.manifest is not None]
    for one in with_manifest[1:]:
        first = with_manifest[0]
        assert first.manifest is not None and one.manifest is not None
        if not same_tokenizer(first.manifest, one.manifest):
            raise CompeteError(
                f"{first.prefix} and {one.prefix} cannot be {purpose}: the first was made with "
                f"{describe_tokenizer(first.manifest)}, the other with {describe_tokenizer(one.manifest)} (manifest "
                f"{manifest_path(one.prefix)}); preprocess one of them again"
            )


def describe_tokenizer(manifest: DatasetManifest) -> str:
    """Flags and, shortened, the files' hash."""
    options = "".join(f" {name}={value}" for name, value in manifest.tokenizer_options.items())
    sha = f" (sha256 {manifest.tokenizer_sha256[:12]})" if manifest.tokenizer_sha256 else ""
    return tokenizer_of(manifest).describe() + options + sha

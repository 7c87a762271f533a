"""Small datasets for tests, written by Megatron's own builder."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megatron_compete.data.manifest import DatasetManifest, manifest_path


def write_dataset(
    prefix: Path | str, documents: Sequence[Sequence[Sequence[int]]], dtype: type[Any] = np.uint16
) -> str:
    """A dataset of documents, each a list of sequences of ids; without a manifest."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        ids = [id_ for sequence in sequences for id_ in sequence]
        builder.add_document(np.array(ids, dtype=dtype), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def write_manifest(prefix: str, **changes: Any) -> DatasetManifest:
    """A manifest that fits the dataset at `prefix`."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix, mmap=True)
    tokens = int(dataset.sequence_lengths.sum())
    fitting: dict[str, Any] = {
        "tokenizer_type": "SentencePieceTokenizer",
        "tokenizer_model": "t.model",
        "tokenizer_sha256": "ab" * 32,
        "vocab_size": 1000,
        "append_eod": True,
        "documents": len(dataset.document_indices) - 1,
        "sequences": len(dataset),
        "tokens": tokens,
        "inputs": [{"name": f"{Path(prefix).name}.jsonl", "bytes": 10}],
        "skipped": {},
    }
    manifest = DatasetManifest(**fitting | changes)
    manifest.write(manifest_path(prefix))
    return manifest


def random_documents(count: int, seed: int = 0, eod: int = 2) -> list[list[list[int]]]:
    """Documents of 0 to 3 sequences, each document with tokens ending in `eod`; some have no tokens."""
    draw = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        sequences = [draw.integers(3, 1000, draw.integers(1, 30)).tolist() for _ in range(draw.integers(0, 4))]
        if sequences:
            sequences[-1].append(eod)
        documents.append(sequences)
    return documents


def read_documents(prefix: str) -> list[list[list[int]]]:
    """What Megatron's reader finds."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix, mmap=True)
    bounds = dataset.document_indices.tolist()
    return [[dataset.get(index).tolist() for index in range(one, two)] for one, two in pairwise(bounds)]


def manifest_of(prefix: str) -> dict[str, Any]:
    """The manifest's JSON."""
    return dict(json.loads(Path(manifest_path(prefix)).read_text()))

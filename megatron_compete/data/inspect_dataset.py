"""What a dataset holds, and whether it is whole.

    megatron-compete inspect data/corpus_text_document --show 0 5 -1 --figure lengths.png

prints documents, tokens, what it was made with and how long documents are, and decodes chosen documents. It exits with
1 if the dataset is damaged; each finding is one line that begins with `damaged:`.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any

import numpy as np

from megatron_compete.common.command_line import Command, add_options, option, take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.progress import MEGABYTE
from megatron_compete.data.dataset import Dataset, describe_tokenizer, tokenizer_of, without_suffix
from megatron_compete.data.inspect.checks import Inspection, Vocabulary, inspect
from megatron_compete.data.inspect.document_ends import literal_notes
from megatron_compete.data.inspect.lengths import histogram_lines, measure_lengths, write_figure
from megatron_compete.data.manifest import DatasetManifest
from megatron_compete.data.tokenizer_flags import add_tokenizer_flags, take_tokenizer_choice

DAMAGED_EXIT_CODE = 1


def summary_lines(inspection: Inspection) -> list[str]:
    """Size, origin and lengths; only the findings where the index cannot be used."""
    lines: list[str] = []
    index = inspection.index
    if index is not None:
        tokens = index.tokens
        sequences = "" if index.sequences == index.documents else f", {index.sequences} sequences"
        lines.append(
            f"{inspection.prefix}: {index.documents} documents{sequences}, {tokens} tokens as "
            f"{np.dtype(index.dtype).name} ({tokens * index.item_bytes / MEGABYTE:.1f} MB)"
        )
    if inspection.manifest is not None:
        lines += _origin_lines(inspection.manifest)
    lines += inspection.notes
    if index is not None and index.documents:
        lengths = measure_lengths(index)
        lines.append(f"tokens a document: {lengths.shortest} to {lengths.longest}, mean {lengths.mean:.1f}")
        lines += histogram_lines(lengths)
    return lines


def _origin_lines(manifest: DatasetManifest) -> list[str]:
    names = [str(one.get("name")) for one in manifest.inputs]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    lines = [f"made with {describe_tokenizer(manifest)} from {', '.join(names[:3])}{more}"]
    engine = manifest.engine
    if engine is not None and "name" in engine:
        proof = engine.get("proof")
        if engine["name"] == "reference":
            proven = ""
        elif engine["name"] == "split":
            proven = ", exact by construction"
        elif proof is not None and proof.get("difference") is None:
            proven = f", identical to the reference on {proof['documents']} documents and {proof['strings']} strings"
        else:
            proven = ", which was named and NOT proven identical to the reference"
        checked = (
            f"; {engine['checked']} texts checked, {engine.get('differing', 0)} differed"
            if engine.get("checked")
            else ""
        )
        lines.append(f"tokenizer engine {engine['name']}{proven}{checked}")
    if manifest.skipped:
        lines.append("left out: " + ", ".join(f"{count} {kind}" for kind, count in sorted(manifest.skipped.items())))
    return lines


def decode_documents(dataset: Dataset, documents: Sequence[int], tokenizer: Any, characters: int) -> list[str]:
    """Chosen documents as text, or as ids without a tokenizer.

    Args:
        documents: numbers from 0; negative ones count from the end.
        characters: of each to show at most; 0 shows all.
    Raises:
        CompeteError: there is no such document.
    """
    index = dataset.index
    lines: list[str] = []
    for number in documents:
        if not -index.documents <= number < index.documents:
            raise CompeteError(
                f"--show {number}: the dataset has {index.documents} documents, 0 to {index.documents - 1}"
            )
        offset, size = index.document_bytes(number % index.documents)
        start = offset // index.item_bytes
        ids = dataset.ids()[start : start + size // index.item_bytes].tolist()
        shown = " ".join(map(str, ids)) if tokenizer is None else tokenizer.detokenize(ids)
        rest = f"\n... {len(shown) - characters} characters more" if 0 < characters < len(shown) else ""
        lines.append(f"--- document {number % index.documents}, {len(ids)} tokens")
        lines.append((shown[:characters] if characters else shown) + rest)
    return lines


def _tokenizer_of_manifest(manifest: DatasetManifest | None) -> Any:
    """The tokenizer a manifest names, if its files are still there and the same; else None."""
    if manifest is None:
        return None
    made = tokenizer_of(manifest)
    try:
        return made.build() if made.fingerprint() == manifest.tokenizer_sha256 else None
    except (CompeteError, OSError):
        return None


@dataclass(frozen=True)
class InspectOptions:
    """The command's flags besides the tokenizer's."""

    prefix: str = option(MISSING, "prefix", metavar="PREFIX", help="path of the dataset without .bin")
    show: tuple[int, ...] = option((), metavar="N", help="documents to decode, from 0; -1 is the last")
    show_characters: int = option(400, help="of each document at most; 0 is all")
    figure: str | None = option(None, metavar="FILE.png", help="write the histogram of lengths as a figure")
    eod_id: int | None = option(None, metavar="ID", help="end-of-document id; the tokenizer's if its flags are given")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags and the tokenizer's."""
    add_options(parser, InspectOptions)
    add_tokenizer_flags(parser.add_argument_group("tokenizer"), required=False)


def run(namespace: argparse.Namespace) -> None:
    """Check the dataset and show it."""
    given = vars(namespace)
    size = given.pop("vocab_size", None) if "tokenizer_type" not in given else None
    choice, options = take_tokenizer_choice(given), take_options(InspectOptions, given)
    tokenizer = None if choice is None else choice.build()
    vocabulary = Vocabulary(
        size=size if tokenizer is None else int(tokenizer.vocab_size),
        eod=options.eod_id if options.eod_id is not None else getattr(tokenizer, "eod", None),
    )
    inspection = inspect(without_suffix(options.prefix), vocabulary)
    if options.show and tokenizer is None and not inspection.damage:
        tokenizer = _tokenizer_of_manifest(inspection.manifest)
    if tokenizer is not None and inspection.index is not None and not inspection.damage:
        dataset = Dataset(inspection.prefix, inspection.index, inspection.manifest)
        inspection.notes += literal_notes(inspection.index, dataset.ids(), tokenizer)
    print("\n".join(summary_lines(inspection)))
    if inspection.index is not None and options.figure:
        write_figure(measure_lengths(inspection.index), os.path.basename(inspection.prefix), options.figure)
    for finding in inspection.damage:
        print(f"damaged: {finding}")
    if inspection.damage:
        raise SystemExit(DAMAGED_EXIT_CODE)
    if options.show:
        _show(inspection, options.show, tokenizer, options.show_characters)


def _show(inspection: Inspection, documents: Sequence[int], tokenizer: Any, characters: int) -> None:
    assert inspection.index is not None
    if tokenizer is None:
        print("no tokenizer to decode with: give --tokenizer-type and --tokenizer-model")
    dataset = Dataset(inspection.prefix, inspection.index, inspection.manifest)
    print("\n".join(decode_documents(dataset, documents, tokenizer, characters)))


main = Command(
    name="inspect",
    description="Check a dataset (.bin/.idx) and show what it holds; exit code 1 if it is damaged.",
    epilog="""Vocabulary and tokenizer are the manifest's unless given. With the tokenizer's flags or --show, documents are
    also decoded to look for marks of their end that are spelled out in text.""",
    example="data/corpus_text_document --show 0 5 -1 --figure lengths.png",
    add_arguments=add_arguments,
    run=run,
)

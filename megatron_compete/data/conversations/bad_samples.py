"""What can be wrong with a sample, and what becomes of it: the run stops and names it, or it is left out and counted."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole

KINDS = {
    "not_json": "text that is not JSON",
    "not_a_conversation": "no object with a list of turns, each with a role and a text",
    "unknown_role": "a role that is none of human, gpt and system",
    "turn_order": "turns that do not alternate between human and gpt",
    "missing_image": "an image that is not in the image folder, or an empty file",
    "outside_image_folder": "a path that is absolute or leads out of the image folder",
    "damaged_image": "an image that cannot be read to its end, or in no known format",
    "huge_image": "an image of more pixels than --max-image-pixels",
    "refused_by_template": "a conversation that the chat template refuses or rewrites",
    "image_count": "another number of image tokens than of images, an image in an answer, or one that ends the text",
    "too_long": "more tokens than --seq-length, image embeddings included",
    "nothing_to_learn": "no answer, or only empty ones",
}
"""Ways in which a sample can be unusable, in the order of reports."""

SHOWN = 3
"""Samples named of each kind in a summary."""

_WAYS_OUT = {
    "not_json": "correct the file",
    "missing_image": "get the image, or remove the sample",
    "outside_image_folder": "put the image into the folder; a link that is meant so needs --allow-image-links",
    "damaged_image": "get the image again",
    "huge_image": "make it smaller, or raise --max-image-pixels if you trust where it comes from",
    "refused_by_template": "correct it, or give another --conversation-template",
    "image_count": "one <image> in the text for each image",
    "too_long": "raise --seq-length, or cut such conversations with --truncate-conversations",
}


class BadSample(Exception):
    """No usable sample: `kind` is one of `KINDS`, `reason` says what exactly."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class SampleError(CompeteError):
    """A sample that can no longer be read while it is loaded; torch's loader would put a worker's traceback before it."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class Finding:
    """A bad sample and where it lies."""

    file: str
    number: int
    """Of the sample in its file, from 0."""
    id: str
    """What the sample calls itself; empty where that cannot be read."""
    kind: str
    reason: str

    def __str__(self) -> str:
        name = f" (id {self.id})" if self.id else ""
        return f"{self.file}: sample {self.number}{name}: {self.reason}"

    def error(self) -> CompeteError:
        """What ends a run that does not skip."""
        way_out = _WAYS_OUT.get(self.kind, "correct it")
        return CompeteError(f"{self}: {way_out}; --skip-bad-samples leaves such samples out")


def summary(findings: Sequence[Finding], total: int) -> str:
    """`left out 3 of 665298 samples (2 missing_image, 1 too_long)`."""
    counts = Counter(finding.kind for finding in findings)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return f"left out {len(findings)} of {total} samples" + (f" ({kinds})" if kinds else "")


def details(findings: Sequence[Finding]) -> list[str]:
    """A line for each kind that was met: what it is, how many, and the first of them."""
    lines = []
    for kind, meaning in KINDS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        if of_kind:
            more = f"; and {len(of_kind) - SHOWN} more" if len(of_kind) > SHOWN else ""
            lines.append(f"{kind}, {meaning}: {len(of_kind)}: {'; '.join(map(str, of_kind[:SHOWN]))}{more}")
    return lines


def write_report(path: Path, findings: Sequence[Finding], total: int) -> None:
    """A JSON object: `samples`, `left_out` by kind, and every bad sample with file, number, id, kind and reason."""
    counts = Counter(finding.kind for finding in findings)
    document: dict[str, Any] = {
        "samples": total,
        "left_out": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "findings": [vars(finding) for finding in findings],
    }
    write_whole(path, json.dumps(document, indent=1) + "\n")

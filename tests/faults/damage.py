"""Ways in which a checkpoint's folder is damaged on a disk."""

from collections.abc import Callable
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shard(checkpoint: Path) -> Path:
    return max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated shard": (lambda folder: _cut(shard(folder)), "was cut short"),
    "missing shard": (lambda folder: shard(folder).unlink(), ".distcp"),
    "no .metadata": (lambda folder: (folder / ".metadata").unlink(), ".metadata, the index of its tensors, is missing"),
    "cut .metadata": (lambda folder: _cut(folder / ".metadata"), ".metadata"),
    "no metadata.json": (lambda folder: (folder / "metadata.json").unlink(), "a save that did not finish"),
    "cut metadata.json": (
        lambda folder: _cut(folder / "metadata.json"),
        "metadata.json is not a Megatron checkpoint's",
    ),
}
"""What is done to the folder, and what the user reads of it."""

TRACKERS = {
    "empty": ("", "is empty"),
    "garbled": ("\x00\x00", "instead of an iteration"),
    "missing iteration": ("5", "names iteration 5, which is not there"),
}
"""What the tracker holds, and what the user reads of it."""

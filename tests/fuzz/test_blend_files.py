"""Damaged files of --data-args-path and --per-split-data-args-path: refused, or read as every word of them says."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.training.data_arguments import Blend, read_sources
from tests.fuzz.damage import failure, fuzz, kept

LISTS = [
    b"0.5 data/a\n0.25 data/b\n0.25 data/c\n",
    b"# weights of May\n3 data/a  # books\n1e-3 data/b\n",
    b"data/a data/b\r\ndata/c\n",
    b"\xef\xbb\xbf1.5 data/\xc3\xa9\n",
]
PARTS = [
    b'{"train": ["0.5", "data/a", "0.5", "data/b"], "valid": ["data/c"], "test": null}',
    b'{"train": "1 data/a 2 data/b", "valid": "data/c", "test": ["data/d"]}',
    b'{"train": [1, "data/a", 2.5, "data/b"], "valid": null, "test": null}',
]
FLAGS = {
    "mock_data": False, "data_path": None, "data_args_path": None, "per_split_data_args_path": None, "train_data_path": None,
    "valid_data_path": None, "test_data_path": None, "split": None, "skip_train": False, "eval_iters": 0,
    "full_validation": False,
}  # fmt: skip


def number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def blend_of(words: list[str]) -> Blend | None:
    """What the words say, or None where they do not fit."""
    if not words:
        return None
    if len(words) == 1 or number(words[0]) is None:
        return None if any(number(word) is not None for word in words[1:]) else (words, None)
    weights, prefixes = [number(word) for word in words[::2]], words[1::2]
    fits = len(words) % 2 == 0 and all(number(prefix) is None for prefix in prefixes)
    if not fits or not all(weight is not None and 0 < weight < math.inf for weight in weights):
        return None
    return prefixes, [weight for weight in weights if weight is not None]


def blend_of_list(data: bytes) -> Blend | None:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return None
    words: list[str] = []
    for line in lines:
        before = line.split()
        comment = next((at for at, word in enumerate(before) if word.startswith("#")), len(before))
        words += before[:comment]
    return blend_of(words)


def reader(folder: Path, flag: str, check: Callable[[bytes, object], None]) -> Callable[[bytes], None]:
    path = folder / "file"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found: object = read_sources(Namespace(**FLAGS | {flag: str(path)}))
        except CompeteError as error:
            assert str(path) in str(error)
            found = None
        check(data, found)

    return read


def check_list(data: bytes, found: object) -> None:
    assert (None if found is None else found.blend) == blend_of_list(data)  # type: ignore[attr-defined]


def check_parts(data: bytes, found: object) -> None:
    if found is None:
        return  # what is refused is not worked out twice: it suffices that nothing is read otherwise than written
    content = json.loads(data.decode("utf-8-sig"))
    expected = []
    for key in ("train", "valid", "test"):
        words = content[key].split() if isinstance(content[key], str) else content[key]
        expected.append(None if words is None else blend_of([str(word).strip() for word in words]))
    assert set(content) == {"train", "valid", "test"}
    assert found.per_split == expected and expected[0] is not None  # type: ignore[attr-defined]


READERS = {"data_args_path": (LISTS, check_list), "per_split_data_args_path": (PARTS, check_parts)}


@pytest.mark.slow
@pytest.mark.parametrize("flag", READERS)
def test_damaged_files(flag: str, tmp_path: Path) -> None:
    good, check = READERS[flag]
    assert fuzz(flag, good, reader(tmp_path, flag, check), inputs=100, seconds=20) == 100


@pytest.mark.parametrize("flag", READERS)
def test_good_and_kept_files(flag: str, tmp_path: Path) -> None:
    good, check = READERS[flag]
    read = reader(tmp_path, flag, check)
    for data in [*good, *(path.read_bytes() for path in kept(flag))]:
        assert failure(read, data) is None
    for data in good:
        (tmp_path / "file").write_bytes(data)
        assert read_sources(Namespace(**FLAGS | {flag: str(tmp_path / "file")})).prefixes

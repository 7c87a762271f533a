"""Which datasets, at which weights, for which part of the run: Megatron's data arguments and the files that they name.

Megatron cuts what it reads at spaces and takes the pieces as they come: a comment is a dataset, a third column shifts all
that follows, a byte order mark ends in an assertion, and `--split a,b,c` is a division by zero. Here every piece is known
by its line, and what does not fit is named.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.core.datasets.utils import get_blend_from_list
from megatron.core.msc_utils import maybe_msc

from megatron_compete.common.errors import CompeteError

Blend = tuple[list[str], list[float] | None]
"""Dataset prefixes, and their weights; without weights each is read once."""

PARTS = ("training", "validation", "test")
KEYS = ("train", "valid", "test")
"""Of a file for --per-split-data-args-path."""

PART_FLAGS = ("--train-data-path", "--valid-data-path", "--test-data-path")
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
PAIRS = "write WEIGHT PREFIX for every dataset, or prefixes alone"


@dataclass(frozen=True)
class Sources:
    """What is read: one blend that `--split` divides, or a blend for each part."""

    blend: Blend | None = None
    per_split: list[Blend | None] | None = None
    """Of training, validation and test."""

    @property
    def prefixes(self) -> list[str]:
        """All datasets, each once."""
        blends = [blend for blend in (self.blend, *(self.per_split or ())) if blend is not None]
        return list(dict.fromkeys(prefix for prefixes, _ in blends for prefix in prefixes))


@dataclass(frozen=True)
class Word:
    """A piece of an argument or of a file, and where it stands."""

    text: str
    where: str

    @property
    def number(self) -> float | None:
        """Its value, if it is a number."""
        try:
            return float(self.text)
        except ValueError:
            return None


def check_data_arguments(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for data arguments that contradict each other or cannot be read; opens no file."""
    given = [flag for flag, value in _sources_given(args).items() if value]
    if len(given) > 1:
        raise CompeteError(
            f"{given[0]} and {given[1]} both say what is read: keep one (Megatron: a single data source)"
        )
    per_split = given and given[0] in (PART_FLAGS[0], "--per-split-data-args-path")
    if per_split and args.split is not None:
        raise CompeteError(
            f"--split {args.split} divides --data-path, and {given[0]} is divided already: leave --split out"
        )
    if given == ["--data-args-path"] and args.split is None:
        raise CompeteError("--data-args-path without --split: say which share is for training, as --split 97,3,0")
    if args.multiple_validation_sets and not args.full_validation:
        raise CompeteError("--multiple-validation-sets needs --full-validation in Megatron-Core 0.19: add it")
    _check_caches(args, given)
    if args.split is not None:
        _check_parts(f"--split {args.split}", [share > 0 for share in parse_split(args.split)], args)


def _check_caches(args: argparse.Namespace, given: list[str]) -> None:
    """`BlendedMegatronDatasetConfig.__post_init__`."""
    for flag, value in (
        ("--dataloader-fast-cache-load", args.dataloader_fast_cache_load),
        ("--dataloader-defer-npy-index-mmap", args.dataloader_defer_npy_index_mmap),
    ):
        if value and args.data_cache_path is None:
            raise CompeteError(f"{flag} reads the cache of an earlier run: give its --data-cache-path")
    if args.dataloader_fast_cache_load and given and given[0] in ("--data-path", "--data-args-path"):
        raise CompeteError(
            f"--dataloader-fast-cache-load does not go with {given[0]} in Megatron-Core 0.19: name the parts' data each, as "
            "--train-data-path does"
        )


def _sources_given(args: argparse.Namespace) -> dict[str, bool]:
    return {
        "--mock-data": bool(args.mock_data),
        "--data-path": args.data_path is not None,
        "--data-args-path": args.data_args_path is not None,
        PART_FLAGS[0]: any(value is not None for value in (args.train_data_path, args.valid_data_path, args.test_data_path)),
        "--per-split-data-args-path": args.per_split_data_args_path is not None,
    }  # fmt: skip


def _check_parts(source: str, has: Sequence[bool], args: argparse.Namespace) -> None:
    training, validation, test = has
    if not training and not args.skip_train:
        raise CompeteError(f"{source} gives training nothing: the first part is training's, give it a share")
    if test and not validation and (args.eval_iters or args.full_validation):
        raise CompeteError(
            f"{source} has a test part and no validation part: Megatron evaluates both or neither; give validation a share, "
            "or test none"
        )


def parse_split(split: str) -> tuple[float, float, float]:
    """Shares of training, validation and test in `--split`, not normalised.

    Raises:
        CompeteError: something else than one to three numbers with commas, or nothing but zeros.
    """
    fields = [field.strip() for field in split.split(",")]
    if not 1 <= len(fields) <= len(PARTS) or not all(NUMBER.fullmatch(field) for field in fields):
        raise CompeteError(f"--split {split}: give the shares of training, validation and test, as 97,3,0")
    shares = [float(field) for field in fields] + [0.0] * (len(PARTS) - len(fields))
    if not sum(shares):
        raise CompeteError(
            f"--split {split} has no share above 0: give the shares of training, validation and test, as 97,3,0"
        )
    return shares[0], shares[1], shares[2]


def read_sources(args: argparse.Namespace) -> Sources:
    """What the data arguments name; nothing under `--mock-data`.

    Raises:
        CompeteError: a file that cannot be read, or a piece that does not fit, with its line.
    """
    if args.mock_data:
        return Sources()
    if args.data_args_path is not None:
        return Sources(blend=_blend(_words("--data-args-path", args.data_args_path)))
    if args.data_path is not None:
        return Sources(blend=_blend([Word(text, "--data-path") for text in args.data_path]))
    if args.per_split_data_args_path is not None:
        found = _parts_of_file(args.per_split_data_args_path)
        _check_parts(
            f"--per-split-data-args-path {args.per_split_data_args_path}", [bool(part) for part in found], args
        )
        return Sources(per_split=found)
    given = (args.train_data_path, args.valid_data_path, args.test_data_path)
    if all(part is None for part in given):
        return Sources()
    _check_parts("--valid-data-path or --test-data-path alone", [part is not None for part in given], args)
    return Sources(
        per_split=[
            None if part is None else _blend([Word(text, flag) for text in part])
            for flag, part in zip(PART_FLAGS, given)
        ]
    )


def _words(flag: str, path: str) -> list[Word]:
    """Pieces of a file, by its lines; from a piece that begins with # on, a line is a comment."""
    words = []
    for number, line in enumerate(_text(flag, path).splitlines(), 1):
        for text in line.split():
            if text.startswith("#"):
                break
            words.append(Word(text, f"{flag} {path}, line {number}"))
    if not words:
        raise CompeteError(f"{flag} {path} names no dataset: {PAIRS}")
    return words


def _text(flag: str, path: str) -> str:
    try:
        with maybe_msc.open(path, "rb") as stream:
            data: bytes = stream.read()
    except OSError as error:
        raise CompeteError(f"{flag} {path} cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CompeteError(f"{flag} {path}, line {line}: not UTF-8; save it as UTF-8") from None


def _blend(words: Sequence[Word]) -> Blend:
    """Prefixes alone, or a weight before each."""
    if not words:
        raise CompeteError(f"no dataset is named: {PAIRS}")
    if words[0].number is None or len(words) == 1:
        _check_prefixes(words)
    else:
        _check_pairs(words)
    blend: Blend = get_blend_from_list([word.text for word in words])
    return blend


def _check_prefixes(words: Sequence[Word]) -> None:
    for word in words[1:]:
        if word.number is not None:
            raise CompeteError(f"{word.where}: a weight {word.text} behind datasets that have none: {PAIRS}")


def _check_pairs(words: Sequence[Word]) -> None:
    for weight, prefix in zip(words[::2], words[1::2]):
        value = weight.number
        if value is None:
            raise CompeteError(f"{weight.where}: {weight.text!r} stands where a weight belongs: {PAIRS}")
        if not 0 < value < math.inf:
            raise CompeteError(
                f"{weight.where}: weight {weight.text} of {prefix.text}: give one above 0, or leave it out"
            )
        if prefix.number is not None:
            raise CompeteError(f"{prefix.where}: {prefix.text!r} stands where a dataset belongs: {PAIRS}")
    if len(words) % 2:
        last = words[-1]
        what = "a dataset" if last.number is None else "a weight"
        raise CompeteError(f"{last.where}: {what}, {last.text!r}, is alone at the end: {PAIRS}")


def _parts_of_file(path: str) -> list[Blend | None]:
    where = f"--per-split-data-args-path {path}"
    text = _text("--per-split-data-args-path", path)
    try:
        content = json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise CompeteError(f"{where}, line {error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise CompeteError(f"{where}: {error}") from None
    if not isinstance(content, dict) or set(content) != set(KEYS):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CompeteError(f"{where} has {found or 'nothing'}: write an object of train, valid and test, null for none")
    return [_part(f"{where}, {key}", content[key]) for key in KEYS]


def _part(where: str, value: Any) -> Blend | None:
    if value is None:
        return None
    pieces = value.split() if isinstance(value, str) else value
    plain = isinstance(pieces, list) and all(isinstance(one, str | int | float) and one is not True for one in pieces)
    if not plain or not pieces:
        raise CompeteError(f"{where}: {PAIRS}, as a text or a list; null for none")
    return _blend([Word(str(one).strip(), where) for one in pieces])


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice: keep one")
    return dict(pairs)

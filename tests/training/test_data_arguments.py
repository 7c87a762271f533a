"""Data arguments and the files that they name: what Megatron reads of good ones, and one line for the others."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_compete.common.errors import CompeteError
from megatron_compete.training.data_arguments import Sources, check_data_arguments, parse_split, read_sources

UNSET: dict[str, Any] = dict.fromkeys(
    ("data_path", "data_args_path", "train_data_path", "valid_data_path", "test_data_path", "per_split_data_args_path",
     "split", "data_cache_path")
) | dict.fromkeys(
    ("mock_data", "full_validation", "multiple_validation_sets", "skip_train", "dataloader_fast_cache_load",
     "dataloader_defer_npy_index_mmap"), False,
) | {"eval_iters": 100}  # fmt: skip


def arguments(**given: Any) -> Namespace:
    return Namespace(**UNSET | given)


BLEND = Sources(blend=(["a", "b"], [0.3, 0.7]))
FILES = {
    "a line each": b"0.3 a\n0.7 b\n",
    "one line": b"0.3 a 0.7 b",
    "carriage returns": b"0.3 a\r\n0.7 b\r\n",
    "blank lines": b"\n0.3 a\n\n  \n0.7 b\n",
    "byte order mark": b"\xef\xbb\xbf0.3 a\n0.7 b\n",
    "comments": b"# my blend\n0.3 a\n0.7 b  # books\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_blend_file_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "some.args"
    path.write_bytes(FILES[name])
    assert read_sources(arguments(data_args_path=str(path))) == BLEND


def test_a_path_may_hold_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "some.args"
    path.write_text("1 data/c#_code\n")
    assert read_sources(arguments(data_args_path=str(path))).prefixes == ["data/c#_code"]


BAD_FILES = {
    "third column": (b"0.3 a corpusA\n0.7 b corpusB\n", ", line 1: 'corpusA' stands where a weight belongs"),
    "missing weight": (b"0.3 a\nb\n", ", line 2: a dataset, 'b', is alone at the end"),
    "a weight behind": (b"a\n0.7 b\n", ", line 2: a weight 0.7 behind datasets that have none"),
    "last weight": (b"0.3 a\n0.7\n", ", line 2: a weight, '0.7', is alone at the end"),
    "word": (b"0.3 a\nhalf b\n", ", line 2: 'half' stands where a weight belongs"),
    "zero": (b"0.3 a\n0 b\n", ", line 2: weight 0 of b: give one above 0"),
    "negative": (b"0.3 a\n-0.7 b\n", ", line 2: weight -0.7 of b: give one above 0"),
    "not a number": (b"nan a\n0.7 b\n", ", line 1: weight nan of a: give one above 0"),
    "infinite": (b"0.3 a\ninf b\n", ", line 2: weight inf of b: give one above 0"),
    "two weights": (b"0.3 0.7\na b\n", ", line 1: '0.7' stands where a dataset belongs"),
    "empty": (b"\n", "names no dataset"),
    "comments alone": (b"# nothing\n", "names no dataset"),
    "latin-1": (b"0.3 a\n0.7 b\xe9\n", ", line 2: not UTF-8"),
    "utf-16": ("0.3 a\n".encode("utf-16"), ", line 1: not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_blend_file_that_does_not_fit_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    content, said = BAD_FILES[name]
    path = tmp_path / "some.args"
    path.write_bytes(content)
    with pytest.raises(CompeteError) as error:
        read_sources(arguments(data_args_path=str(path)))
    assert str(error.value).startswith(f"--data-args-path {path}")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["data_args_path", "per_split_data_args_path"])
def test_a_file_that_is_not_there(flag: str, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CompeteError, match=f"--{flag.replace('_', '-')} {path} cannot be read: "):
            read_sources(arguments(**{flag: str(path)}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("0.3 a 0.7", "a weight, '0.7', is alone at the end"),
        ("0 a 1 b", "weight 0 of a"),
        ("0.3 a -0.7 b", "weight -0.7 of b"),
        ("0.5 a b", "a dataset, 'b', is alone at the end"),
        ("", "no dataset is named"),
    ],
)
def test_the_same_on_the_command_line(words: str, said: str) -> None:
    with pytest.raises(CompeteError, match=said):
        read_sources(arguments(data_path=words.split()))


@pytest.mark.parametrize("words", ["a", "a b", "a b c", "0.3 a 0.7 b", "5", "30 a", "1e-3 a 2 b"])
def test_good_words_are_read_as_megatron_reads_them(words: str) -> None:
    args = arguments(data_path=words.split())
    assert read_sources(args).blend == get_blend_and_blend_per_split(args)[0]


PER_SPLIT = {
    "lists": {"train": ["0.3", "a", "0.7", "b"], "valid": ["a"], "test": None},
    "texts": {"train": "0.3 a 0.7 b", "valid": "a", "test": "b"},
    "numbers": {"train": [0.3, "a", 0.7, "b"], "valid": ["a", "b"], "test": None},
}


@pytest.mark.parametrize("name", PER_SPLIT)
def test_a_file_of_parts_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(PER_SPLIT[name]))
    args = arguments(per_split_data_args_path=str(path))
    if name != "numbers":
        assert read_sources(args).per_split == get_blend_and_blend_per_split(args)[1]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = read_sources(args).per_split
    assert found is not None and found[0] == (["a", "b"], [0.3, 0.7])


BAD_PARTS = {
    "no key": ('{"train": ["a"], "valid": ["a"]}', " has train, valid: write an object of train, valid and test"),
    "unknown key": ('{"train": ["a"], "valid": null, "test": null, "dev": null}', " has train, valid, test, dev: "),
    "cut off": ('{"train": ["a"],', ", line 1: not JSON"),
    "list": ('["a"]', " has list: write an object"),
    "twice": ('{"train": ["a"], "train": ["b"], "valid": null, "test": null}', "train is there twice"),
    "no training": ('{"train": null, "valid": ["a"], "test": null}', " gives training nothing"),
    "test alone": ('{"train": ["a"], "valid": null, "test": ["a"]}', " has a test part and no validation part"),
    "number": ('{"train": 7, "valid": null, "test": null}', ", train: write WEIGHT PREFIX"),
    "empty list": ('{"train": [], "valid": null, "test": null}', ", train: write WEIGHT PREFIX"),
    "object": ('{"train": [{}], "valid": null, "test": null}', ", train: write WEIGHT PREFIX"),
    "bad weight": ('{"train": ["x", "0.3", "b", "c"], "valid": null, "test": null}', ", train: a weight 0.3 behind"),
    "deep": ('{"train": ' + "[" * 100_000, "--per-split-data-args-path"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_a_file_of_parts_that_does_not_fit(name: str, tmp_path: Path) -> None:
    content, said = BAD_PARTS[name]
    path = tmp_path / "parts.json"
    path.write_text(content)
    with pytest.raises(CompeteError) as error:
        read_sources(arguments(per_split_data_args_path=str(path)))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("split", "shares"),
    [("97,3,0", (97, 3, 0)), ("969, 30, 1", (969, 30, 1)), ("100", (100, 0, 0)), ("1,2", (1, 2, 0)), (".9,.1", (0.9, 0.1, 0))],
)  # fmt: skip
def test_shares(split: str, shares: tuple[float, float, float]) -> None:
    assert parse_split(split) == shares


@pytest.mark.parametrize("split", ["a,b,c", "", "1,2,3,4", "-1,2", "97;3", "1e2,1", "0,0,0", "nan", "97,,3"])
def test_what_is_no_share(split: str) -> None:
    with pytest.raises(CompeteError, match=r"--split .*: give the shares of training, validation and test, as 97,3,0"):
        parse_split(split)


CONTRADICTIONS = {
    "two sources": (dict(data_path=["a"], data_args_path="b"), "--data-path and --data-args-path both say what is read"),
    "a part ignored": (dict(data_path=["a"], train_data_path=["b"]), "--data-path and --train-data-path both"),
    "mock": (dict(mock_data=True, per_split_data_args_path="b"), "--mock-data and --per-split-data-args-path both"),
    "split of parts": (dict(train_data_path=["a"], split="97,3,0"), "--split 97,3,0 divides --data-path, and --train-data-path"),
    "no split": (dict(data_args_path="a"), "--data-args-path without --split"),
    "no training": (dict(data_path=["a"], split="0,100,0"), "--split 0,100,0 gives training nothing"),
    "test alone": (dict(data_path=["a"], split="99,0,1"), "--split 99,0,1 has a test part and no validation part"),
    "letters": (dict(data_path=["a"], split="a,b,c"), "--split a,b,c: give the shares"),
    "sets": (dict(data_path=["a"], multiple_validation_sets=True), "--multiple-validation-sets needs --full-validation"),
    "cache": (dict(train_data_path=["a"], dataloader_fast_cache_load=True), "--dataloader-fast-cache-load reads the cache"),
    "deferred": (dict(data_path=["a"], dataloader_defer_npy_index_mmap=True), "--dataloader-defer-npy-index-mmap reads"),
    "cache of a blend": (
        dict(data_path=["a"], dataloader_fast_cache_load=True, data_cache_path="c"),
        "--dataloader-fast-cache-load does not go with --data-path",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_need_no_file(name: str) -> None:
    given, said = CONTRADICTIONS[name]
    with pytest.raises(CompeteError, match=said):
        check_data_arguments(arguments(**given))


def test_without_evaluation_a_test_part_alone_is_harmless() -> None:
    check_data_arguments(arguments(data_path=["a"], split="99,0,1", eval_iters=0))

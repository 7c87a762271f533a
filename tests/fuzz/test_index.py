"""Damaged datasets: whatever the tables, the sizes or the manifest show is refused, and the rest comes out as it went in.

The oracle reads the published layout by itself, and Megatron's own reader reads what merge and split have written.
"""

import contextlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data import inspect_dataset
from megatron_compete.data.blend import make_blend
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.merge import merge_datasets
from megatron_compete.data.split import Part, split_dataset
from megatron_compete.data.tokenizer_match import check_tokenizer_matches
from tests.data.datasets import random_documents, read_documents, write_dataset, write_manifest
from tests.fuzz.damage import failure, fuzz, kept

CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
VOCABULARY = 1000

Documents = list[list[list[int]]]


@dataclass(frozen=True)
class Input:
    """The three files of a dataset, as one run of bytes: the lengths of the first two, then the files."""

    idx: bytes
    bin: bytes
    manifest: bytes

    def pack(self) -> bytes:
        return struct.pack("<HH", len(self.idx), len(self.bin)) + self.idx + self.bin + self.manifest

    @classmethod
    def unpack(cls, data: bytes) -> "Input":
        """Takes any bytes: what damage does to the lengths moves the files' borders."""
        one, two = struct.unpack("<HH", data[:4].ljust(4, b"\0"))
        return cls(data[4 : 4 + one], data[4 + one : 4 + one + two], data[4 + one + two :])

    @classmethod
    def read(cls, prefix: str) -> "Input":
        manifest = Path(prefix + ".json")
        return cls(*(Path(prefix + end).read_bytes() for end in (".idx", ".bin")), manifest.read_bytes() if manifest.exists() else b"")  # fmt: skip

    def write(self, prefix: str) -> None:
        for end, content in ((".idx", self.idx), (".bin", self.bin), (".json", self.manifest)):
            if content or end != ".json":
                Path(prefix + end).write_bytes(content)

    def documents(self) -> tuple[str, Documents] | None:
        """Dtype and documents; None where the index or the size of the `.bin` are damaged."""
        if len(self.idx) < 34 or self.idx[:9] != b"MMIDIDX\0\0":
            return None
        version, code, sequences, bounds_count = struct.unpack("<QBQQ", self.idx[9:34])
        if version != 1 or code not in CODES or not bounds_count or len(self.idx) != 34 + 12 * sequences + 8 * bounds_count:  # fmt: skip
            return None
        tables = struct.unpack(f"<{sequences}i{sequences}q{bounds_count}q", self.idx[34:])
        lengths, pointers, bounds = tables[:sequences], tables[sequences : 2 * sequences], tables[2 * sequences :]
        size = np.dtype(CODES[code]).itemsize
        begins = [0, *accumulate(length * size for length in lengths)]
        fits = (
            all(length >= 0 for length in lengths)
            and list(pointers) == begins[:-1]
            and bounds[0] == 0
            and bounds[-1] == sequences
            and all(one <= two for one, two in pairwise(bounds))
            and begins[-1] == len(self.bin)
        )
        if not fits:
            return None
        ids = [np.frombuffer(self.bin[one:two], CODES[code]).tolist() for one, two in pairwise(begins)]
        return CODES[code], [ids[one:two] for one, two in pairwise(bounds)]

    def manifest_is_refused(self, documents: Documents) -> bool | None:
        """What can be said of the manifest without its reader; None: nothing."""
        if not self.manifest:
            return False
        try:
            record = json.loads(self.manifest)
        except (ValueError, RecursionError):
            return True
        counts = {"documents": len(documents), "sequences": sum(map(len, documents)), "tokens": len(flat(documents))}
        if not isinstance(record, dict) or any(record.get(name) != count for name, count in counts.items()):
            return True
        return None


def flat(documents: Documents) -> list[int]:
    return [id_ for sequences in documents for ids in sequences for id_ in ids]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Datasets of two dtypes, with and without a manifest, with empty documents and with several sequences in one."""
    folder = tmp_path_factory.mktemp("good")
    packed = []
    datasets: list[tuple[Documents, type]] = [
        (random_documents(6, 1), np.uint16),
        (random_documents(4, 2), np.int32),
        ([[[1, 2], [3]], [], [[4]]], np.uint16),
    ]
    for number, (documents, dtype) in enumerate(datasets):
        prefix = write_dataset(folder / str(number), documents, dtype)
        packed.append(Input.read(prefix).pack())
        write_manifest(
            prefix, tokenizer_type="NullTokenizer", tokenizer_model=None, tokenizer_sha256=None, append_eod=False,
            tokenizer_options={"null_tokenizer_eod_id": 2}, engine={"name": "reference", "proof": None},
        )  # fmt: skip
        packed.append(Input.read(prefix).pack())
    return packed


ODD_VALUES = (
    None,
    True,
    -1,
    1.5,
    2**70,
    "",
    "a\\ud800",
    "../x",
    [],
    [[]],
    [{}],
    [None],
    {},
    {"name": []},
    {"merged": [1]},
)


@pytest.fixture(scope="module")
def odd(good: list[bytes]) -> list[bytes]:
    """Whole datasets whose manifests have one field of another kind, or one more tokenizer option."""
    given = Input.unpack(good[-1])
    record = json.loads(given.manifest)
    changed = [record | {name: value} for name in record for value in ODD_VALUES]
    names = ("trust_remote_code", "special_tokens", "null_tokenizer_eod_id", "tokenizer_model")
    changed += [record | {"tokenizer_options": {name: value}} for name in names for value in ODD_VALUES]
    return [replace(given, manifest=json.dumps(one).encode()).pack() for one in changed]


class Reader:
    """Has every tool read an input, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, data: bytes) -> None:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        given, prefix, whole = Input.unpack(data), str(folder / "given"), str(folder / "whole")
        given.write(prefix)
        read = given.documents()
        dtype, documents = read or ("<u2", [])
        write_dataset(whole, [[[9, 8]], [[7]]], np.dtype(dtype).type if dtype in ("<u2", "<i4") else np.uint16)
        refused = True if read is None else given.manifest_is_refused(documents)
        self._inspect(prefix, refused)
        splits = read is not None and bool(flat(documents[: len(documents) // 2]) and flat(documents[len(documents) // 2 :]))  # fmt: skip
        merges = dtype in ("<u2", "<i4") and not given.manifest
        before = set(folder.iterdir())
        self._tool(lambda: self._merge(prefix, whole, documents), refused, False if merges else None, folder, before)
        self._tool(lambda: self._split(prefix, documents), refused, False if splits else None, folder, before)
        self._tool(lambda: self._blend(prefix, documents), refused, False if flat(documents) else None, folder, before)
        self._tool(
            lambda: check_tokenizer_matches(prefix, TokenizerChoice("NullTokenizer", null_tokenizer_eod_id=2), 1000),
            refused, None, folder, before,
        )  # fmt: skip

    def _inspect(self, prefix: str, refused: bool | None) -> None:
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal is
        code: object = 0
        with contextlib.redirect_stdout(printed):
            try:
                inspect_dataset.main([prefix, "--show", "0", "-1"])
            except SystemExit as error:
                code = error.code
            except CompeteError as error:
                assert "--show" in str(error)  # there is no document
        assert code in (0, 1)
        assert code == 1 or not refused, "inspect finds nothing wrong"

    def _tool(
        self, run: Callable[[], object], refused: bool | None, otherwise: bool | None, folder: Path, before: set[Path]
    ) -> None:
        """Run a tool; it must refuse, must not, or may do either (None)."""
        expected = refused if refused is not False else otherwise
        try:
            run()
        except CompeteError as error:
            assert expected is not False, f"refused a whole dataset: {error}"
            assert "\n" not in str(error) and len(str(error)) < 2000
            assert set(folder.iterdir()) >= before and not {path.stem for path in folder.iterdir()} & {"out", "part_a"}
        else:
            assert expected is not True, "took what it had to refuse"
        for path in set(folder.iterdir()) - before:
            path.unlink()

    def _merge(self, prefix: str, whole: str, documents: Documents) -> None:
        out = str(Path(prefix).with_name("out"))
        merged = merge_datasets([prefix, whole], out, ignore_manifests=not Path(prefix + ".json").exists())
        expected = [*documents, [[9, 8]], [[7]]]
        assert read_documents(out) == expected
        assert (merged.documents, merged.tokens) == (len(expected), len(flat(expected)))

    def _split(self, prefix: str, documents: Documents) -> None:
        half = len(documents) // 2
        parts = [Part("a", str(half)), Part("b", "rest")]
        written, left_out = split_dataset(prefix, str(Path(prefix).with_name("part")), parts, contiguous=True)
        assert not left_out
        assert [read_documents(part.prefix) for part in written] == [documents[:half], documents[half:]]

    def _blend(self, prefix: str, documents: Documents) -> None:
        (source,) = make_blend([prefix]).sources
        assert (source.documents, source.tokens) == (len(documents), len(flat(documents)))


def test_the_oracle_reads_what_megatron_writes(good: list[bytes], tmp_path: Path) -> None:
    for number, data in enumerate(good):
        given = Input.unpack(data)
        assert given.pack() == data
        given.write(str(tmp_path / str(number)))
        read = given.documents()
        assert read is not None and read[1] == read_documents(str(tmp_path / str(number)))
        assert given.manifest_is_refused(read[1]) in (False, None)


@pytest.mark.slow
def test_damaged_datasets(good: list[bytes], tmp_path: Path) -> None:
    assert fuzz("index", good, Reader(tmp_path), inputs=600, seconds=60) == 600


@pytest.mark.slow
def test_damaged_manifests(odd: list[bytes], tmp_path: Path) -> None:
    assert fuzz("index", odd, Reader(tmp_path), inputs=200, seconds=60) == 200


def test_good_odd_and_kept_inputs(good: list[bytes], odd: list[bytes], tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for data in [*good, *odd, *(path.read_bytes() for path in kept("index"))]:
        assert failure(reader, data) is None

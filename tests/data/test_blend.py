"""Blends: weights, epochs, and what Megatron reads of them."""

from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.blend import main, make_blend, table_lines
from tests.data.conftest import files_in
from tests.data.datasets import write_dataset, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`books` with 100 tokens, `code_a` with 900 and `code_b` with 300."""
    for name, tokens in (("books", 100), ("code_a", 900), ("code_b", 300)):
        write_manifest(write_dataset(tmp_path / name, [[[5] * 100]] * (tokens // 100)))
    return tmp_path


def weights(folder: Path, *given: str, temperature: float = 1.0) -> list[float]:
    return [source.weight for source in make_blend([str(folder)], given, temperature).sources]


def test_temperature(folder: Path) -> None:
    assert weights(folder) == pytest.approx([1 / 13, 9 / 13, 3 / 13])
    roots = [1, 3, 3**0.5]
    assert weights(folder, temperature=2) == pytest.approx([root / sum(roots) for root in roots])
    assert weights(folder, temperature=1e9) == pytest.approx([1 / 3] * 3)
    assert weights(folder, temperature=0.1) == pytest.approx([0, 1, 0], abs=1e-4)
    blend = make_blend([str(folder)])
    assert [source.epochs(2600) for source in blend.sources] == pytest.approx([2, 2, 2])


def test_given_weights(folder: Path) -> None:
    assert weights(folder, "books=1", "code_*=3") == pytest.approx([0.25, 0.75 * 0.75, 0.25 * 0.75])
    assert weights(folder, f"{folder}/books=2", "code_a=0", "code_b=2") == [0.5, 0.5]
    for given, words in (
        (["books=1", "code_a=1"], "code_b has none; give 0"),
        (["books=1", "code_*=1", "code_a=1"], "code_a has a weight already"),
        (["book=1"], "no source has this name"),
        (["books=x"], "write NAME=WEIGHT"),
        (["=1"], "write NAME=WEIGHT"),
        (["books=-1"], "write NAME=WEIGHT"),
        (["*=0"], "all are 0"),
    ):
        with pytest.raises(CompeteError, match=words):
            weights(folder, *given)


def test_megatron_reads_the_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron.core.datasets.utils import get_blend_from_list

    main(["--input", str(folder), "--weights", "books=1", "code_a=2", "code_b=5"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("--data-path ")
    output = folder / "blend.args"
    main(["--input", str(folder), "--weights", "books=1", "code_a=2", "code_b=5", "--output", str(output)])
    assert capsys.readouterr().out.splitlines()[-1] == f"--data-args-path {output}"
    expected = ([str(folder / name) for name in ("books", "code_a", "code_b")], [0.125, 0.25, 0.625])
    assert get_blend_from_list(line.split()[1:]) == get_blend_from_list(output.read_text().split()) == expected


def test_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--train-iters", "10", "--global-batch-size", "4", "--seq-length", "65"]
    main(["--input", str(folder), "--weights", "books=1", "code_a=1", "code_b=0", *run])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["source", "documents", "tokens", "weight", "tokens", "drawn", "epochs"]
    assert lines[1][1:] == ["1", "100", "0.5000", "1300", "13.00"]
    assert lines[2][1:] == ["9", "900", "0.5000", "1300", "1.44"]
    assert lines[3] == ["all", "10", "1000", "1.0000", "2600", "2.60"]
    assert len(table_lines(make_blend([str(folder)]), None)[1].split()) == 4


def test_length_of_the_run(folder: Path) -> None:
    for flags, words in (
        (["--tokens", "1e9", "--train-iters", "5"], "--tokens and --train-iters both"),
        (["--train-iters", "5", "--seq-length", "8"], "--train-iters without --global-batch-size"),
        (["--tokens", "0"], "--tokens 0"),
        (["--temperature", "0", "--tokens", "5"], "--temperature 0"),
    ):
        with pytest.raises(CompeteError, match=words):
            main(["--input", str(folder), *flags])


def test_what_cannot_be_blended(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(str(folder / "code_b"), tokenizer_sha256="0" * 64)
    with pytest.raises(CompeteError, match=r"books and .*code_b cannot be blended"):
        make_blend([str(folder)])
    (folder / "code_b.json").unlink()
    main(["--input", str(folder)])
    assert f"without a manifest, tokenizer not compared: {folder}/code_b" in capsys.readouterr().out
    for name, documents, dtype, words in (
        ("wide", [[[5]]], np.int32, "wide as int32"),
        ("empty", [[]], np.uint16, "holds no tokens"),
        ("a space", [[[5]]], np.uint16, "has a space in its name"),
    ):
        prefix = write_dataset(folder / name, documents, dtype)
        with pytest.raises(CompeteError, match=words):
            make_blend([str(folder / "books"), prefix])


def test_output_that_cannot_be_written(folder: Path) -> None:
    before = files_in(folder)
    with pytest.raises(CompeteError, match="--output"):
        main(["--input", str(folder), "--output", str(folder / "books.bin" / "blend.args")])
    assert files_in(folder) == before

"""End-of-document marks that are not at the end of a document."""

from pathlib import Path

import numpy as np
import pytest

from megatron_compete.data.index_file import read_index
from megatron_compete.data.inspect import document_ends
from megatron_compete.data.inspect.checks import Vocabulary, inspect
from megatron_compete.data.inspect.document_ends import Ends, count_ends, misplaced_note
from megatron_compete.data.inspect_dataset import main
from megatron_compete.data.preprocess import main as preprocess
from tests.data.conftest import WriteCorpus
from tests.data.datasets import write_dataset, write_manifest

EOD = 2
DOCUMENTS = [[[5, EOD]], [], [[6, EOD, 7], [EOD, EOD]], [[EOD]], [[8, EOD, EOD, EOD]]]
"""Four marks are followed by more of their document; two documents end with two."""


@pytest.mark.parametrize("chunk", [1, 2, 1 << 20])
def test_marks_are_counted(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_ends, "CHUNK", chunk)
    prefix = write_dataset(tmp_path / "d", DOCUMENTS)
    ids = np.fromfile(prefix + ".bin", np.uint16)
    index = read_index(prefix + ".idx")
    for eod in (EOD, None):
        assert count_ends(index, ids, eod) == Ends(EOD, ended=4, unended=0, doubled=2, first_unended=None)
    assert count_ends(index, ids, 7) == Ends(7, ended=0, unended=4, doubled=0, first_unended=(0, EOD))


def test_doubled_marks_are_noted(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "d", DOCUMENTS)
    note = inspect(prefix, Vocabulary(None, None)).notes[-1]
    assert note.startswith(
        "4 end-of-document tokens 2 are followed by more of their document; 2 documents end with two"
    )
    write_manifest(prefix, append_eod=False)
    assert inspect(prefix, Vocabulary(None, EOD)).notes[-1] == note
    whole = write_dataset(tmp_path / "whole", [[[5, EOD]], [[EOD]], [[6, 7, EOD]]])
    assert (
        misplaced_note(count_ends(read_index(whole + ".idx"), np.fromfile(whole + ".bin", np.uint16), EOD), 3) is None
    )
    assert not any("followed by" in note for note in inspect(whole, Vocabulary(None, None)).notes)


def test_no_mark_is_noted_where_none_is_known(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "d", [[[5, 5, 6, 5]], [[5, 7]]])
    assert not any("followed by" in note for note in inspect(prefix, Vocabulary(None, None)).notes)


def test_marks_in_text_are_noted(
    write_corpus: WriteCorpus, tokenizer_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["plain", "ends with </s>", "a<|endoftext|>b", "plain </s", "again</s> and </s>", "x" * 20_000 + "</s>"]
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", tokenizer_model]
    preprocess(
        ["--input", write_corpus([{"text": text} for text in texts]), "--output-prefix", str(tmp_path / "d")]
        + ["--append-eod", "--workers", "1", "--tokenizer-engine", "reference", *tokenizer]
    )
    prefix = str(tmp_path / "d_text_document")
    expected = [
        "3 of 6 documents looked at have </s> in their text, spelled out in ordinary tokens; the first is document 1",
        "1 of 6 documents looked at have <|endoftext|> in their text, spelled out in ordinary tokens; the first is document 2",
    ]
    for flags in (tokenizer, ["--show", "0"]):
        capsys.readouterr()
        main([prefix, *flags])
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line for line in lines if "spelled out" in line) == sorted(expected)

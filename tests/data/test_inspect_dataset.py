"""The command: what it prints, and its exit code."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.inspect_dataset import main
from megatron_compete.data.preprocess import main as preprocess
from tests.data.conftest import WriteCorpus, files_in

TEXTS = ["def f(x):\n    return x\n", "one\n", "last words 中\n" * 40]


@pytest.fixture
def prefix(write_corpus: WriteCorpus, tokenizer_model: str, tmp_path: Path) -> str:
    corpus = write_corpus([{"text": text} for text in TEXTS])
    preprocess(
        ["--input", corpus, "--output-prefix", str(tmp_path / "d"), "--append-eod", "--workers", "1"]
        + ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", tokenizer_model]
    )
    return str(tmp_path / "d_text_document")


def test_what_it_prints(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main([prefix + ".bin", "--show", "0", "-1", "--show-characters", "30", "--figure", str(tmp_path / "f.png")])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{prefix}: 3 documents, ")
    for words in (
        "made with --tokenizer-type SentencePieceTokenizer --tokenizer-model",
        "tokenizer engine split, exact by construction\n",
        "every document with tokens ends with token 2",
        " of 1000\n",
        "tokens a document: ",
        "--- document 0, ",
        TEXTS[0],
        "--- document 2, ",
        f"\n{TEXTS[2][:30]}\n... {len(TEXTS[2]) - 30} characters more",
    ):
        assert words in printed, words
    assert "damaged" not in printed and "f.png" in files_in(tmp_path)


def test_damage_is_exit_code_1(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open(prefix + ".bin", "r+b") as stream:
        stream.truncate(10)
    with pytest.raises(SystemExit) as caught:
        main([prefix, "--show", "0"])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("damaged: ")] == [lines[-1]]
    assert "has 10 bytes" in lines[-1]


def test_vocabulary_and_tokenizer_of_the_flags(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([prefix, "--vocab-size", "100"])
    assert "are outside the vocabulary of 100" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([prefix, "--eod-id", "7"])
    assert "3 documents do not end with token 7" in capsys.readouterr().out
    main([prefix, "--tokenizer-type", "NullTokenizer", "--vocab-size", "1000", "--eod-id", "2", "--show", "1"])
    ids = capsys.readouterr().out.splitlines()[-1].split()
    assert ids[-1] == "2" and all(id_.isdecimal() for id_ in ids)


def test_without_the_tokenizers_files_ids_are_shown(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Path(prefix + ".json")
    manifest.write_text(manifest.read_text().replace('"tokenizer_sha256": "', '"tokenizer_sha256": "0'))
    main([prefix, "--show", "1", "--show-characters", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert "no tokenizer to decode with: give --tokenizer-type and --tokenizer-model" in lines
    assert lines[-1].split()[-1] == "2"


def test_documents_that_are_not_there(prefix: str) -> None:
    for number in ("3", "-4"):
        with pytest.raises(CompeteError, match=f"--show {number}: the dataset has 3 documents, 0 to 2"):
            main([prefix, "--show", number])

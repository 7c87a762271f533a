"""Every kind of tokenizer through preprocessing: the dataset holds what that tokenizer gives, document by document."""

import json
from pathlib import Path

import pytest

from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import main as preprocess
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.conftest import WriteCorpus
from tests.data.datasets import manifest_of, read_documents
from tests.data.tokenizer_kinds import (
    bert_files,
    gpt2_files,
    hugging_face_folder,
    tiktoken_file,
    train_byte_level,
    with_bos,
)

KINDS = (
    *("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", "HuggingFaceTokenizer", "SFTTokenizer"),
    *("GPT2BPETokenizer", "BertWordPieceLowerCase", "BertWordPieceCase", "TikTokenizer"),
    *("NullTokenizer", "NullMultimodalTokenizer"),
)


@pytest.fixture(scope="module")
def texts(stdlib_corpus: StdlibCorpus) -> list[str]:
    lines = Path(stdlib_corpus.heldout_path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines][:8]


def make(kind: str, folder: Path, texts: list[str], sentencepiece_model: str) -> tuple[TokenizerChoice, list[str]]:
    """A tokenizer of the kind, and the flags that name it."""
    if "Null" in kind:
        choice = TokenizerChoice(kind, vocab_size=1000)
    elif "Bert" in kind:
        choice = bert_files(folder, kind)
    elif kind in ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"):
        choice = TokenizerChoice(kind, sentencepiece_model)
    else:
        byte_level = train_byte_level(texts)
        if kind == "GPT2BPETokenizer":
            choice = gpt2_files(folder, byte_level)
        elif kind == "TikTokenizer":
            choice = tiktoken_file(folder, byte_level)
        else:
            model = hugging_face_folder(folder / "hf", with_bos(byte_level)).tokenizer_model
            choice = TokenizerChoice(kind, model)
    named = ("tokenizer_type", "tokenizer_model", "vocab_size", "vocab_file", "merge_file")
    given = {name: getattr(choice, name) for name in named if getattr(choice, name) is not None}
    return choice, [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]


@pytest.mark.parametrize("kind", KINDS)
def test_preprocessing(
    kind: str,
    texts: list[str],
    tokenizer_model: str,
    write_corpus: WriteCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "Null" in kind:
        texts = ["1 2 3", "40 999"]
    choice, flags = make(kind, tmp_path, texts, tokenizer_model)
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus([{"text": text} for text in texts])
    preprocess(["--input", corpus, "--output-prefix", "d", "--workers", "1", "--append-eod", *flags])
    tokenizer = choice.build()
    expected = [[list(tokenizer.tokenize(text)) + [tokenizer.eod]] for text in texts]
    assert read_documents("d_text_document") == expected
    manifest = manifest_of("d_text_document")
    assert manifest["tokenizer_type"] == kind and manifest["engine"]["requested"] == "auto"

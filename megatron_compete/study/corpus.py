"""A study's text: written, tokenised and held out once, so that all of its runs read the same bytes.

The text is Python source that the machine already has: the standard library's, or every installed package's. The
byte-level tokenizer is one of Hugging Face's with an alphabet of 256 and no merges, because Megatron builds its own
`ByteLevelTokenizer` from no flag; its loss is in nats per byte.
"""

import hashlib
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.data import stdlib_corpus
from megatron_compete.data.preprocess import main as preprocess
from megatron_compete.data.tokenizer import main as train_tokenizer
from megatron_compete.launch.recipe import Value
from megatron_compete.study.ciphers import ASCII, LETTERS, enciphered
from megatron_compete.study.config import Corpus
from megatron_compete.study.folder import read_json, write_json

READY = "corpus.json"
END_OF_DOCUMENT = "<|end|>"
PARTS = ("train", "heldout")


@dataclass(frozen=True)
class PreparedCorpus:
    """Where a study's data lie."""

    train: str
    """Prefix of the training set's .bin and .idx."""
    heldout: str
    tokenizer: dict[str, Value]
    """The tokenizer's flags, as a recipe has them."""
    digest: str
    """Sha256 over both .bin files."""

    def arguments(self) -> dict[str, Value]:
        """The trainer's data arguments."""
        return {"data-path": self.train, "split": "100,0,0", **self.tokenizer}


def prepare_corpus(corpus: Corpus, folder: Path) -> PreparedCorpus:
    """Make the corpus in `folder`, or find it there made from the same settings.

    Raises:
        CompeteError: the text cannot be read, or the named dataset is not there.
    """
    if corpus.train is not None and corpus.heldout is not None:
        return PreparedCorpus(corpus.train, corpus.heldout, {}, digest_of(corpus.train, corpus.heldout))
    if (found := _found(corpus, folder)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(corpus, folder)
    tokenizer = _make_tokenizer(corpus, folder)
    flags = [token for name, value in tokenizer.items() for token in (f"--{name}", str(value))]
    for part in PARTS:
        preprocess(["--input", str(folder / f"{part}.jsonl"), "--output-prefix", str(folder / part), "--append-eod", *flags])  # fmt: skip
    train, heldout = (str(folder / f"{part}_text_document") for part in PARTS)
    prepared = PreparedCorpus(train, heldout, tokenizer, digest_of(train, heldout))
    write_json(folder / READY, {"settings": _settings(corpus), "prepared": vars(prepared)})
    return prepared


def is_prepared(corpus: Corpus, folder: Path) -> bool:
    """Whether `folder` holds the corpus that these settings ask for."""
    return _found(corpus, folder) is not None


def _found(corpus: Corpus, folder: Path) -> PreparedCorpus | None:
    found = read_json(folder / READY)
    return PreparedCorpus(**found["prepared"]) if found and found["settings"] == _settings(corpus) else None


def _settings(corpus: Corpus) -> dict[str, Value]:
    settings: dict[str, Value] = {
        "source": corpus.source,
        "max-bytes": corpus.max_bytes,
        "vocab-size": corpus.vocab_size,
    }
    return (
        settings
        if corpus.ciphers is None
        else settings | {"ciphers": corpus.ciphers, "cipher-alphabet": corpus.cipher_alphabet}
    )


def digest_of(*prefixes: str) -> str:
    """Sha256 over datasets' tokens."""
    whole = hashlib.sha256()
    for prefix in prefixes:
        with open(f"{prefix}.bin", "rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _write_text(corpus: Corpus, folder: Path) -> None:
    root = sysconfig.get_path("purelib") if corpus.source == "packages" else None
    stdlib_corpus.write_stdlib_corpus(str(folder), corpus.max_bytes, root)
    if corpus.ciphers is not None:
        for part in PARTS:
            _encipher(
                folder / f"{part}.jsonl", corpus.ciphers, LETTERS if corpus.cipher_alphabet == "letters" else ASCII
            )


def _encipher(path: Path, count: int, alphabet: str) -> None:
    """Write a part's documents anew, each piece in its cipher."""
    with path.open(encoding="utf-8") as stream:  # by lines of the file: a text may hold separators of other kinds
        documents = [(one["source"], one["text"]) for one in map(json.loads, stream)]
    written = enciphered(documents, count, alphabet)
    if len(written) < count:
        raise CompeteError(
            f"corpus.ciphers {count} is more than the {len(written)} pieces of text in {path.name}: raise max-bytes, or "
            "take fewer"
        )
    lines = (json.dumps({"text": text, "source": name, "cipher": number}) for name, text, number in written)
    write_whole(path, "".join(line + "\n" for line in lines))


def _make_tokenizer(corpus: Corpus, folder: Path) -> dict[str, Value]:
    if corpus.vocab_size is None:
        write_byte_tokenizer(folder / "tokenizer")
        return {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": str(folder / "tokenizer")}
    train_tokenizer(["--input", str(folder / "train.jsonl"), "--output-prefix", str(folder / "tokenizer"), "--vocab-size", str(corpus.vocab_size)])  # fmt: skip
    return {"tokenizer-type": "SentencePieceTokenizer", "tokenizer-model": str(folder / "tokenizer.model")}


def write_byte_tokenizer(folder: Path) -> None:
    """A Hugging Face tokenizer with a piece for each byte, and one for the end of a document: 257 ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: id for id, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_DOCUMENT, special=True)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_DOCUMENT).save_pretrained(folder)

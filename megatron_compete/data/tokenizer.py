"""SentencePiece training on a corpus, with the defaults that language-model pretraining needs.

Lossless: nothing is normalised, no space is added or removed, and what the pieces do not cover becomes bytes, so
`decode(encode(text)) == text` for every text without U+2581, the character SentencePiece writes for a space.
Newlines are fed to the trainer as ordinary characters (chunks of a document keep them), so it learns pieces like
`):\\n`, and runs of spaces for indentation: 3.53 bytes a token on held-out Python sources with 8000 pieces, against
3.30 when a newline is a piece of its own. A tab is the byte piece `<0x09>` until a corpus has enough of them.

BPE is the default: it trains in seconds, its pieces do not depend on `--threads`, and the Hugging Face tokenizer with
merges in the order of the scores gives the same ids. Unigram takes some 15 times as long for the same text, and
breaks ties differently there.
"""

import argparse
import io
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from megatron_compete.common.command_line import Command, add_options, check_options, option, take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.common.progress import MEGABYTE
from megatron_compete.data.bad_documents import OnError, SkipLog
from megatron_compete.data.clock import running_clock
from megatron_compete.data.inputs import (
    InputOptions,
    Source,
    add_input_flags,
    find_sources,
    no_documents,
    take_input_options,
)
from megatron_compete.data.sample import CHUNK_CHARACTERS, Sample, read_sample

DEFAULT_SAMPLE_BYTES = {"bpe": 20 * MEGABYTE, "unigram": 2 * MEGABYTE}
"""Text that is trained on unless told otherwise, so that either type is done in some ten seconds on one core."""

_CONTROL = ("<unk>", "<s>", "</s>")

UNK_ID, BOS_ID, EOS_ID, NO_PAD = 0, 1, 2, -1
"""Ids as Llama has them; Megatron takes the eos as its end of document. A pretraining corpus needs no padding."""


@dataclass(frozen=True)
class TokenizerTraining:
    """What to train, and on what.

    Raises:
        CompeteError: a value that cannot be used.
    """

    inputs: tuple[str, ...] = option(hidden=True)
    """Files, folders or glob patterns."""

    output: str = option(
        MISSING, "--output-prefix", "--output", metavar="PREFIX", help="writes PREFIX.model and PREFIX.vocab"
    )
    """Prefix of `.model` and `.vocab`; a trailing `.model` is taken off."""

    vocab_size: int = option()
    """Number of ids, the three special ones and the 256 bytes among them."""

    model_type: Literal["bpe", "unigram"] = option(
        "bpe",
        help="unigram takes some 15 times as long, and no Hugging Face fast tokenizer is equal to it: it cannot be exported",
    )

    json_key: str = option("text", metavar="KEY")
    """Where a line or row holds its text."""

    byte_fallback: bool = True
    """Spell what no piece covers as bytes; without it such characters are lost."""

    split_digits: bool = option(False, negatable=True)
    """Every digit a piece of its own."""

    user_defined_symbols: tuple[str, ...] = option((), metavar="SYMBOL")
    """Pieces in any case, each always one token: markers of chats or tools, for example; a space in them is one of the
    text."""

    character_coverage: float = 0.9995
    """Share of the text's characters that get a piece; the rare rest goes through bytes."""

    sample_bytes: int | None = option(None, metavar="BYTES")
    """Text to train on at most, sampled from the whole corpus; 0 is all of it (default: 20 MB for bpe, 2 MB for
    unigram)."""

    threads: int = 1
    """SentencePiece's threads. Unigram's pieces depend on their number, BPE's do not."""

    on_error: OnError = option("fail", help="at a malformed document: stop, or count it and go on")

    input_options: InputOptions = field(default_factory=InputOptions)
    """How the inputs are read."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.vocab_size < 1:
            raise CompeteError(f"--vocab-size {self.vocab_size}: a vocabulary needs a positive size, 8000 for example")
        if not 0.9 <= self.character_coverage <= 1.0:
            raise CompeteError(f"--character-coverage {self.character_coverage}: give a share from 0.9 to 1")
        if self.threads < 1:
            raise CompeteError(f"--threads {self.threads}: give 1 or more")
        if self.sample_bytes is not None and self.sample_bytes < 0:
            raise CompeteError(f"--sample-bytes {self.sample_bytes}: give a number of bytes, or 0 for all of the text")

        for symbol in self.user_defined_symbols:
            if reason := self._unusable(symbol):
                raise CompeteError(f"--user-defined-symbols {symbol!r}: {reason}")

    def _unusable(self, symbol: str) -> str | None:
        if not symbol:
            return "name it, or leave it out"
        if self.user_defined_symbols.count(symbol) > 1:
            return "name it once"
        if symbol in _CONTROL or re.fullmatch("<0x[0-9A-F]{2}>", symbol):
            return "this is a piece that text must not turn into; take another name"
        if "," in symbol and len(symbol) > 1:
            return "give symbols as words of their own, without commas between them"
        return None

    @property
    def prefix(self) -> str:
        """`output` without `.model`."""
        return self.output.removesuffix(".model")

    @property
    def sample_limit(self) -> int:
        """Bytes of text to train on at most; 0 for no limit."""
        return DEFAULT_SAMPLE_BYTES[self.model_type] if self.sample_bytes is None else self.sample_bytes


@dataclass(frozen=True)
class TrainedTokenizer:
    """What `train_tokenizer` wrote."""

    model_path: str
    vocab_path: str
    vocab_size: int
    documents: int
    """Documents that were trained on, wholly or in part."""
    text_bytes: int
    """UTF-8 bytes of text trained on."""
    seconds: float
    skips: SkipLog
    """Documents left out."""


def train_tokenizer(training: TokenizerTraining) -> TrainedTokenizer:
    """Train, and write `{prefix}.model` and `{prefix}.vocab` once both are complete.

    The same documents and settings give the same bytes, in whatever order and files the documents come. `.vocab` is for reading: a piece and its score a line, with
    backslash, newline, carriage return and tab in a piece written as escapes.

    Raises:
        CompeteError: no corpus, a malformed document (`on_error="fail"`), a vocabulary that does not fit the corpus, or a
            place that cannot be written to.
    """
    sources = find_sources(training.inputs, training.input_options)
    try:
        return _train(sources, training)
    except BrokenPipeError:  # of standard output, and nothing to fix
        raise
    except OSError as error:
        raise CompeteError(f"{error.filename or training.prefix}: {error.strerror or error}") from None


def _train(sources: Sequence[Source], training: TokenizerTraining) -> TrainedTokenizer:
    start = time.monotonic()
    skips = SkipLog(training.on_error)
    sample = read_sample(sources, training.json_key, training.sample_limit, skips)
    if not sample.bytes:
        raise no_documents(sources, training.json_key, skips)
    with running_clock(f"training on {sample.bytes / MEGABYTE:.1f} MB"):
        model = _run_sentencepiece(sample, training)
    size = _write_model(model, training.prefix)
    return TrainedTokenizer(
        model_path=training.prefix + ".model",
        vocab_path=training.prefix + ".vocab",
        vocab_size=size,
        documents=sample.documents,
        text_bytes=sample.bytes,
        seconds=time.monotonic() - start,
        skips=skips,
    )


def _run_sentencepiece(sample: Sample, training: TokenizerTraining) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample.chunks), model_writer=model, **_trainer_options(training)
        )
    except RuntimeError as error:
        raise _explain(str(error), sample, training) from None
    return model.getvalue()


def _trainer_options(training: TokenizerTraining) -> dict[str, Any]:
    return {
        "model_type": training.model_type,
        "vocab_size": training.vocab_size,
        "byte_fallback": training.byte_fallback,
        "split_digits": training.split_digits,
        # SentencePiece looks for them where it has written every space as U+2581.
        "user_defined_symbols": [symbol.replace(" ", "\u2581") for symbol in training.user_defined_symbols],
        "character_coverage": training.character_coverage,
        "num_threads": training.threads,
        # Lossless: the text as it is.
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        # Indentation is a run of spaces and nothing else.
        "allow_whitespace_only_pieces": True,
        "max_sentence_length": 4 * CHUNK_CHARACTERS,  # counted in bytes: 4 is the longest character
        "unk_id": UNK_ID,
        "bos_id": BOS_ID,
        "eos_id": EOS_ID,
        "pad_id": NO_PAD,
        "minloglevel": 2,  # errors only; they arrive as exceptions
    }


def _explain(message: str, sample: Sample, training: TokenizerTraining) -> CompeteError:
    size = f"--vocab-size {training.vocab_size}"
    if found := re.search(r"Vocabulary size too high .* a value <= (\d+)", message):
        return CompeteError(
            f"{size} is too large for this corpus ({sample.bytes} bytes of text, {sample.documents} documents): "
            f"the largest that fits is {found[1]}"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return CompeteError(
            f"{size} is too small for this corpus's alphabet: its characters, the bytes and the special pieces alone "
            f"take {found[1]}; give more than that, or lower --character-coverage {training.character_coverage}"
        )
    return CompeteError(f"SentencePiece could not train on this corpus with {size}: {message}")


def _write_model(model: bytes, prefix: str) -> int:
    """Write the model and its readable vocabulary; number of pieces."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = int(processor.get_piece_size())
    with StagedFiles() as staged:
        with open(staged.path(prefix + ".model"), "wb") as stream:
            stream.write(model)
        with open(staged.path(prefix + ".vocab"), "w", encoding="utf-8", newline="\n") as stream:
            for index in range(size):
                piece = _escape(processor.id_to_piece(index))
                stream.write(f"{piece}\t{processor.get_score(index):g}\n")
        staged.commit()
    return size


def _escape(piece: str) -> str:
    return piece.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a training and of its input."""
    add_input_flags(parser.add_argument_group("input"))
    add_options(parser, TokenizerTraining)


def run(options: argparse.Namespace) -> None:
    """Train and say what came of it."""
    given = vars(options)
    inputs, reading = take_input_options(given)
    trained = train_tokenizer(take_options(TokenizerTraining, given, inputs=inputs, input_options=reading))
    for line in trained.skips.report():
        print(line, file=sys.stderr)
    print(
        f"wrote {trained.model_path} and {trained.vocab_path}: {trained.vocab_size} pieces from {trained.documents} "
        f"documents, {trained.text_bytes / MEGABYTE:.1f} MB of text, in {trained.seconds:.1f} s; "
        f"{trained.skips.summary()}"
    )


main = Command(
    name="tokenizer",
    description="Train a lossless SentencePiece tokenizer on a corpus: JSON Lines, Parquet or plain text.",
    epilog="The model serves Megatron's --tokenizer-type SentencePieceTokenizer, its eos as the end of document.",
    example="--input corpus --output-prefix data/tokenizer --vocab-size 32000",
    add_arguments=add_arguments,
    run=run,
)

"""Which engine encodes a dataset, and how an engine that was only sampled is watched.

Every text is encoded by the reference (Megatron's own tokenizer), by an engine that is exact by construction (`split`,
which says under which conditions), or by one that the user named. `--tokenizer-engine auto`, the default, takes the
second where its conditions hold and else the first. kitoken and gigatoken encode with the same vocabulary in other ways
and cannot be proven here: named, they have to give the reference's ids on a sample of the corpus and on odd strings
(`sample_check`), and while they work one text in `CHECK_EVERY` is encoded with the reference too; at a difference the
encoder raises `EngineDiffers`, and what that engine made has to be made again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines.load import (
    REFERENCE,
    SPLIT,
    CannotLoad,
    Encode,
    Ids,
    load_engine,
)
from megatron_compete.data.engines.sample_check import compare, difference, encode_reference
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

AUTO = "auto"
SAMPLED = ("kitoken", "gigatoken")
"""Engines that a sample alone speaks for."""
ENGINE_CHOICES = (AUTO, REFERENCE, SPLIT, *SAMPLED)
SAMPLE_BYTES = 4_000_000
"""Text of the corpus on which they are checked first; the reference takes a second or two for it."""

CHECK_EVERY = 256
"""One text in so many is checked. With an engine 10 times as fast as the reference that costs 4% of its time."""

_SHARD_STEP = 97
"""Odd, so that shards of few texts are checked as often as those of many."""


class EngineDiffers(Exception):
    """An engine gave other ids than the reference; the message is one line that says which and where."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that encodes a dataset, and why."""

    name: str
    """What runs: `reference`, `split`, `kitoken` or `gigatoken`."""

    requested: str = REFERENCE
    """The flag's value."""

    proof: dict[str, Any] | None = None
    """Documents, bytes and odd strings on which it was compared; None for an engine that is exact."""

    passed_over: dict[str, str] = field(default_factory=dict)
    """Engines that could not be taken, or were dismissed, with the reason."""

    speed: float = 1.0
    """On the sample, as a multiple of the reference's; not part of the record."""

    @property
    def exact(self) -> bool:
        """Whether it gives the reference's ids for every text, not only for those that were compared."""
        return self.name not in SAMPLED

    def record(self) -> dict[str, Any]:
        """For the manifest, as JSON."""
        return {key: value for key, value in asdict(self).items() if key != "speed"}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EngineChoice":
        """The choice that `record` described; further keys are left alone."""
        return cls(**{name: record[name] for name in ("name", "requested", "proof", "passed_over")})

    def dismissed(self, difference: str) -> "EngineChoice":
        """The reference, after this engine was caught."""
        return EngineChoice(REFERENCE, self.requested, None, self.passed_over | {self.name: difference})

    def describe(self) -> str:
        """One line to print before work starts."""
        others = "".join(f"; {name}: {reason}" for name, reason in self.passed_over.items())
        if self.proof is None:
            how = ", exact by construction" if self.name == SPLIT else ""
            return f"tokenizer engine: {self.name}{how}{others}"
        compared = (
            f"{self.proof['documents']} documents ({self.proof['bytes'] / 1e6:.1f} MB) and {self.proof['strings']} odd "
            "strings"
        )
        return (
            f"tokenizer engine: {self.name}, as you named it: identical to the reference on {compared}, {self.speed:.1f} "
            f"times its speed{others}"
        )


def choose_engine(choice: TokenizerChoice, requested: str, tokenizer: Any, sample: Sequence[str]) -> EngineChoice:
    """The engine for a job. Prints nothing.

    Args:
        requested: one of `ENGINE_CHOICES`.
        tokenizer: what `choice.build()` gave.
        sample: documents of the corpus, for an engine of `SAMPLED`.
    Raises:
        CompeteError: an engine was named that cannot be loaded, or that differs from the reference.
    """
    if requested == REFERENCE:
        return EngineChoice(REFERENCE)
    if requested == AUTO:
        try:
            load_engine(SPLIT, choice, tokenizer)
        except CannotLoad as reason:
            return EngineChoice(REFERENCE, AUTO, None, {SPLIT: str(reason)})
        return EngineChoice(SPLIT, AUTO)
    engine = _load_named(requested, choice, tokenizer)
    if requested == SPLIT:
        return EngineChoice(SPLIT, SPLIT)
    compared = compare(engine, encode_reference(load_engine(REFERENCE, choice, tokenizer), sample))
    if compared.difference is not None:
        raise CompeteError(
            f"--tokenizer-engine {requested} is not identical to Megatron's tokenizer {choice.describe()}: "
            f"{compared.difference} ({compared.differing_documents} documents and {compared.differing_strings} odd "
            "strings differ); leave the flag out"
        )
    proof = asdict(compared)
    speed = proof.pop("speed")
    return EngineChoice(requested, requested, proof, {}, speed)


def _load_named(name: str, choice: TokenizerChoice, tokenizer: Any) -> Encode:
    try:
        return load_engine(name, choice, tokenizer)
    except CannotLoad as reason:
        raise CompeteError(
            f"--tokenizer-engine {name} with {choice.describe()}: {reason}; leave the flag out"
        ) from None


class BatchEncoder:
    """Encodes batches of texts with the chosen engine, and checks some of them.

    Args:
        encode: the engine.
        reference: to check with; None for an engine that is exact.
    """

    def __init__(self, engine: EngineChoice, encode: Encode, reference: Encode | None) -> None:
        self._engine = engine
        self._encode = encode
        self._reference = reference
        self._shard = self._index = 0
        self.checked = 0
        """Texts compared with the reference."""

    def start_shard(self, shard: int) -> None:
        """Begin the shard with this number: which texts are checked depends on it and on their places in it alone."""
        self._shard, self._index = shard, 0

    def encode_batch(self, texts: list[str]) -> Sequence[Ids]:
        """Ids of every text, as the reference gives them.

        Raises:
            EngineDiffers: in a check, or where the engine failed and the reference did not.
            Exception: what the reference raises at a text that it refuses.
        """
        if self._reference is None:
            return self._encode(texts)
        try:
            ids = self._encode(texts)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            self._reference(texts)  # what it refuses too is the text's fault
            raise self._differs(f"it fails where the reference does not ({' '.join(str(error).split())})", 0) from None
        self._check(texts, ids)
        self._index += len(texts)
        return ids

    def _check(self, texts: list[str], ids: Sequence[Ids]) -> None:
        assert self._reference is not None
        first = -(self._index + _SHARD_STEP * self._shard) % CHECK_EVERY
        for offset in range(first, len(texts), CHECK_EVERY):
            words = difference(ids[offset], self._reference([texts[offset]])[0])
            self.checked += 1
            if words is not None:
                raise self._differs(words, offset)

    def _differs(self, words: str, offset: int) -> EngineDiffers:
        return EngineDiffers(
            f"tokenizer engine {self._engine.name} differs from the reference on text {self._index + offset} of "
            f"shard {self._shard}: {words}"
        )


def make_encoder(choice: TokenizerChoice, tokenizer: Any, engine: EngineChoice) -> BatchEncoder:
    """The encoder of one process; call it after the fork.

    Raises:
        CompeteError: the engine cannot be loaded here.
    """
    encode = _load_named(engine.name, choice, tokenizer)
    return BatchEncoder(engine, encode, None if engine.exact else load_engine(REFERENCE, choice, tokenizer))


def add_engine_flags(group: argparse._ArgumentGroup) -> None:
    """`--tokenizer-engine` and `--tokenizer-engine-sample`."""
    group.add_argument(
        "--tokenizer-engine",
        choices=ENGINE_CHOICES,
        default=AUTO,
        help="auto is exact: Megatron's tokenizer (reference), or split where that gives the same ids for every text; "
        "kitoken and gigatoken are compared on a sample and while they work",
    )
    group.add_argument(
        "--tokenizer-engine-sample",
        type=int,
        default=SAMPLE_BYTES,
        metavar="BYTES",
        help="text of the corpus on which kitoken or gigatoken are compared first",
    )

"""Faster engines behind the same tokenizer, and how it is made sure that they give the same ids.

The reference is the tokenizer that Megatron builds. kitoken and gigatoken encode with the same vocabulary in other ways.
With `--tokenizer-engine auto` an engine is taken only if it proves identical on a sample of the corpus and on odd
strings (`engines_proof`), and if it is then the fastest. While it works, one text in `CHECK_EVERY` is encoded with the
reference too; at a difference the encoder raises `EngineDiffers`, and what that engine made has to be made again.
An engine that was not proven runs only when it is named, and `EngineChoice.record` says so in the dataset's manifest.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines_load import FAST_ENGINES, CannotLoad, Encode, Ids, load_engine
from megatron_compete.data.engines_proof import Comparison, ReferenceIds, compare, difference, encode_reference
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

AUTO, REFERENCE = "auto", "reference"
ENGINE_CHOICES = (AUTO, REFERENCE, "kitoken", "gigatoken")
SAMPLE_BYTES = 4_000_000
"""Text of the corpus that a proof looks at; the reference takes a second or two for it."""

CHECK_EVERY = 256
"""One text in so many is checked. With an engine 10 times as fast as the reference that costs 4% of its time."""

_SHARD_STEP = 97
"""Odd, so that shards of few texts are checked as often as those of many."""


class EngineDiffers(Exception):
    """A proven engine gave other ids than the reference; the message is one line that says which and where."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that encodes a dataset, and why."""

    name: str
    """What runs: `reference`, `kitoken` or `gigatoken`."""

    requested: str = REFERENCE
    """The flag's value."""

    proof: dict[str, Any] | None = None
    """Documents, bytes and odd strings compared, and how many differed; None for the reference."""

    passed_over: dict[str, str] = field(default_factory=dict)
    """Engines that `auto` did not take, with the reason."""

    speed: float = 1.0
    """On the sample, as a multiple of the reference's; not part of the record."""

    @property
    def proven(self) -> bool:
        """Whether it is the reference, or nothing differed."""
        return self.name == REFERENCE or (self.proof is not None and self.proof["difference"] is None)

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
            return f"tokenizer engine: {self.name}{others}"
        compared = (
            f"{self.proof['documents']} documents ({self.proof['bytes'] / 1e6:.1f} MB) and {self.proof['strings']} odd "
            "strings"
        )
        if self.proven:
            what = f"identical to the reference on {compared}"
        else:
            what = (
                f"NOT identical to the reference: {self.proof['differing_documents']} documents and "
                f"{self.proof['differing_strings']} strings of {compared} differ, first {self.proof['difference']}"
            )
        return f"tokenizer engine: {self.name}, {what}, {self.speed:.1f} times its speed{others}"


def choose_engine(choice: TokenizerChoice, requested: str, tokenizer: Any, sample: Sequence[str]) -> EngineChoice:
    """Prove the engines and choose one. Prints nothing.

    Args:
        requested: one of `ENGINE_CHOICES`.
        tokenizer: what `choice.build()` gave.
        sample: documents of the corpus.
    Raises:
        CompeteError: an engine was named that cannot be loaded.
    """
    if requested == REFERENCE:
        return EngineChoice(REFERENCE)
    if requested == AUTO:
        return _choose_fastest(choice, tokenizer, sample)
    engine = _load_named(requested, choice, tokenizer)
    compared = compare(engine, encode_reference(load_engine(REFERENCE, choice, tokenizer), sample))
    return _chosen(requested, requested, compared, {})


def _choose_fastest(choice: TokenizerChoice, tokenizer: Any, sample: Sequence[str]) -> EngineChoice:
    if not sample:
        return EngineChoice(REFERENCE, AUTO, None, dict.fromkeys(FAST_ENGINES, "no document to prove it on"))
    expected: ReferenceIds | None = None
    proven: dict[str, Comparison] = {}
    passed_over: dict[str, str] = {}
    for name in FAST_ENGINES:
        try:
            engine = load_engine(name, choice, tokenizer)
        except CannotLoad as reason:
            passed_over[name] = str(reason)
            continue
        expected = expected or encode_reference(load_engine(REFERENCE, choice, tokenizer), sample)
        compared = compare(engine, expected)
        if compared.difference is not None:
            passed_over[name] = f"it differs: {compared.difference}"
        elif compared.speed <= 1:
            passed_over[name] = f"identical, but {compared.speed:.1f} times the reference's speed"
        else:
            proven[name] = compared
    if not proven:
        return EngineChoice(REFERENCE, AUTO, None, passed_over)
    fastest = max(proven, key=lambda name: proven[name].speed)
    slower = {
        name: f"identical, {one.speed:.1f} times the reference's speed"
        for name, one in proven.items()
        if name != fastest
    }
    return _chosen(fastest, AUTO, proven[fastest], passed_over | slower)


def _chosen(name: str, requested: str, compared: Comparison, passed_over: dict[str, str]) -> EngineChoice:
    proof = asdict(compared)
    speed = proof.pop("speed")
    return EngineChoice(name, requested, proof, passed_over, speed)


def _load_named(name: str, choice: TokenizerChoice, tokenizer: Any) -> Encode:
    try:
        return load_engine(name, choice, tokenizer)
    except CannotLoad as reason:
        raise CompeteError(
            f"--tokenizer-engine {name} with {choice.describe()}: {reason}; take --tokenizer-engine auto"
        ) from None


class BatchEncoder:
    """Encodes batches of texts with the chosen engine, and checks some of them.

    Args:
        encode: the engine.
        reference: None where the engine is the reference.
        strict: raise at a difference; otherwise count it.
    """

    def __init__(self, engine: EngineChoice, encode: Encode, reference: Encode | None, strict: bool) -> None:
        self._engine = engine
        self._encode = encode
        self._reference = reference
        self._strict = strict
        self._shard = self._index = 0
        self.checked = 0
        """Texts compared with the reference."""
        self.differing = 0
        """Those that differed."""

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
            ids = self._reference(texts)
            self._found(f"it fails where the reference does not ({' '.join(str(error).split())})", 0, len(texts))
        else:
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
                self._found(words, offset, 1)

    def _found(self, words: str, offset: int, count: int) -> None:
        self.differing += count
        if self._strict:
            raise EngineDiffers(
                f"tokenizer engine {self._engine.name} differs from the reference on text {self._index + offset} of "
                f"shard {self._shard}: {words}"
            )


def make_encoder(choice: TokenizerChoice, tokenizer: Any, engine: EngineChoice) -> BatchEncoder:
    """The encoder of one process; call it after the fork.

    Raises:
        CompeteError: the engine cannot be loaded here.
    """
    reference = load_engine(REFERENCE, choice, tokenizer)
    if engine.name == REFERENCE:
        return BatchEncoder(engine, reference, None, strict=False)
    encode = _load_named(engine.name, choice, tokenizer)
    return BatchEncoder(engine, encode, reference, strict=engine.requested == AUTO)


def add_engine_flags(group: argparse._ArgumentGroup) -> None:
    """`--tokenizer-engine` and `--tokenizer-engine-sample`."""
    group.add_argument(
        "--tokenizer-engine",
        choices=ENGINE_CHOICES,
        default=AUTO,
        help="auto takes the fastest that proves identical to Megatron's tokenizer, the reference",
    )
    group.add_argument(
        "--tokenizer-engine-sample",
        type=int,
        default=SAMPLE_BYTES,
        metavar="BYTES",
        help="text of the corpus on which engines are compared first",
    )

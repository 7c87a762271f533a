"""Damaged inputs for readers, drawn from good ones; the same seed draws the same damage.

A reader under test gets each input in this process and has three ways to answer: a result (its own test says what a
right one is), a `CompeteError`, or, for a command, exit code 2 with one line. Anything else, and anything that takes longer
than `HANG_SECONDS` of processor time, is a failure that names the input, which is written beside the test for keeping.
"""

import contextlib
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from megatron_compete.common.errors import CompeteError

KEPT = Path(__file__).parent / "kept"
"""Inputs that once failed, by reader; the fast suite reads them again."""
NEW = Path(os.environ.get("FUZZ_NEW", "fuzz-failures"))
"""Where inputs that fail now are written."""
HANG_SECONDS = 20.0
"""Processor time of one input; inputs are small, so that a healthy reader takes milliseconds."""

Read = Callable[[bytes], None]
"""Reads one input; returns where the reader took it or refused it with `CompeteError`, raises what is wrong."""


def damaged(good: list[bytes], seed: int) -> Iterator[bytes]:
    """Endless damaged inputs: bits, bytes and runs changed, cut, doubled, moved, numbers at their limits, inputs spliced."""
    rng = random.Random(seed)
    while True:
        data = bytearray(rng.choice(good))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            _damage(data, good, rng)
        yield bytes(data)


def _damage(data: bytearray, good: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 2, 4, 8, 64)), len(data) - at)
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[at : at + length]
    elif kind == 4:
        data[at : at + length] = rng.randbytes(length)
    elif kind == 5:  # a number at its limit, where an integer of the format may stand
        value = rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)))
        width = rng.choice((1, 2, 4, 8))
        data[at : at + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    elif kind == 6:  # words that text formats care about
        data[at : at + length] = rng.choice(WORDS)
    else:
        other = rng.choice(good)
        data[at:] = other[rng.randrange(len(other) + 1) :]


WORDS = (b"\xef\xbb\xbf", b"\x00", b"\r\n", b"\n\n", b"null", b"NaN", b"-1", b"1e999", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\t",
         b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"../", b"!!python/object:os.system ", b"&a *a", b"---", b" ", b"0" * 5000, b"[" * 5000)  # fmt: skip


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes `HANG_SECONDS` of this process's time; a busy machine changes nothing."""

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError(f"still reading after {HANG_SECONDS:g} s of processor time")

    before = signal.signal(signal.SIGPROF, hangs)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(name: str, good: list[bytes], read: Read, inputs: int, seconds: float, seed: int = 1) -> int:
    """Have `read` read damaged inputs until `inputs` are done or `seconds` have passed; returns how many were read.

    Raises:
        AssertionError: inputs that failed, each with its error and where it lies now.
    """
    end = time.monotonic() + seconds
    failures: dict[str, str] = {}
    done = 0
    for data in damaged(good, seed):
        if done == inputs or time.monotonic() > end:
            break
        done += 1
        failed = failure(read, data)
        if failed is not None and failed not in failures:  # one input of a kind is enough
            failures[failed] = str(_write(name, data))
    assert not failures, "\n".join(f"{where}: {said}" for said, where in failures.items())
    return done


def failure(read: Read, data: bytes) -> str | None:
    """What is wrong with how `data` was read, or None."""
    try:
        with no_hang():
            read(data)
    except CompeteError as error:
        return None if str(error).strip() else "a CompeteError that says nothing"
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
        return f"{type(error).__name__} at {where}: {str(error)[:200]}"
    return None


def kept(name: str) -> Iterable[Path]:
    """Inputs of reader `name` that once failed."""
    return sorted((KEPT / name).glob("*"))


def _write(name: str, data: bytes) -> Path:
    path = NEW / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path

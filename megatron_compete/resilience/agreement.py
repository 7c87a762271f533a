"""Ranks that decide alike: what one rank finds out, or fails at, all know.

A rank that raises alone leaves the others waiting in the next collective. So whatever only one rank can see (a data
set, the checkpoint folder, a full disk) is done on rank 0, and all ranks raise or none does.

`on_rank_0` and `decide_on_rank_0` talk through the job's key-value store, which is there as soon as the ranks know of each
other: they work before Megatron has a process group, and before it is known what a collective would run on. Like
collectives, all ranks must call them in the same order.
"""

import contextlib
import functools
import itertools
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, rendezvous

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.run_files import host_name, record_failure

START_SECONDS = 1800.0
"""What ranks may come up after one another: imports from a slow file system, containers. torch's own limit for gloo."""
BEAT_SECONDS = 5.0
"""Rank 0 shows that it is at work so often, and the others look for it."""
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 600.0
"""Silence of rank 0 after which it counts as lost, as in Megatron's collectives. A launcher that sees it die is faster."""
FAREWELL_SECONDS = 60.0
"""What rank 0 stays for the others to hear its answer: the store may end with it."""


class PeerFailed(Exception):
    """This rank is well; it leaves because another one failed."""


def world_size() -> int:
    """Ranks of this job, as its launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def this_rank() -> int:
    """This process's rank, as its launcher says."""
    return int(os.environ.get("RANK", "0"))


def on_rank_0[T](step: Callable[[], T]) -> T:
    """The result of `step`, which runs on rank 0 alone, on all ranks. It may take as long as it likes.

    Raises:
        CompeteError: on every rank, what `step` raised (an OSError with its path, too).
        Exception: on rank 0, anything else that `step` raised.
        PeerFailed: on the other ranks then, naming it; or rank 0 is gone.
    """
    if world_size() == 1:
        return _in_one_line(step)
    _host_of_rank_0()
    return _lead(_next_key(), step) if this_rank() == 0 else _follow(_next_key())


def decide_on_rank_0[V, T](value: V, decide: Callable[[list[V]], T]) -> T:
    """`decide`, given the value of every rank in order, as `on_rank_0`."""
    if world_size() == 1:
        return _in_one_line(lambda: decide([value]))
    _host_of_rank_0()
    key = _next_key()
    _store().set(f"{key}/of/{this_rank()}", pickle.dumps(value))
    return _lead(key, lambda: decide(_values(key))) if this_rank() == 0 else _follow(key)


@functools.cache
def _store() -> Any:
    """The store of `env://`, which Megatron's process group meets in as well: torchrun's agent or rank 0 holds it."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
    return PrefixStore(f"megatron-compete/agreement/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@functools.cache
def _host_of_rank_0() -> str:
    if this_rank() == 0:
        _store().set("host", host_name())
    return str(_store().get("host").decode())


_numbers = itertools.count()


def _next_key() -> str:
    return str(next(_numbers))


def _in_one_line[T](step: Callable[[], T]) -> T:
    try:
        return step()
    except OSError as error:
        raise CompeteError(str(error)) from error


def _lead[T](key: str, step: Callable[[], T]) -> T:
    """Rank 0's part: do it, and tell how it went."""
    try:
        with _beating(key):
            result = _in_one_line(step)
    except CompeteError as error:
        _tell(key, (CompeteError, str(error)))
        raise
    except BaseException as error:
        _tell(key, (PeerFailed, f"left because rank 0 failed: {type(error).__name__}: {error}"))
        raise
    _tell(key, (None, result))
    return result


def _follow(key: str) -> Any:
    """The other ranks' part: take what rank 0 tells."""
    hearing = _Hearing(key)
    while hearing.is_alive():
        if time.monotonic() > hearing.latest + PATIENCE_SECONDS:
            _give_up()
        time.sleep(POLL_SECONDS)
    if hearing.error is not None:
        raise PeerFailed(
            f"left because the job's store is gone, which rank 0 or its launcher holds: {hearing.error}"
        ) from hearing.error
    kind, answer = hearing.answer
    if kind is not None:
        raise kind(answer)
    return answer


class _Hearing(threading.Thread):
    """Waits for rank 0's answer as long as it shows that it is at work.

    In a thread, because a call of the store does not return, whatever its timeout, while the process that holds it is
    stopped.
    """

    def __init__(self, key: str) -> None:
        super().__init__(name="rank-0", daemon=True)
        self.store, self.key = _store(), key
        self.latest = time.monotonic()
        """When something was heard of rank 0."""
        self.answer: Any = None
        self.error: RuntimeError | None = None
        self.start()

    def run(self) -> None:
        beat = b""
        try:
            while not self._is_there():
                now = self.store.get(f"{self.key}/beat") if self.store.check([f"{self.key}/beat"]) else b""
                if now != beat:
                    beat, self.latest = now, time.monotonic()
            self.answer = pickle.loads(self.store.get(self.key))
            if self.store.add(f"{self.key}/read", 1) == world_size() - 1:  # the last one to read it removes it
                for name in (f"{self.key}/read", f"{self.key}/beat", self.key):
                    self.store.delete_key(name)
        except DistNetworkError as error:
            if self.answer is None:
                self.error = error

    def _is_there(self) -> bool:
        try:
            self.store.wait([self.key], timedelta(seconds=BEAT_SECONDS))
        except DistStoreError:
            return False
        return True


def _give_up() -> NoReturn:
    """Blame rank 0, which cannot do it itself."""
    lost = f"no answer for {PATIENCE_SECONDS:g} s: its process is stopped, or its host is gone"
    record_failure(lost, 0, 0, 1, host=_host_of_rank_0())
    raise PeerFailed(f"left because of rank 0: {lost}") from None


def _tell(key: str, answer: Any) -> None:
    """Give the answer, and stay until the others have it."""
    store = _store()
    store.set(key, pickle.dumps(answer))
    deadline = time.monotonic() + FAREWELL_SECONDS
    while store.check([key]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _beating(key: str) -> Iterator[None]:
    """Show the others, from a thread with a connection of its own, that this rank is at work."""
    done = threading.Event()

    def beat() -> None:
        if done.wait(BEAT_SECONDS):
            return
        store = _store().clone()
        for number in itertools.count():
            store.set(f"{key}/beat", str(number))
            if done.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="at-work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(BEAT_SECONDS)


def _values(key: str) -> list[Any]:
    """What all ranks have told rank 0.

    Raises:
        RuntimeError: names the ranks that have not come up.
    """
    store, names = _store(), [f"{key}/of/{rank}" for rank in range(world_size())]
    try:
        store.wait(names, timedelta(seconds=START_SECONDS))
    except DistStoreError:
        missing = [rank for rank, name in enumerate(names) if not store.check([name])]
        raise RuntimeError(f"{_ranks(missing)} did not come up within {START_SECONDS:g} s") from None
    values = [pickle.loads(value) for value in store.multi_get(names)]
    for name in names:
        store.delete_key(name)
    return values


def problems_of_ranks(problem: str | None) -> dict[int, str]:
    """What ranks have to complain of, by rank; empty, after one reduction of one number, if none has."""
    count = torch.tensor([int(problem is not None)], device=torch.cuda.current_device())
    torch.distributed.all_reduce(count)
    if count.item() == 0:
        return {}
    problems: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, problem)
    return {rank: text for rank, text in enumerate(problems) if text is not None}


def describe(problems: dict[int, str], shown: int = 3) -> str:
    """`rank 1: no space left; rank 4: ...`, ranks with the same problem together."""
    ranks_of: dict[str, list[int]] = {}
    for rank, text in problems.items():
        ranks_of.setdefault(text, []).append(rank)
    parts = [f"{_ranks(ranks)}: {text}" for text, ranks in list(ranks_of.items())[:shown]]
    return "; ".join(parts + ["..."] * (len(ranks_of) > shown))


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:4]))}" + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")

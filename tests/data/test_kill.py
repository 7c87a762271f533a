"""kill -9 at random moments: the same command goes on, and the result is that of an uninterrupted run."""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_compete.data.preprocess import main
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.conftest import files_in
from tests.data.inputs.files import write_jsonl, write_parquet

VICTIMS = ("all", "first", "worker")
SUFFIXES = (".bin", ".idx", ".json")


@pytest.fixture(scope="module")
def texts(stdlib_corpus: StdlibCorpus) -> list[str]:
    """2 MB in documents of some lines."""
    with open(stdlib_corpus.train_path, encoding="utf-8") as stream:
        modules = [json.loads(line)["text"] for line in stream]
    return [part for _ in range(5) for text in modules for part in text.split("\n\n\n")]


def write_form(folder: Path, form: str, texts: list[str]) -> Path:
    path = folder / f"c.{form}"
    if form == "parquet":
        return write_parquet(path, {"text": texts}, 100)
    return write_jsonl(path, [{"text": text} for text in texts])


def command(path: Path, prefix: Path, model: str, workers: int) -> list[str]:
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
    run = ["--tokenizer-engine", "reference", "--workers", str(workers), "--shard-size", "0.02", "--append-eod"]
    return ["--input", str(path), "--output-prefix", str(prefix), *tokenizer, *run]


def start(flags: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """The command in a process of its own, forked so that it need not import anything; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        prepare()
        main(flags)
        code = 0
    finally:
        os._exit(code)


def run_and_kill(flags: list[str], seconds: float, whom: str) -> bool:
    """Let the command run for a while, then kill all its processes at once, the first one, or one of its workers.

    Returns:
        False if it had come to its end.
    """
    pid = start(flags)
    time.sleep(seconds)
    workers = psutil.Process(pid).children()
    victims = {"all": [pid, *(worker.pid for worker in workers)], "worker": [worker.pid for worker in workers[:1]]}
    if os.waitpid(pid, os.WNOHANG) != (0, 0):
        return False
    for victim in victims.get(whom) or [pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    wait_until_gone(workers)
    return status != 0


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Workers of a job that is dead die too."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def dataset(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}_text_document{suffix}").read_bytes() for suffix in SUFFIXES]


@pytest.mark.parametrize(("form", "kills"), [("jsonl", 20), ("jsonl.zst", 6), ("parquet", 6)])
def test_many_kills_one_result(texts: list[str], tmp_path: Path, tokenizer_model: str, form: str, kills: int) -> None:
    """A job that gets through before it was killed often enough is compared too, and another one begun."""
    path, draw, killed = write_form(tmp_path, form, texts), random.Random(form), 0
    main(command(path, tmp_path / "whole", tokenizer_model, 1))
    began = time.monotonic()
    main([*command(path, tmp_path / "whole", tokenizer_model, 1), "--restart"])
    longest = max(0.06, (time.monotonic() - began) / 8)
    while killed < kills:
        flags, in_this_job = command(path, tmp_path / "killed", tokenizer_model, draw.choice((1, 2, 3))), 0
        while in_this_job < kills and run_and_kill(flags, draw.uniform(0, longest), draw.choice(VICTIMS)):
            in_this_job += 1
        killed += in_this_job
        main(flags)
        assert dataset(tmp_path / "killed") == dataset(tmp_path / "whole")
        assert not os.path.exists(tmp_path / "killed.work")
        for suffix in SUFFIXES:
            (tmp_path / f"killed_text_document{suffix}").unlink()


@pytest.mark.parametrize("call", range(1, 8))
def test_a_kill_while_the_output_appears(texts: list[str], tmp_path: Path, tokenizer_model: str, call: int) -> None:
    """Killed at every rename and at the removal of the work folder; a half of the output is never taken for a whole."""
    path = write_form(tmp_path, "jsonl", texts[:60])
    main(command(path, tmp_path / "whole", tokenizer_model, 1))
    flags = command(path, tmp_path / "killed", tokenizer_model, 1)

    def die_at_call() -> None:
        calls = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call_or_die(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call_or_die

        from megatron_compete.common import files
        from megatron_compete.data.preprocessing import folder

        files.os.replace = counted(os.replace)  # type: ignore[assignment]  # job.json, .bin, .idx, .json
        folder.shutil.rmtree = counted(folder.shutil.rmtree)  # type: ignore[assignment]

    _, status = os.waitpid(start(flags, die_at_call), 0)
    assert os.WIFSIGNALED(status)
    main(flags)
    assert dataset(tmp_path / "killed") == dataset(tmp_path / "whole")
    assert [name for name in files_in(tmp_path) if name.startswith("killed")] == [
        f"killed_text_document{suffix}" for suffix in (".bin", ".idx", ".json")
    ]
    assert not os.path.exists(tmp_path / "killed.work")

"""Training a study's runs: what is finished is skipped, what was killed goes on, several at a time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.study import launch, run_files
from megatron_compete.study.config import Study
from megatron_compete.study.corpus import PreparedCorpus
from megatron_compete.study.folder import STARTED, RunFolder, write_json
from megatron_compete.study.grid import Run, code_version, digest

POLL_SECONDS = 0.2
BUSY_EXIT_CODE = 75
"""Of a forked rank that found its run taken."""

Say = Callable[[str], None]


@dataclass
class Trainer:
    """Trains runs into `folder`.

    Args:
        any_code: accept finished runs that other code of this package trained.
        warm: fork single-rank CPU runs from a warm process.
        keep_checkpoints: leave each run's checkpoints where they are.
    """

    study: Study
    folder: Path
    corpus: PreparedCorpus
    say: Say
    any_code: bool = False
    warm: bool = True
    keep_checkpoints: bool = False
    began: float = field(default_factory=time.monotonic)

    def place(self, name: str) -> RunFolder:
        """The folder of a run, by name."""
        return RunFolder(self.folder / "runs" / name)

    def marker(self, run: Run) -> dict[str, Any]:
        """What a run's files say of how it was trained."""
        return {"digest": digest(run, self.study, self.corpus.digest), "code": code_version()}

    def is_finished(self, run: Run) -> bool:
        """Whether the run is there, trained as it would be now."""
        return self._matches(run, self.place(run.name).finished())

    def _matches(self, run: Run, found: dict[str, Any] | None) -> bool:
        if found is None:
            return False
        now = self.marker(run)
        return found["digest"] == now["digest"] and (self.any_code or found["code"] == now["code"])

    def train(self, runs: list[Run], jobs: int) -> None:
        """Train what is not finished.

        Raises:
            CompeteError: runs that failed or that another process trains; all others are done then.
        """
        pending = [run for run in runs if not self.is_finished(run)]
        self.say(f"{len(runs)} runs, {len(runs) - len(pending)} finished, {len(pending)} to train")
        active: dict[str, Active] = {}
        failed: dict[str, str] = {}
        with ending(active):
            while pending or active:
                for name, job in list(active.items()):
                    if (code := job.job.exit_code()) is not None:
                        del active[name]
                        self._close(job, code, failed)
                while len(active) < jobs and (run := self._next(pending, active, failed)) is not None:
                    pending.remove(run)
                    self._open(run, active, failed)
                time.sleep(POLL_SECONDS if active else 0)
                if not active and pending and self._next(pending, active, failed) is None:
                    break
        self._say_what_is_left(pending, failed)

    def _next(self, pending: list[Run], active: dict[str, "Active"], failed: dict[str, str]) -> Run | None:
        """The first run that can begin now: its start is there, and it fits into the budget."""
        for run in pending:
            if run.start is not None and (run.start in active or any(run.start == one.name for one in pending)):
                continue
            if run.start in failed or not self._fits(run):
                continue
            return run
        return None

    def _fits(self, run: Run) -> bool:
        if self.study.budget_minutes is None:
            return True
        left = self.study.budget_minutes * 60 - (time.monotonic() - self.began)
        return left > (self.expected_seconds(run) or 0.0)

    def expected_seconds(self, run: Run) -> float | None:
        """How long the run will take, from finished ones of its variant or else of any; None while there is none."""
        times: dict[str, list[float]] = {}
        for path in sorted((self.folder / "runs").glob("*/*/finished.json")):
            found = RunFolder(path.parent).finished()
            if found and found.get("job_seconds") and found.get("steps"):
                times.setdefault(path.parent.parent.name, []).append(found["job_seconds"] / found["steps"])
        known = times.get(run.variant) or [seconds for one in times.values() for seconds in one]
        return median(known) * run.steps if known else None

    def _open(self, run: Run, active: dict[str, "Active"], failed: dict[str, str]) -> None:
        folder = self.place(run.name)
        lock = folder.lock()
        if lock is None:
            failed[run.name] = "another process is training it: wait for it to end"
            return
        now = self.marker(run)
        known = folder.finished() or folder.started()
        if known is not None and not self._matches(run, known):
            os.close(lock)
            folder.set_aside(self.folder / "superseded" / run.name)
            self.say(f"{run.name}: there was a run of other settings or code, now in superseded/{run.name}-N")
            lock = folder.lock()
            assert lock is not None
        write_json(folder.work / STARTED, now)
        start = None if run.start is None else self.place(run.start)
        if start is not None and not start.model(self.study.task).exists():
            os.close(lock)
            failed[run.name] = str(run_files.missing_start(run))
            return
        again = folder.probe_log.exists()
        recipe = run_files.placed_recipe(run, folder, self.corpus, start, self.study.task)
        job = launch.start(recipe, folder, lock, self.warm, self.study.task)
        active[run.name] = Active(run, folder, job, now, again)
        self.say(f"{run.name}: {run.steps} steps{_again(run) if again else ''}")

    def _close(self, done: "Active", code: int, failed: dict[str, str]) -> None:
        run, folder = done.run, done.folder
        if code == BUSY_EXIT_CODE:
            failed[run.name] = "another process is training it: wait for it to end"
            return
        if code != 0 or not run_files.is_complete(run, folder):
            failed[run.name] = f"exit code {code}; {folder.log} ends: {run_files.last_words(folder)}"
            self.say(f"{run.name}: failed, see {folder.log}")
            return
        if run.is_start:
            try:
                run_files.make_start(folder, self.study, run)
            except CompeteError as error:
                failed[run.name] = f"no mixture can be made of it: {error}"
                return
        seconds = time.monotonic() - done.began
        run_files.finish(run, folder, done.marker | {"job_seconds": None if done.again else round(seconds, 1)})
        if not self.keep_checkpoints:
            folder.clear_work()
        loss = run_files.probe_lines(folder)[-1]["loss"]
        self.say(f"{run.name}: held-out loss {loss:.4f} after {run.steps} steps, {seconds:.0f} s")

    def _say_what_is_left(self, pending: list[Run], failed: dict[str, str]) -> None:
        late = [run.name for run in pending if run.start not in failed]
        if late:
            self.say(f"budget of {self.study.budget_minutes:g} minutes: not begun: {', '.join(late)}")
        if failed:
            first = next(iter(failed))
            raise CompeteError(f"{len(failed)} runs are not there ({', '.join(failed)}). {first}: {failed[first]}")


def _again(run: Run) -> str:
    return " (goes on)" if "save-interval" in run.recipe.arguments else " (begins again)"


@dataclass(frozen=True)
class Active:
    """A run under way."""

    run: Run
    folder: RunFolder
    job: launch.Job
    marker: dict[str, Any]
    again: bool
    """Whether it was begun before: its time is not that of a whole run."""
    began: float = field(default_factory=time.monotonic)


@contextlib.contextmanager
def ending(active: dict[str, Active]) -> Iterator[None]:
    """End what is under way when the study is stopped."""
    try:
        yield
    finally:
        for one in active.values():
            one.job.end()

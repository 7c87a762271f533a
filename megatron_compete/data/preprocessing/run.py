"""One job from its beginning, or from where an earlier run was stopped, to its dataset."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from megatron_compete.common.errors import USAGE_EXIT_CODE, CompeteError
from megatron_compete.common.progress import Progress
from megatron_compete.data.engines import REFERENCE, SAMPLED, EngineChoice, choose_engine
from megatron_compete.data.inputs.documents import sample_texts
from megatron_compete.data.inputs.options import find_sources
from megatron_compete.data.inputs.shards import cut_stream, default_shard_bytes, plan_shards
from megatron_compete.data.inputs.sources import Source, total_bytes
from megatron_compete.data.inputs.streams import InputStream
from megatron_compete.data.megatron_tokenizer import id_count
from megatron_compete.data.preprocessing import mpi
from megatron_compete.data.preprocessing.coordinator import LocalCoordinator, StopRequest
from megatron_compete.data.preprocessing.folder import WorkFolder
from megatron_compete.data.preprocessing.identity import identity_of
from megatron_compete.data.preprocessing.job import STOPPED_EXIT_CODE, Preprocessing, Stopped
from megatron_compete.data.preprocessing.output import Output, Preprocessed, already_made
from megatron_compete.data.preprocessing.parts import ShardRecord
from megatron_compete.data.preprocessing.scheduler import ShardScheduler
from megatron_compete.data.preprocessing.workers import WorkerPool, WorkerSettings, in_words, run_here


def preprocess(job: Preprocessing) -> Preprocessed:
    """Tokenise the corpus and write one dataset a key; under an MPI launcher, together with the other ranks.

    Raises:
        CompeteError: no corpus, no tokenizer, a bad document (`on_error="fail"`), no tokens at all, a place that cannot
            be written to, or an unfinished run of another job. Older output is then as it was, and shards that are
            finished are kept for the next run.
        Stopped: SIGTERM or SIGUSR1 came.
        SystemExit: on ranks other than 0, when the job is over.
    """
    if mpi.is_launched():
        return _preprocess_as_rank(job)
    mpi.refuse_srun_without_mpi()
    return _preprocess_alone(job)


def _preprocess_alone(job: Preprocessing) -> Preprocessed:
    with _system_faults_in_words(job), StopRequest().listening() as stop:
        session = _Session(job, stop)
        if (made := session.already_made()) is not None:
            return made
        settings = worker_settings(job)
        with session.using(settings):
            workers = min(job.workers, session.most_workers)
            if workers == 1:
                run_here(session.coordinator, settings)
            else:
                with contextlib.closing(WorkerPool(workers, settings)) as pool:
                    pool.run(session.coordinator)
            return session.finish()


def _preprocess_as_rank(job: Preprocessing) -> Preprocessed:
    with contextlib.ExitStack() as resources:
        settings, pool, fault = None, None, None
        try:
            settings = worker_settings(job)
            pool = resources.enter_context(
                contextlib.closing(WorkerPool(job.workers, settings))
            )  # before MPI: see there
        except CompeteError as error:
            fault = str(error)
        ranks = mpi.Ranks()
        fault = ranks.first_fault(fault)
        if settings is None or pool is None or fault is not None:
            raise CompeteError(fault or "") if ranks.rank == 0 else SystemExit(USAGE_EXIT_CODE)
        stop = resources.enter_context(StopRequest().listening())
        try:
            if ranks.rank != 0:
                raise SystemExit(mpi.work_for_rank_0(ranks, pool, stop))
            return _lead_ranks(job, settings, ranks, pool, stop)
        except (CompeteError, Stopped, SystemExit):
            raise
        except BaseException:
            sys.excepthook(*sys.exc_info())
            ranks.abort()
            raise


def _lead_ranks(
    job: Preprocessing, settings: WorkerSettings, ranks: mpi.Ranks, pool: WorkerPool, stop: StopRequest
) -> Preprocessed:
    """Rank 0's part; however it ends, the other ranks are told the exit code."""
    serving, code = mpi.ServingCoordinator(ranks, stop), 1
    try:
        with _system_faults_in_words(job):
            session = _Session(job, stop)
            made = session.already_made()
            if made is None:
                with session.using(settings):
                    serving.lead(session.coordinator, pool)
                    made = session.finish()
        code = 0
        return made
    except CompeteError:
        code = USAGE_EXIT_CODE
        raise
    except Stopped:
        code = STOPPED_EXIT_CODE
        raise
    finally:
        serving.dismiss(code)


def worker_settings(job: Preprocessing) -> WorkerSettings:
    """Build the tokenizer.

    Raises:
        CompeteError: it cannot be built, or has no end of document.
    """
    job.tokenizer.check_files()
    tokenizer = job.tokenizer.build()
    eod, vocab_size = None, id_count(tokenizer)
    if job.append_eod:
        eod = getattr(tokenizer, "eod", None)
        if not isinstance(eod, int) or not 0 <= eod < vocab_size:
            raise CompeteError(
                f"--append-eod, but {job.tokenizer.describe()} has no end-of-document id (it says {eod}): leave the "
                "flag out, or take a tokenizer with an eos"
            )
    return WorkerSettings(job, tokenizer, eod, vocab_size)


def _say_holes(settings: WorkerSettings) -> None:
    tokens, ids = int(settings.tokenizer.vocab_size), settings.vocab_size
    if tokens < ids:
        print(
            f"{settings.job.tokenizer.describe()} has holes in its ids: {tokens} tokens, and the largest id is {ids - 1}. "
            f"Megatron makes a model for {tokens}: train with --padded-vocab-size {-(-ids // 128) * 128} (or any other "
            f"from {ids})",
            file=sys.stderr,
            flush=True,
        )


def _sources(job: Preprocessing) -> list[Source]:
    sources = find_sources(job.inputs, job.reading)
    if len(job.json_keys) > 1 and any(source.format == "text" for source in sources):
        name = next(source.name for source in sources if source.format == "text")
        raise CompeteError(f"--json-keys {' '.join(job.json_keys)}: plain text like {name} has one text, give one key")
    return sources


@contextlib.contextmanager
def _system_faults_in_words(job: Preprocessing) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # of standard output, and nothing to fix
        raise
    except OSError as error:
        raise CompeteError(in_words(error, job.work_folder)) from None


class _Session:
    """A job's work folder and coordinator, while it is being worked on.

    Leaving it after a failure keeps the work folder if there is a finished shard in it.
    """

    def __init__(self, job: Preprocessing, stop: StopRequest) -> None:
        job.tokenizer.check_files()
        self._job = job
        self._stop = stop
        self._sources = _sources(job)
        self._shard_bytes = job.shard_bytes or default_shard_bytes(self._sources)
        self._identity = identity_of(job, self._sources, self._shard_bytes)
        self._folder = WorkFolder(job.work_folder)

    def already_made(self) -> Preprocessed | None:
        """What an earlier run of this job has written."""
        pipe = any(source.is_pipe for source in self._sources)  # nobody knows what it will say
        return None if pipe else already_made(self._job, self._identity)

    @contextlib.contextmanager
    def using(self, settings: WorkerSettings) -> Iterator[None]:
        """Open the work folder, choose an engine and set up the coordinator."""
        self._settings = settings
        _say_holes(settings)
        noted = self._folder.open(self._identity, self._job.restart)
        try:
            self._plan = plan_shards(self._sources, self._shard_bytes)
            engine = self._engine(noted)
            finished = list(self._finished(engine)) if noted is not None else []
            if finished:
                print(f"going on from {len(finished)} finished shards in {self._folder.path}", flush=True)
            done_bytes, total = sum(record.disk_bytes for record in finished), total_bytes(self._sources)
            with Progress("tokenising", total, self._job.log_interval, done_bytes) as self.progress:
                scheduler = ShardScheduler(self._plan, finished, engine, self._pipe())
                self.coordinator = LocalCoordinator(scheduler, self._folder, self._identity, self.progress, self._stop)
                self._continued = len(finished)
                yield
        finally:
            with contextlib.suppress(OSError):
                if not self._folder.has_finished_shards():
                    self._folder.remove()
            self._folder.close()

    @property
    def most_workers(self) -> int:
        """Workers that can have something to do."""
        return sys.maxsize if self._plan.streams or self._plan.pipe is not None else max(1, len(self._plan.shards))

    def finish(self) -> Preprocessed:
        """Join the parts, when all shards are finished.

        Raises:
            Stopped: they are not, because the job was told to stop.
            CompeteError: no tokens at all.
        """
        scheduler = self.coordinator.scheduler
        if not scheduler.is_complete:
            known = not self._plan.streams and self._plan.pipe is None
            of = f" of {len(self._plan.shards)}" if known else ""
            raise Stopped(f"stopped with {len(scheduler.finished)}{of} shards finished: the same command continues")
        output = Output(self._job, self._sources, self._settings.vocab_size, scheduler.engine, self._identity)
        return output.write(scheduler.finished.values(), self._folder, self.progress, self._continued)

    def _engine(self, noted: dict[str, Any] | None) -> EngineChoice:
        """The engine of the unfinished run, or else the choice for this input.

        Before 0.2.0 `auto` took kitoken or gigatoken where a sample showed no difference: such shards are made again.
        """
        if noted is not None:
            engine = EngineChoice.from_record(noted)
            if engine.exact or engine.requested in SAMPLED:
                return engine
        engine = self._choose_engine()
        if engine.requested != REFERENCE:
            print(engine.describe(), flush=True)
        self._folder.note(self._identity, engine.record())
        return engine

    def _choose_engine(self) -> EngineChoice:
        job = self._job
        sampled = job.engine in SAMPLED
        if sampled and self._plan.pipe is not None:
            raise CompeteError(
                f"--tokenizer-engine {job.engine} with a pipe: if it is found to differ, its shards could not be made "
                "again. Write the text to files, or leave the flag out"
            )
        sample = sample_texts(self._sources, job.json_keys, job.engine_sample) if sampled else []
        return choose_engine(job.tokenizer, job.engine, self._settings.tokenizer, sample)

    def _finished(self, engine: EngineChoice) -> Iterator[ShardRecord]:
        """Shards of earlier runs that need not be done again."""
        for record in self._folder.records():
            fitting = record.of_keys(self._job.json_keys)
            if record.engine != engine.name or fitting is None:
                continue
            if self._job.on_error == "skip" or not record.fault_counts:
                yield fitting

    def _pipe(self) -> Iterator[bytes] | None:
        if self._plan.pipe is None:
            return None
        source = self._sources[self._plan.pipe]
        return cut_stream(InputStream(source).text, source, self._plan.shard_bytes)

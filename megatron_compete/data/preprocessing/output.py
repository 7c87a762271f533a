"""The end of a job: datasets, manifests and the list of skipped documents, all under their names at once."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.common.progress import Progress
from megatron_compete.data.bad_documents import SkipLog
from megatron_compete.data.engines import EngineChoice
from megatron_compete.data.inputs.documents import no_documents
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.manifest import DatasetManifest, EngineRecord, manifest_path, read_manifest
from megatron_compete.data.preprocessing.assemble import Assembly
from megatron_compete.data.preprocessing.folder import WorkFolder
from megatron_compete.data.preprocessing.identity import Identity, digest
from megatron_compete.data.preprocessing.job import Preprocessing
from megatron_compete.data.preprocessing.parts import ShardRecord


@dataclass(frozen=True)
class Preprocessed:
    """What `preprocess` wrote."""

    prefixes: tuple[str, ...]
    """For Megatron's --data-path, one a key."""

    documents: int
    tokens: dict[str, int]
    """By key, end-of-document ids included."""

    text_bytes: int
    """Bytes of text read, decompressed, by this run and those it continued; 0 if there was nothing to do."""

    seconds: float
    """Of tokenising and joining, in this run; imports and the choice of an engine are not in it. 0 if there was nothing
    to do."""

    skips: SkipLog
    """Documents left out, by kind of fault."""

    empty: int = 0
    """Documents without tokens that are in the datasets."""

    continued: int = 0
    """Shards that an earlier run had finished."""


@dataclass(frozen=True)
class Output:
    """A job's output, once all shards are finished."""

    job: Preprocessing
    sources: Sequence[Source]
    vocab_size: int
    engine: EngineChoice
    identity: Identity

    def write(
        self, records: Iterable[ShardRecord], folder: WorkFolder, progress: Progress, continued: int
    ) -> Preprocessed:
        """Join the parts, put everything in place and remove the work folder.

        Raises:
            CompeteError: no tokens at all.
        """
        from megatron.core.datasets.indexed_dataset import DType

        assembly = Assembly(list(records), self.sources, DType.optimal_dtype(self.vocab_size))
        with StagedFiles(folder.aside) as staged:
            skips = self._write_faults(assembly, staged)
            self._refuse_keys_without_tokens(assembly, folder, skips)
            for number, key in enumerate(self.job.json_keys):
                prefix = self.job.dataset_prefix(key)
                assembly.write_dataset(number, staged.path(prefix + ".bin"), staged.path(prefix + ".idx"))
                self._manifest(assembly, number, skips).write(staged.path(manifest_path(prefix)))
            staged.commit()
        folder.remove()
        return Preprocessed(
            prefixes=tuple(map(self.job.dataset_prefix, self.job.json_keys)),
            documents=assembly.documents,
            tokens={key: assembly.tokens(number) for number, key in enumerate(self.job.json_keys)},
            text_bytes=assembly.total("text_bytes"),
            seconds=progress.seconds,
            skips=skips,
            empty=assembly.total("empty"),
            continued=continued,
        )

    def _refuse_keys_without_tokens(self, assembly: Assembly, folder: WorkFolder, skips: SkipLog) -> None:
        """A dataset needs tokens. Where other keys have some, their shards stay for a run without these keys."""
        keys = {key: assembly.tokens(number) for number, key in enumerate(self.job.json_keys)}
        void, good = [key for key in keys if not keys[key]], [key for key in keys if keys[key]]
        if void and not good:
            folder.remove()
            raise no_documents(self.sources, void[0], skips)
        if void:
            raise CompeteError(
                f"{no_documents(self.sources, ', '.join(void), skips)}: the same command with --json-keys "
                f"{' '.join(good)} goes on from the finished shards in {folder.path}"
            )

    def _write_faults(self, assembly: Assembly, staged: StagedFiles) -> SkipLog:
        """The list of skipped documents; one that an earlier job left goes if this one has none."""
        if any(record.fault_counts for record in assembly.records):
            return assembly.write_faults(staged.path(self.job.errors_path))
        staged.retire(self.job.errors_path)
        return SkipLog("skip")

    def _manifest(self, assembly: Assembly, number: int, skips: SkipLog) -> DatasetManifest:
        checks: EngineRecord = {"checked": assembly.total("checked"), "differing": assembly.total("differing")}
        return DatasetManifest(
            tokenizer_type=self.job.tokenizer.tokenizer_type,
            tokenizer_model=self.job.tokenizer.tokenizer_model,
            tokenizer_sha256=self.job.tokenizer.fingerprint(),
            tokenizer_options=self.job.tokenizer.options,
            vocab_size=self.vocab_size,
            append_eod=self.job.append_eod,
            documents=assembly.documents,
            sequences=assembly.sequences(number),
            tokens=assembly.tokens(number),
            inputs=[{"name": source.name, "bytes": source.bytes} for source in self.sources],
            skipped=dict(sorted(skips.counts.items())),
            empty_documents=assembly.total("empty"),
            engine=cast(EngineRecord, self.engine.record()) | checks,
            job=digest(self.identity),
        )


def already_made(job: Preprocessing, identity: Identity) -> Preprocessed | None:
    """What an earlier run of the same job wrote, if it is all there and nothing was left unfinished since."""
    if job.restart or os.path.exists(job.work_folder):
        return None
    manifests = {}
    for key in job.json_keys:
        prefix = job.dataset_prefix(key)
        try:
            manifest = read_manifest(prefix)
        except CompeteError:
            return None
        if manifest is None or manifest.job != digest(identity) or not _is_there(prefix):
            return None
        manifests[key] = manifest
    skips = SkipLog("skip")
    first = manifests[job.json_keys[0]]
    skips.counts.update(first.skipped)
    return Preprocessed(
        prefixes=tuple(map(job.dataset_prefix, job.json_keys)),
        documents=first.documents,
        tokens={key: manifest.tokens for key, manifest in manifests.items()},
        text_bytes=0,
        seconds=0.0,
        skips=skips,
        empty=first.empty_documents,
    )


def _is_there(prefix: str) -> bool:
    return os.path.isfile(prefix + ".bin") and os.path.isfile(prefix + ".idx")

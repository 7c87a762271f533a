"""Runs written by hand: event files as TensorBoard's writers leave them, and run folders as jobs do."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

BEGIN = 1_760_000_000.0
EVIL = "</script><script>document.title='run'</script><img src=x onerror=document.title='run'>"
_CRC: dict[int, bytes] = {}


def record(event: Event, whole: bool = False) -> bytes:
    """A record; with the content's checksum where `whole`, which takes long in Python and is not read by us."""
    data = event.SerializeToString()
    head = _CRC.get(len(data))
    if head is None:
        length = struct.pack("<Q", len(data))
        head = _CRC[len(data)] = length + struct.pack("<I", masked_crc32c(length))
    return head + data + (struct.pack("<I", masked_crc32c(data)) if whole else b"\0\0\0\0")


def scalar(tag: str, value: float, step: int, seconds: float | None = None) -> Event:
    time = BEGIN + (10.0 * step if seconds is None else seconds)
    return Event(step=step, wall_time=time, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))


def text(tag: str, value: str) -> Event:
    tensor = TensorProto(dtype=7, string_val=[value.encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Event(wall_time=BEGIN, summary=Summary(value=[Summary.Value(tag=f"{tag}/text_summary", tensor=tensor, metadata=metadata)]))  # fmt: skip


def session(step: int) -> Event:
    return Event(step=step, wall_time=BEGIN + 10.0 * step, session_log=SessionLog(status=SessionLog.START))


def write_events(folder: Path, events: Iterable[Event], number: int = 0, mode: str = "wb", whole: bool = False) -> Path:
    """An event file, the `number`th of its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{1_760_000_000 + number}.host.1.0"
    with open(path, mode) as file:
        for event in events:
            file.write(record(event, whole))
    return path


def logged(
    steps: int, layers: int = 2, competing: bool = True, per_layer: bool = True, seed: int = 0
) -> Iterable[Event]:
    """What a trainer logs; expert of layer 2 are dead from the middle on."""
    random = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        loss = 2 + 8 * np.exp(-3 * step / steps) + 0.1 * random.normal()
        scalars = {"lm loss": loss, "grad-norm": 1 + random.exponential(), "learning-rate": 3e-3 * (1 - step / steps / 1.1), "batch-size": 8.0, "iteration-time": 0.5 + 0.05 * random.random(), "load_balancing_loss": 1 + random.random()}  # fmt: skip
        if step % max(1, steps // 5) == 0:
            scalars["lm loss validation"] = loss + 0.1
        dead = 3.0 * (2 * step > steps)
        scalars |= {"moe/load-max": 2 + random.random(), "moe/load-min": random.random() / 2, "moe/dead-experts": dead}
        if per_layer:
            for layer in range(1, layers + 1):
                scalars[f"moe/load-max/layer-{layer}"] = 1 + layer / layers + random.random()
                scalars[f"moe/dead-experts/layer-{layer}"] = dead if layer == 2 else 0.0
        chosen = int(random.integers(0, 3)) if competing else 0
        if competing:
            scalars["competition/active-layers"] = chosen
        if chosen:
            agreement = 0.3 + 0.5 * step / steps
            scalars |= {"competition/agreement": agreement, "competition/distillation-loss": 1 - agreement, "competition/tokens": 1024.0 * chosen}  # fmt: skip
            if per_layer:
                scalars |= {
                    f"competition/agreement/layer-{1 + (step + one) % layers}": agreement for one in range(chosen)
                }
        for tag, value in scalars.items():
            yield scalar(tag, float(value), step)


def make_run(folder: Path, steps: int = 40, settings: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """A finished job's folder: two attempts, of which the first failed, with everything that a report shows."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"num-layers": 4, "train-iters": steps, "seq-length": 128, "global-batch-size": 8, "compete-max-active-layers": 2, **(settings or {})}  # fmt: skip
    (folder / "recipe.yaml").write_text("arguments:\n" + "".join(f"  {name}: {json.dumps(value)}\n" for name, value in settings.items()))  # fmt: skip
    (folder / "job.json").write_text(json.dumps({"job_id": "41", "submitted": "2026-01-01T00:00:00", "kind": "pretrain"}))  # fmt: skip
    write_events(folder / "tensorboard", [session(1), text("seq_length", "128"), *logged(steps, **more)])
    middle = steps // 2
    rows = [
        [0, 41, BEGIN, BEGIN + 10 * middle, "n[1-2]", "failed", 1, "n2", "rank 3 on n2: ended by SIGKILL"],
        [1, 41, BEGIN + 10 * middle, BEGIN + 10 * steps + 9, "n[1,3]", "finished", 0, "-", "-"],
    ]
    (folder / "attempts.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    failure = {"attempt": 0, "host": "n2", "rank": 3, "local_rank": 1, "exit_code": -9, "time": BEGIN + 10 * middle, "message": "out of memory"}  # fmt: skip
    (folder / "failures").mkdir(exist_ok=True)
    (folder / "failures" / "0-n2-3.json").write_text(json.dumps(failure))
    lines = [{"attempt": int(step > middle), "iteration": step, "loss": 3.0, "seconds_per_step": 0.5, "consumed_tokens": 1024 * step, "time": BEGIN + 10 * step} for step in range(1, steps + 1)]  # fmt: skip
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "progress.json").write_text(json.dumps(lines[-1] | {"attempt": 1, "train_iters": steps, "tokens_per_second": 2048.0}))  # fmt: skip
    (folder / "checkpoints" / f"iter_{middle:07d}").mkdir(parents=True, exist_ok=True)
    (folder / "finished").touch()
    return folder

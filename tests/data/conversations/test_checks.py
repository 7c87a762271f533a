"""The list of samples: every kind of fault, stopped at or left out; made once; the same for any number of processes."""

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations import checks
from megatron_compete.data.conversations.bad_samples import KINDS
from megatron_compete.data.conversations.checks import list_samples, prepare_samples
from megatron_compete.data.conversations.json_index import index_json
from megatron_compete.data.conversations.sample_list import SampleList
from tests.data.conversations.tiny import mixed_dataset, picture, reader, sample, save_pictures, turns, write_json


def bad_dataset(folder: Path) -> tuple[str, Path]:
    """A sample of each kind that is bad, between good ones, with a JSON error in a line."""
    images = folder / "images"
    save_pictures(images, 2)
    (images / "page.jpg").write_text("<html>")
    picture(3000, 1).save(images / "wide.png")
    bad: dict[str, Any] = {
        "not_a_conversation": {"id": "not_a_conversation", "text": "plain"},
        "unknown_role": {"id": "unknown_role", "conversations": [{"from": "user", "value": "q"}]},
        "turn_order": {"id": "turn_order", "conversations": turns("q") + turns("q", "a")},
        "missing_image": sample("missing_image", "none.png"),
        "outside_image_folder": sample("outside_image_folder", "../data.jsonl"),
        "damaged_image": sample("damaged_image", "page.jpg"),
        "huge_image": sample("huge_image", "wide.png"),
        "refused_by_template": sample("refused_by_template", None, "q", "a"),
        "image_count": sample("image_count", None, "<image>", "a"),
        "too_long": sample("too_long", "1.png", "<image>", "long " * 99),
        "nothing_to_learn": sample("nothing_to_learn", None, "q", ""),
    }
    bad["refused_by_template"]["conversations"] = turns("q", "a", "q", "a")  # plain takes one question
    lines = [json.dumps(sample("good", "0.png"))]
    for record in bad.values():
        lines += [json.dumps(record), json.dumps(sample("good", "1.png"))]
    path = folder / "data.jsonl"
    path.write_text("\n".join([*lines, '{"id": "not_json", }']) + "\n")
    return str(path), images


SKIPPING: dict[str, Any] = {"skip_bad": True, "max_image_pixels": 2999, "template": "plain"}


def test_every_kind_is_counted_and_reported(tmp_path: Path) -> None:
    file, images = bad_dataset(tmp_path)
    said: list[str] = []
    path = prepare_samples([file], reader(images, **SKIPPING), report=said.append)
    samples = SampleList.load(path)
    assert path.parent == tmp_path / "cache" and len(samples) == len(KINDS) and samples.total == 2 * len(KINDS)
    found = {finding.kind: finding for finding in samples.findings}
    assert found.keys() == KINDS.keys() and all(one.file == file for one in found.values())
    assert (found["not_json"].number, found["not_json"].id) == (2 * len(KINDS) - 1, "")
    assert re.search(r"line 24, column 18: ", found["not_json"].reason)
    assert found["damaged_image"].id == "damaged_image" and "page.jpg cannot be read" in found["damaged_image"].reason
    report = json.loads(path.with_suffix(".bad.json").read_text())
    assert report["samples"] == samples.total and sum(report["left_out"].values()) == len(report["findings"]) == len(
        KINDS
    )
    assert report["findings"][0] == vars(samples.findings[0])
    text = "\n".join(said)
    assert f"left out {len(KINDS)} of {samples.total} samples (1 not_json, 1 not_a_conversation, " in text
    assert f"missing_image, {KINDS['missing_image']}: 1: {file}: sample 7 (id missing_image): no image" in text


@pytest.mark.parametrize(
    ("record", "config", "message"),
    [
        (sample("a", "none.png"), {}, "sample 1 (id a): no image IMAGES/none.png: get the image, or remove the sample"),
        (sample("a", "/etc/passwd"), {}, "sample 1 (id a): image /etc/passwd leads out of --image-folder IMAGES: put"),
        (sample("a", "0.png"), {"max_image_pixels": 99}, "sample 1 (id a): image IMAGES/0.png is above --max-image-pixels 99"),
        (sample("a", None, "<image>", "a"), {}, "sample 1 (id a): 1 <image> in the text, and 0 images: one <image> in"),
        (sample("a", None, "q", "long " * 99), {}, "more than --seq-length 96: raise --seq-length, or cut such conversations"),
        (sample("a", None, "q", " "), {}, "sample 1 (id a): no answer that is not empty: correct it"),
    ],
)  # fmt: skip
def test_without_skipping_the_run_stops_at_the_start(
    record: Any, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_pictures(tmp_path / "images", 1)
    file = write_json(tmp_path / "data.json", [sample("good", None), record, record])
    with pytest.raises(CompeteError) as error:
        prepare_samples([file], reader(tmp_path / "images", **config))
    said = str(error.value)
    assert message.replace("IMAGES", str(tmp_path / "images")) in said and "\n" not in said and said.startswith(file)
    assert "--skip-bad-samples leaves such samples out (it would have left out 2 of 3 samples (2 " in said
    listed = re.search(r"all of them are in (\S+)\)", said)
    assert listed and len(json.loads(Path(listed[1]).read_text())["findings"]) == 2


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHUNK", 3)
    file, images = bad_dataset(tmp_path / "bad")
    other, _ = mixed_dataset(tmp_path / "other", pictures=3)
    lists = []
    for workers in (1, 3):
        own = reader(images, **SKIPPING)
        object.__setattr__(own.config, "workers", workers)
        lists.append(list_samples([file, other], own))
    one, several = ({name: _plain(value) for name, value in vars(found).items()} for found in lists)
    assert one == several and len(lists[0]) > len(KINDS)


def test_a_process_that_is_killed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, images = mixed_dataset(tmp_path)
    own = reader(images)
    object.__setattr__(own.config, "workers", 2)
    monkeypatch.setattr(checks, "CHUNK", 3)

    def die_or_wait(chunk: Any, own: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL) if chunk.start == 0 else time.sleep(60)

    monkeypatch.setattr(checks, "check_chunk", die_or_wait)
    with pytest.raises(CompeteError, match=r"was killed, .* try fewer --conversation-workers than 2"):
        list_samples([file], own)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_the_list_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, images = mixed_dataset(tmp_path)
    made: list[Sequence[str]] = []

    def counting(files: Sequence[str], own: Any) -> SampleList:
        made.append(files)
        return list_samples(files, own)

    monkeypatch.setattr(checks, "list_samples", counting)
    path = prepare_samples([file], reader(images), str(tmp_path / "elsewhere"))
    assert prepare_samples([file], reader(images), str(tmp_path / "elsewhere")) == path and len(made) == 1
    assert path.parent == tmp_path / "elsewhere"
    others = [
        reader(images, seq_length=97),
        reader(images, image_embeddings=3),
        reader(images, template="chatml"),
        reader(images, check_images="decode"),
        reader(images, use_tiling=True, max_num_tiles=2),
    ]
    paths = {prepare_samples([file], own, str(tmp_path / "elsewhere")) for own in others}
    assert len(paths | {path}) == 6 == len(made)
    os.utime(file, ns=(1, 1))
    assert prepare_samples([file], reader(images), str(tmp_path / "elsewhere")) not in paths | {path}


def test_a_list_with_bad_samples_is_kept_and_judged_anew(tmp_path: Path) -> None:
    file, images = bad_dataset(tmp_path)
    path = prepare_samples([file], reader(images, **SKIPPING))
    before = path.stat().st_mtime_ns
    with pytest.raises(CompeteError, match="--skip-bad-samples leaves such samples out"):
        prepare_samples([file], reader(images, **SKIPPING | {"skip_bad": False}))
    assert prepare_samples([file], reader(images, **SKIPPING)) == path and path.stat().st_mtime_ns == before


def test_an_image_that_was_put_right_is_used_where_the_run_had_stopped(tmp_path: Path) -> None:
    """Though neither the JSON nor a flag is another."""
    images = tmp_path / "images"
    save_pictures(images, 1)
    file = write_json(tmp_path / "data.json", [sample("good", "0.png"), sample("late", "late.png")])
    with pytest.raises(CompeteError, match=r"no image .*late.png"):
        prepare_samples([file], reader(images))
    picture(8, 8).save(images / "late.png")
    assert len(SampleList.load(prepare_samples([file], reader(images)))) == 2


def test_a_list_that_runs_read_by_stays_and_an_image_that_was_put_right_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, images = bad_dataset(tmp_path)
    own, said, indexed = reader(images, **SKIPPING), list[str](), list[str]()
    path = prepare_samples([file], own)
    before = path.read_bytes()
    monkeypatch.setattr(checks, "index_json", lambda name: (indexed.append(name), index_json(name))[1])
    assert prepare_samples([file], own, report=said.append) == path and "can be read now" not in "".join(said)
    picture(8, 8).save(images / "none.png")
    picture(8, 8).save(images / "page.jpg")
    assert prepare_samples([file], own, report=said.append) == path and path.read_bytes() == before
    assert said[-1].startswith(f"conversations: 2 of them have images that can be read now: remove {path} to take them")
    assert indexed == [file] * 2  # once a start, however many images are missing
    identity = SampleList.load(path).identity
    path.unlink()
    after = SampleList.load(prepare_samples([file], own))
    assert not {"missing_image", "damaged_image"} & {finding.kind for finding in after.findings}
    assert after.identity != identity and after.identity.startswith(f"{len(after)} samples (")


def test_nothing_usable(tmp_path: Path) -> None:
    empty = write_json(tmp_path / "empty.json", [])
    with pytest.raises(CompeteError, match=r"no sample in .*empty.json: give files with some"):
        prepare_samples([empty], reader(None))
    bad = write_json(tmp_path / "bad.json", [sample("a", "1.png")])
    with pytest.raises(CompeteError, match=r"left out 1 of 1 samples \(1 missing_image\), which is all: see "):
        prepare_samples([bad], reader(None, skip_bad=True))
    with pytest.raises(CompeteError, match=r"no file .*none.json: give a JSON array or JSON Lines"):
        prepare_samples([str(tmp_path / "none.json")], reader(None))
    (tmp_path / "file").touch()
    good = write_json(tmp_path / "good.json", [sample("a")])
    with pytest.raises(CompeteError, match=r"cannot be written .*: give --data-cache-path FOLDER"):
        prepare_samples([good], reader(None), str(tmp_path / "file" / "cache"))

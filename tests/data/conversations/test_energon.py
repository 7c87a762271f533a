"""Samples through megatron-energon, where it is installed, are those of the map-style dataset."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.reader import Reader
from megatron_compete.data.conversations.sample import collate
from tests.data.conversations.shards import write_shards
from tests.data.conversations.tiny import mixed_dataset, reader, sample

DRAWN = 120
"""Of 14 samples, so that each is among them: energon's buffer of samples reaches over epochs."""


@pytest.fixture
def energon() -> None:
    pytest.importorskip("megatron.energon")


def batches(own: Reader, count: int, **more: Any) -> Any:
    from megatron_compete.data.conversations.energon import EnergonBatches

    made = EnergonBatches(own, micro_batch_size=1, **{"rank": 0, "ranks": 1} | more)
    return made, [next(made) for _ in range(count)]


def key(batch: dict[str, Tensor]) -> str:
    return str(batch["tokens"].tolist())


@pytest.mark.usefixtures("energon")
def test_samples_are_those_of_an_image_folder(tmp_path: Path) -> None:
    file, images = mixed_dataset(tmp_path)
    records = json.loads(Path(file).read_text())
    path = write_shards(tmp_path / "shards", records, images)
    _, found = batches(reader(None, energon_path=str(path)), DRAWN)
    own = reader(images)
    wanted = [own.sample(own.conversation(one), own.check(one).tiles, with_images=True) for one in records]
    by_tokens = {key(batch): batch for batch in map(collate, zip(wanted))}
    assert {key(batch) for batch in found} == by_tokens.keys() and len(by_tokens) == len(records)
    for batch in found:
        other = by_tokens[key(batch)]
        assert batch.keys() - {"__restore_key__"} == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in other)


@pytest.mark.usefixtures("energon")
def test_a_rank_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file, images = mixed_dataset(tmp_path)
    path = write_shards(tmp_path / "shards", json.loads(Path(file).read_text()), images)
    own = reader(None, energon_path=str(path))
    made, _ = batches(own, 5)
    state = made.save_state()
    wanted = [next(made)["tokens"].tolist() for _ in range(20)]
    again, _ = batches(own, 0)
    again.restore_state(state)
    assert [next(again)["tokens"].tolist() for _ in range(20)] == wanted
    first, second = ({key(batch) for batch in batches(own, DRAWN, rank=rank, ranks=2)[1]} for rank in range(2))
    assert len(first | second) == 14 and not first & second


@pytest.mark.usefixtures("energon")
@pytest.mark.parametrize("skip", [False, True])
def test_bad_samples(skip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, images = mixed_dataset(tmp_path)
    (images / "1.png").write_bytes(b"damaged")
    records = [sample("good", "0.png"), sample("bad", "1.png"), sample("other", None, "<image>", "a")]
    path = write_shards(tmp_path / "shards", records, images)
    own = reader(None, energon_path=str(path), skip_bad=skip)
    if skip:
        _, found = batches(own, 3)
        assert len({str(batch["tokens"].tolist()) for batch in found}) == 1
        assert "left out 0001 (id bad): image 0.png cannot be read" in capsys.readouterr().out
    else:
        with pytest.raises(Exception, match=r"\(id (bad|other)\): .*--skip-bad-samples leaves such samples out"):
            batches(own, 3)


def test_without_energon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.energon", None)
    monkeypatch.delitem(sys.modules, "megatron_compete.data.conversations.energon", raising=False)
    with pytest.raises(
        CompeteError, match=r"--energon-path needs megatron-energon .*pip install megatron-compete\[energon\]"
    ):
        import megatron_compete.data.conversations.energon  # noqa: F401

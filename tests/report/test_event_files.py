"""Reading event files as they grow, break and repeat themselves."""

import math
import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_compete.report.event_files import EventFolder
from megatron_compete.report.scalars import logged_scalars
from tests.report.made_runs import logged, record, scalar, session, text, write_events


def read(folder: Path) -> EventFolder:
    events = EventFolder(folder)
    events.read()
    return events


def values(events: EventFolder, tag: str = "lm loss") -> dict[int, float]:
    curve = events.curve(tag)
    return {} if curve is None else dict(zip(curve.steps.tolist(), curve.values.tolist()))


def test_what_torch_writes_is_what_tensorboard_reads(tmp_path: Path) -> None:
    for start in (1, 6):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{start}", purge_step=start) as writer:
            for step in range(start, 8):
                writer.add_scalar("lm loss", 1 / step + start, step)
                writer.add_scalar("tensor", step, step, new_style=True)
            writer.add_text("num_layers", "4")
    events, theirs = read(tmp_path), logged_scalars(tmp_path)
    assert events.tags() == ["lm loss", "tensor"] and events.texts == {"num_layers": "4"}
    assert values(events) == theirs["lm loss"] and len(theirs["lm loss"]) == 7
    assert values(events, "tensor") == {step: float(step) for step in range(1, 8)}
    assert [one.step for one in events.sessions] == [1, 6]


def test_a_session_hides_what_came_after_its_beginning(tmp_path: Path) -> None:
    write_events(tmp_path, [session(1), *(scalar("lm loss", 1.0, step) for step in range(1, 10))])
    write_events(tmp_path, [session(5), scalar("lm loss", 2.0, 5)], number=1)
    assert values(read(tmp_path)) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 2}


def test_without_sessions_the_later_value_of_a_step_counts(tmp_path: Path) -> None:
    write_events(tmp_path, [scalar("lm loss", 1.0, step) for step in (1, 2, 3)])
    write_events(tmp_path, [scalar("lm loss", 2.0, step) for step in (2, 4)], number=1)
    assert values(read(tmp_path)) == {1: 1, 2: 2, 3: 1, 4: 2}


@pytest.mark.parametrize("cut", [1, 8, 13, 20])
def test_a_truncated_file_shows_its_whole_records_and_goes_on_where_it_grows(tmp_path: Path, cut: int) -> None:
    path = write_events(tmp_path, [scalar("lm loss", float(step), step) for step in range(1, 4)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    events = read(tmp_path)
    assert values(events) == {1: 1, 2: 2}
    assert "no whole record" in events.notes[path.name]
    path.write_bytes(whole + record(scalar("lm loss", 4.0, 4)))
    events.read()
    assert values(events) == {1: 1, 2: 2, 3: 3, 4: 4} and events.notes == {}


@pytest.mark.parametrize("damage", [b"\xff" * 40, b"\0" * 40])
def test_a_damaged_file_ends_with_a_note_and_the_next_one_is_read(tmp_path: Path, damage: bytes) -> None:
    path = write_events(tmp_path, [scalar("lm loss", 1.0, 1)])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + damage + record(scalar("lm loss", 9.0, 9)))
    write_events(tmp_path, [scalar("lm loss", 2.0, 2)], number=1)
    events = read(tmp_path)
    assert values(events) == {1: 1, 2: 2} and events.notes == {path.name: f"is damaged at byte {size}: what follows is not shown"}  # fmt: skip


def test_a_record_that_is_no_event_ends_its_file(tmp_path: Path) -> None:
    path = write_events(tmp_path, [scalar("lm loss", 1.0, 1)])
    broken = bytearray(record(scalar("lm loss", 2.0, 2)))
    broken[12:-4] = b"\xff" * (len(broken) - 16)
    path.write_bytes(path.read_bytes() + bytes(broken))
    events = read(tmp_path)
    assert values(events) == {1: 1} and "damaged" in events.notes[path.name]


def test_only_what_is_new_is_read_and_another_run_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = write_events(tmp_path, [scalar("lm loss", 1.0, step) for step in range(1, 101)])
    events = read(tmp_path)
    write_events(tmp_path, [scalar("lm loss", 2.0, 101)], mode="ab")
    taken: list[object] = []
    monkeypatch.setattr(events, "_take", lambda event, take=events._take: (taken.append(event), take(event)))
    events.read()
    assert len(taken) == 1 and len(values(events)) == 101
    path.unlink()
    write_events(tmp_path, [scalar("lm loss", 3.0, 1)])
    events.read()
    assert values(events) == {1: 3}


def test_values_that_are_not_finite_stay(tmp_path: Path) -> None:
    write_events(tmp_path, [scalar("lm loss", math.nan, 1), scalar("lm loss", math.inf, 2)])
    found = values(read(tmp_path))
    assert math.isnan(found[1]) and found[2] == math.inf


def test_texts_are_cut_and_counted(tmp_path: Path) -> None:
    write_events(tmp_path, [text("long", "x" * 100_000), *(text(f"t{n}", "y") for n in range(6000))])
    events = read(tmp_path)
    assert len(events.texts["long"]) == 2000 and len(events.texts) == 5000


def test_files_below_and_others_are_not_read(tmp_path: Path) -> None:
    write_events(tmp_path / "samples", logged(2))
    (tmp_path / "notes.txt").write_text("no events")
    events = read(tmp_path)
    assert events.tags() == [] and events.curve("lm loss") is None


@pytest.mark.slow
def test_a_million_points_are_read_in_reasonable_time(tmp_path: Path) -> None:
    """Processor time, so that a busy machine does not fail it; 8 s when it was written."""
    write_events(tmp_path, (scalar(f"tag {n % 10}", n / 3, n // 10) for n in range(1_000_000)))
    began = time.process_time()
    events = read(tmp_path)
    assert len(values(events, "tag 3")) == 100_000 and time.process_time() - began < 60

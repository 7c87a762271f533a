"""What workers share is made once, and what has other arguments is another thing."""

from pathlib import Path

from tests.shared import once


def test_it_is_made_once_for_the_same_arguments(tmp_path: Path) -> None:
    made = []

    def make(*args: object) -> list[object]:
        made.append(args)
        return list(args)

    assert once(tmp_path, make, "a", 1) == once(tmp_path, make, "a", 1) == ["a", 1]
    assert once(tmp_path, make, "a", 2) == ["a", 2]
    assert once(tmp_path, make, len) == [len]
    assert made == [("a", 1), ("a", 2), (len,)]

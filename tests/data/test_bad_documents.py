"""What becomes of bad documents."""

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import KINDS, BadDocument, SkipLog, place_of


def test_fail_names_place_reason_and_way_out() -> None:
    with pytest.raises(CompeteError, match=r"^c\.jsonl:3: not JSON: .*--on-error skip"):
        SkipLog("fail").add("c.jsonl:3", BadDocument("not_json", "not JSON"))


def test_skip_counts_by_kind_and_remembers_the_first() -> None:
    skips = SkipLog("skip")
    for number, kind in enumerate(("not_json", "not_text", "not_json"), start=1):
        assert kind in KINDS
        skips.add(place_of("c", number), BadDocument(kind, "why"))
    assert (skips.total, dict(skips.counts)) == (3, {"not_json": 2, "not_text": 1})
    assert skips.summary() == "skipped 3 documents (2 not_json, 1 not_text)"
    assert skips.report() == ["skipped 2 not_json, the first at c:1: why", "skipped 1 not_text, the first at c:2: why"]


def test_places() -> None:
    assert [place_of("c", 2), place_of("c", 2, "row"), place_of("c", 0)] == ["c:2", "c:row 2", "c"]

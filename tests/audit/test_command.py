from pathlib import Path

import pytest

from megatron_compete.audit.command import AuditOptions, main
from megatron_compete.audit.results import write_audit
from megatron_compete.common.errors import CompeteError
from tests.audit.audits import matrices, small_audit


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("hf --out out", r"--text is missing: name the text to run the model on"),
        ("hf --out out --text a --tokens 0", r"--tokens 0: give 1 or more"),
        ("hf --out out --text a --competition-tokens -1", r"--competition-tokens -1: give 0 or more"),
        ("hf other --out out --text a", r"hf is no finished audit: audit one checkpoint at a time"),
        ("hf --text a", r"the following arguments are required: --out"),
    ],
)
def test_bad_options_are_named(words: str, error: str) -> None:
    with pytest.raises(CompeteError, match=error):
        main(words.split())


def test_finished_audits_are_put_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_audit(small_audit(), matrices(), tmp_path / name)
    folders = (tmp_path / "one", tmp_path / "two")
    with pytest.raises(CompeteError, match=r"--text a is for an audit, and .*one is a finished one: leave it out"):
        AuditOptions(folders, tmp_path / "out", ("a",))
    main([*map(str, folders), "--out", str(tmp_path / "out")])
    page = tmp_path / "out" / "comparison.html"
    assert capsys.readouterr().out == f"wrote {page}\n"
    assert "runs/small/hf" in page.read_text()

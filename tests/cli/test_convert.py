"""The command line of both directions."""

from pathlib import Path

import pytest

from megatron_compete.cli.convert import main
from megatron_compete.common.errors import CompeteError


@pytest.mark.parametrize(
    ("to", "flags", "message"),
    [
        ("megatron", ["--family", "mixtral"], "--family belongs to --to hf"),
        ("megatron", ["--no-tokenizer"], "--no-tokenizer belongs to --to hf"),
        ("hf", ["--upcycle-experts", "8"], "--upcycle-experts belongs to --to megatron"),
        ("hf", ["--from", "megatron"], "--from belongs to --to megatron"),
        ("megatron", ["--top-k", "2"], "--top-k says how to upcycle: it goes with --upcycle-experts"),
        ("megatron", ["--max-file-size", "4XB"], "--max-file-size 4XB is not a size"),
    ],
)
def test_a_flag_that_has_nothing_to_do_is_an_error(to: str, flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=message):
        main(["--to", to, "--checkpoint", str(tmp_path), "--output", str(tmp_path / "out"), *flags])


def test_help_names_the_flags_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "--family" in printed and "--upcycle-experts" in printed

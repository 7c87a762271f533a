import re

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.build import conversation_files


def test_files_of_a_flag() -> None:
    assert conversation_files("--train-data-path", ["a.json", "2024.jsonl", "a.json"]) == (
        "a.json",
        "2024.jsonl",
        "a.json",
    )
    for words, message in (
        (["0.3", "a.json"], "--train-data-path 0.3: conversations have no weights"),
        ([], "--train-data-path names no file"),
    ):
        with pytest.raises(CompeteError, match=re.escape(message)):
            conversation_files("--train-data-path", words)

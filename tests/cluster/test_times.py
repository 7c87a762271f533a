import pytest

from megatron_compete.cluster.times import limit_seconds
from megatron_compete.common.errors import CompeteError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("1:30", 90), ("02:00:00", 7200), ("1-0", 86400), ("1-2", 93600), ("1-02:03", 93780),
        ("2-00:00:01", 172801), ("UNLIMITED", None), ("infinite", None),
    ],
)  # fmt: skip
def test_every_form_that_sbatch_takes(text: str, seconds: int | None) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "2h", "1:2:3:4", "-5", "1.5", "1-", "0", "00:00:00", "0" * 5000, "1-" + "9" * 5000, "٣"]
)
def test_what_sbatch_would_refuse(text: str) -> None:
    with pytest.raises(CompeteError, match="--time"):
        limit_seconds(text)

"""What a job needs of Transformer Engine: stated, and enough for Megatron's own checks."""

import re
from pathlib import Path

import megatron.core
import pytest
from packaging.version import Version

from megatron_compete.common.errors import CompeteError
from megatron_compete.plan import recipe_check
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.plan.transformer_engine import NEEDS, NEWEST, needed_version
from tests.plan.jobs import job_of

FP8 = "--bf16 --fp8-format e4m3 --fp8-recipe"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--moe-grouped-gemm", "1.11.0"),
        (f"{FP8} mxfp8", "2.1.0"),
        (f"{FP8} blockwise", "2.3.0"),
        ("--moe-router-fusion", "2.6.0"),
        ("--moe-router-fusion --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01", "2.7.0"),
        ("--transformer-impl local --no-persist-layer-norm", None),
    ],
)
def test_the_newest_that_anything_asks_for(flags: str, expected: str | None) -> None:
    needed = job_of(flags).transformer_engine
    assert (None if needed is None else needed.version) == expected
    if needed is not None:
        assert str(needed).startswith(f"Transformer Engine >= {expected} (--")


def test_megatron_takes_the_stated_version_and_no_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = f"{FP8} blockwise --recompute-granularity selective --recompute-modules layernorm"
    needed = job_of(flags).transformer_engine
    assert needed is not None and needed.version == "2.6.0"
    for version, refused in (("2.6.0", False), ("2.5.0", True)):
        monkeypatch.setattr(recipe_check, "pretended_gpu", lambda version=version: pretended_gpu(version))
        if refused:
            with pytest.raises(CompeteError, match=r"Megatron refuses these arguments: .*2\.6\.0dev0"):
                job_of(flags)
        else:
            job_of(flags)


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.flag)
def test_megatron_asks_there_for_that_version(need) -> None:  # type: ignore[no-untyped-def]
    """Fails when an upgrade of Megatron moves or lifts the check, and the row must follow."""
    source = (Path(megatron.core.__file__).parents[1] / need.source).read_text()
    series = ".".join(need.version.split(".")[:2])
    assert re.search(rf"\b{re.escape(series)}(\.\d|\b)", source), need.flag
    assert Version(need.version) <= Version(NEWEST)


def test_local_layers_need_none() -> None:
    args = job_of("--transformer-impl local --no-persist-layer-norm").args
    assert needed_version(args) is None

"""Triton's interpreter still needs what `interpreter.py` repairs; and repaired, it rounds as torch does."""

import pytest
import torch

from tests.moe.kernels import interpreter
from tests.ranks import run_rank

VALUES = 2048


def rounded(repaired: bool) -> dict[str, bool]:
    """Whether conversions and products by a kernel are torch's."""
    import triton
    import triton.language as tl

    if repaired:
        interpreter.repair()

    @triton.jit
    def kernel(source, bf16, e4m3, product, N: tl.constexpr):
        offsets = tl.arange(0, N)
        values = tl.load(source + offsets)
        tl.store(bf16 + offsets, values.to(tl.bfloat16))
        tl.store(e4m3 + offsets, values.to(tl.float8e4nv))
        square = tl.load(source + tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]).to(tl.bfloat16)
        out = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
        tl.store(product + out, tl.dot(square, tl.trans(square)))

    random = torch.Generator().manual_seed(1)
    source = torch.randn(VALUES, generator=random) * torch.exp2(torch.randint(-12, 8, (VALUES,), generator=random))
    source = source.clamp(-448, 448)
    bf16, e4m3 = torch.zeros(VALUES, dtype=torch.bfloat16), torch.zeros(VALUES, dtype=torch.float8_e4m3fn)
    product = torch.zeros(16, 16)
    kernel[(1,)](source, bf16, e4m3, product, VALUES)
    square = source[:256].view(16, 16).bfloat16().float()
    return {
        "bf16": torch.equal(bf16, source.bfloat16()),
        "e4m3": torch.equal(e4m3.float(), source.to(torch.float8_e4m3fn).float()),
        "product": torch.allclose(product, square @ square.T),
    }


@pytest.mark.parametrize("what", ["bf16", "e4m3", "product"])
def test_upstream_still_needs_it(what: str) -> None:
    assert not run_rank(rounded, False)[what], (
        f"Triton's interpreter is right about {what}: drop it from interpreter.py"
    )


def test_repaired_it_is_right() -> None:
    assert all(run_rank(rounded, True).values())

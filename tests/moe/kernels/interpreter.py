"""Triton's interpreter with the rounding that hardware has, so that kernels can be tested without a GPU.

In Triton 3.6 it cuts bf16 off instead of rounding, rounds e4m3 wrongly where a carry reaches the exponent, multiplies the
bit patterns of bf16 tiles as integers, and calls the function of a reduction once an element.
`test_interpreter.py` fails when upstream no longer needs this.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_TORCH_DTYPES = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}


def convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: Any) -> np.ndarray:
    """In place of `interpreter._convert_float`: to nearest, ties to even."""
    bits = np.ascontiguousarray(values).reshape(-1)
    converted = torch.from_numpy(bits.copy()).view(_TORCH_DTYPES[source]).to(_TORCH_DTYPES[target])
    unsigned = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[converted.itemsize]
    return converted.view(unsigned).numpy().reshape(values.shape)


def create_dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """In place of `InterpreterBuilder.create_dot`: products in fp32 of whatever the operands are."""
    a_fp32, b_fp32 = (convert(x.data, x.dtype.scalar, tl.float32, None).view(np.float32) for x in (a, b))
    return interpreter.TensorHandle(a_fp32 @ b_fp32 + d.data, d.dtype.scalar)


def generic_reduce(reduction: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """In place of `ReduceOps.generic_reduce`, for one operand and an axis: one call for each step along the axis."""
    (operand,) = inputs
    assert reduction.axis is not None and not reduction.keep_dims
    slices = np.moveaxis(operand.handle.data, reduction.axis, 0)
    total = reduction.to_tensor(slices[0], operand.dtype)
    for values in slices[1:]:
        total = reduction.combine_fn.fn(total, reduction.to_tensor(values, operand.dtype))
    return [total]


def repair() -> None:
    """Put all of it in place, in this process."""
    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.ReduceOps.generic_reduce = generic_reduce

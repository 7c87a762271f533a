"""The linear layer that stands for Transformer Engine's duplicated one."""

import pytest
import torch

from megatron_compete.launch.cpu_linear import DuplicatedLinear
from tests.moe.layouts import Layout, transformer_config


@pytest.mark.parametrize("bias", [True, False])
def test_takes_what_megatron_gives_and_marks_its_weights(bias: bool) -> None:
    config = transformer_config(Layout(world=2, tp=2), params_dtype=torch.bfloat16)
    linear = DuplicatedLinear(
        3, 2, parallel_mode="duplicated", config=config, init_method=torch.nn.init.ones_, bias=bias,
        skip_bias_add=False, skip_weight_param_allocation=False, is_expert=False, name=None,
    )  # fmt: skip
    output, apart = linear(torch.ones(4, 1, 3, dtype=torch.bfloat16))
    assert apart is None and output.tolist() == [[[3.0, 3.0]]] * 4
    assert all(parameter.sequence_parallel and parameter.allreduce for parameter in linear.parameters())
    assert set(linear.state_dict()) == ({"weight", "bias"} if bias else {"weight"})

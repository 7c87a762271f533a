"""The registry of baseline routers: flags that nothing reads, and what excludes a router."""

from dataclasses import fields
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.baselines import BASELINES, check_baseline, check_flags
from megatron_compete.moe.baselines.config import BaselineConfig, flag_of
from megatron_compete.moe.baselines.layer import VariableMoELayer
from tests.moe.layouts import Layout, transformer_config


def test_every_setting_is_read_by_a_router_and_every_router_reads_settings_that_exist() -> None:
    names = {field.name for field in fields(BaselineConfig)}
    assert names == {name for baseline in BASELINES.values() for name in baseline.reads}


@pytest.mark.parametrize("router", ["topk", "compete", "xmoe"])
def test_a_flag_that_nothing_reads_is_refused(router: str) -> None:
    with pytest.raises(CompeteError, match=f"--router-perturbation 0.3 has no effect with --router {router} .*: leave"):
        check_flags(router, BaselineConfig(perturbation=0.3))
    check_flags(router, BaselineConfig())
    check_flags("cosine", BaselineConfig(perturbation=0.3, temperature=0.1, dim=5, learn_temperature=True))


@pytest.mark.parametrize(("field", "value"), [("temperature", 0.0), ("dim", -1), ("perturbation", 0.0)])
def test_out_of_range_names_flag_and_value(field: str, value: Any) -> None:
    with pytest.raises(CompeteError, match=f"{flag_of(field)} {value} is out of range"):
        BaselineConfig(**{field: value})


@pytest.mark.parametrize("router", BASELINES)
def test_a_dense_model_is_refused(router: str) -> None:
    config = transformer_config(Layout())
    config.num_moe_experts = None
    with pytest.raises(CompeteError, match=f"--router {router} needs a mixture of experts"):
        check_baseline(router, config, BaselineConfig())


@pytest.mark.parametrize("router", [name for name, baseline in BASELINES.items() if baseline.layer is VariableMoELayer])
def test_a_dispatcher_of_k_copies_is_refused(router: str) -> None:
    config = transformer_config(Layout())
    config.moe_token_dispatcher_type = "flex"
    with pytest.raises(CompeteError, match=f"flex .* --router {router} .*: use alltoall"):
        check_baseline(router, config, BaselineConfig())

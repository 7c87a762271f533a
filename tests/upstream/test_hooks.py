"""Upstream calls what is replaced by its global name, so that a replacement is met, and offers no hook in its place."""

import dataclasses
import importlib
import inspect

import pytest
from megatron.training import training
from torch.distributed.launcher import api

from megatron_compete.upstream.table import ROWS

MODULE_FUNCTIONS = [
    symbol
    for row in ROWS
    for symbol in row.symbols
    if symbol.startswith("megatron.training.") and "." not in symbol.partition(":")[2]
]


@pytest.mark.parametrize("symbol", MODULE_FUNCTIONS)
def test_megatron_still_asks_it_by_its_global_name(symbol: str) -> None:
    """Where upstream no longer calls it, the replacement would be without effect and nobody would be told."""
    module, _, name = symbol.partition(":")
    values = list(vars(importlib.import_module(module)).values())
    methods = [
        member
        for value in values
        if inspect.isclass(value) and value.__module__ == module
        for member in vars(value).values()
    ]
    functions = filter(inspect.isfunction, values + methods)
    assert any(name in _names(function.__code__) for function in functions)


def _names(code: object) -> set[str]:
    """Globals and attributes that a function and those inside it use."""
    inner = (constant for constant in code.co_consts if inspect.iscode(constant))  # type: ignore[attr-defined]
    return set(code.co_names).union(*map(_names, inner))  # type: ignore[attr-defined]


def test_megatron_still_has_no_hook_there() -> None:
    """Fails when `pretrain` takes callbacks around steps, logs or saves: then these rows can go."""
    taken = inspect.signature(training.pretrain).parameters
    assert not [name for name in taken if "callback" in name or "hook" in name]
    assert "callback" not in inspect.getsource(training.training_log)


def test_torchrun_still_takes_no_other_agent() -> None:
    """Fails when an argument chooses torchrun's agent; then ours need not be put in its place."""
    assert "LocalElasticAgent" in _names(api.launch_agent.__code__)
    assert not [field.name for field in dataclasses.fields(api.LaunchConfig) if "agent" in field.name]

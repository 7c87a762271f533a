"""What a failing test shows of the ranks that it ran."""

import ctypes
import os
import signal

import pytest
import torch.distributed as dist

from tests.ranks import run_ranks


def _read_address_zero() -> None:
    ctypes.string_at(0)


def _crash_on_rank_1() -> None:
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        _read_address_zero()
    dist.barrier()


def test_a_crash_names_its_signal_and_both_stacks() -> None:
    with pytest.raises(AssertionError) as raised:
        run_ranks(2, _crash_on_rank_1)
    said = str(raised.value)
    assert f"rank 1 was ended by {signal.SIGSEGV.name}" in said
    crashed = said.partition("--- rank 1")[2]
    assert "frame #0" in crashed and "_read_address_zero" in crashed and "Current thread" in crashed


def _raise_on_rank_0() -> None:
    if os.environ["RANK"] == "0":
        raise ValueError("not today")


def test_an_exception_is_shown_with_its_rank() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 0 ended with 1.*--- rank 0.*ValueError: not today"):
        run_ranks(2, _raise_on_rank_0)

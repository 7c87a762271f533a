"""Flags of other versions: gone from this one, with what is there instead."""

import argparse

import pytest
from megatron.training.arguments import add_megatron_arguments

from megatron_compete.common.errors import CompeteError
from megatron_compete.training.renamed import RENAMED, with_replacements
from tests.plan.jobs import job_of


def test_advice_is_for_what_is_gone_and_names_what_is_there() -> None:
    known = {
        option
        for action in add_megatron_arguments(argparse.ArgumentParser())._actions
        for option in action.option_strings
    }
    for flag, instead in RENAMED.items():
        assert flag not in known or flag == "--no-weight-decay-cond-type", flag  # known, but not with qwen3_next
        assert instead.startswith("nothing in its place") or instead.split()[0].rstrip(",") in known, flag


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "--linear-attention-type gated_delta_net",
            r"for --linear-attention-type Megatron-Core 0\.19\.2 has --experimental-att",
        ),
        ("--no-weight-decay-cond-type qwen3_next", r"invalid choice: 'qwen3_next' .* has --apply-wd-to-qk-layernorm"),
        (
            "--offload-optimizer-states",
            r"^unrecognized arguments: --offload-optimizer-states \(for .* --optimizer-cpu-offload",
        ),
    ],
)
def test_a_recipe_for_another_version_is_told(flags: str, says: str) -> None:
    with pytest.raises(CompeteError, match=says) as error:
        job_of(flags)
    assert "\n" not in str(error.value)


def test_other_complaints_stay_as_they_are() -> None:
    assert with_replacements("unrecognized arguments: --no-such-flag 3") == "unrecognized arguments: --no-such-flag 3"

import sys
from pathlib import Path

import pytest
import yaml

from megatron_compete.cluster.layout_check import check_divisibility, check_layout, main
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from tests.cluster.stand_in import MODEL

slow = pytest.mark.slow  # a process that imports Megatron; test_submit.py has one such check


def write(tmp_path: Path, **arguments: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"launch": {"nproc-per-node": 2}, "arguments": MODEL | arguments}))
    return path


@slow
def test_what_megatron_would_refuse_is_known_before(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"^unrecognized arguments: --no-such-flag 3 \(--no-check submits it"):
        check_layout(write(tmp_path, **{"no-such-flag": 3}), 2, 2, [sys.executable])
    # What only the planner does not know is no reason to refuse; nor is a vocabulary that the tokenizer will say.
    unplanned = write(tmp_path, **{"optimizer": "soap", "vocab-size": None})
    assert check_layout(unplanned, 2, 2, [sys.executable]) is None


def test_it_refuses_what_the_trainer_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the same function; once, what the planner could not count was let through, and training refused it."""
    from megatron_compete.training import job_check

    refused = write(tmp_path, **{"moe-enable-routing-replay": True, "optimizer": "soap"})
    with pytest.raises(CompeteError, match="--moe-enable-routing-replay does not work with competition routing"):
        main(str(refused), "4")
    asked = []
    monkeypatch.setattr(job_check, "check_all_parts", lambda *settings: asked.append(settings))
    main(str(refused), "4")
    assert len(asked) == 1


@slow
def test_a_dense_baseline_can_be_submitted(tmp_path: Path) -> None:
    dense = {"router": "topk", "num-experts": None, "tensor-model-parallel-size": 2}
    assert check_layout(write(tmp_path, **dense), 2, 2, [sys.executable]) is None
    with pytest.raises(CompeteError, match="--num-experts is missing: competition routing needs a mixture"):
        check_layout(write(tmp_path, **{"num-experts": None}), 2, 2, [sys.executable])


def test_without_megatron_here_divisibility_is_checked(tmp_path: Path) -> None:
    note = check_layout(write(tmp_path), 2, 2, ["/nowhere/python"])
    assert note is not None and note.startswith("no Python with Megatron here")
    with pytest.raises(CompeteError, match="3 ranks do not divide by tensor"):
        check_layout(write(tmp_path, **{"pipeline-model-parallel-size": 2}), 3, 1, ["/nowhere/python"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tensor-model-parallel-size": 2, "context-parallel-size": 3}, r"8 ranks .* context parallel size = 6"),
        ({"expert-model-parallel-size": 3}, r"8 ranks .* expert tensor \* expert \* pipeline parallel size = 3"),
        ({"tensor-model-parallel-size": 4, "expert-model-parallel-size": 4}, "pipeline parallel size = 16"),
        ({"global-batch-size": 12, "micro-batch-size": 1}, r"12 does not divide .* = 1 \* 8: give a multiple of 8"),
        ({"global-batch-size": "many"}, "--global-batch-size many: give a whole number"),
        ({"micro-batch-size": "1" * 5000}, "--micro-batch-size 1+: give a whole number"),
        ({"pipeline-model-parallel-size": "two"}, "--pipeline-model-parallel-size two: give a whole number"),
    ],
)
def test_divisibility(arguments: dict, says: str) -> None:
    with pytest.raises(CompeteError, match=says):
        check_divisibility(Recipe(arguments=arguments), 8)
    split = {"tensor-model-parallel-size": 4, "expert-model-parallel-size": 8, "expert-tensor-parallel-size": 1}
    check_divisibility(Recipe(arguments=split | {"global-batch-size": 2}), 8)

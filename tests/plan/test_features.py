"""`plan --features` as a user sees it."""

import io
import json

from megatron_compete.plan.features import examine, features_document, print_features, shown
from tests.plan.jobs import recipe_of

FLAGS = "--bf16 --moe-grouped-gemm --moe-router-score-function sigmoid"


def test_a_row_a_feature_and_the_verdict() -> None:
    found = examine(recipe_of(FLAGS), gpus=1)
    file = io.StringIO()
    print_features(found, "recipe.yaml", file)
    lines = file.getvalue().splitlines()
    for name, status in (("sigmoid scores", "tested"), ("grouped GEMM", "kernels untested")):
        (line,) = [line for line in lines if line.startswith(name)]
        assert f" {status} " in line and " tests/moe/" in line
    assert any(line.strip().startswith("on a GPU: tests/moe/test_fp8.py::") for line in lines)
    assert (
        "needs Transformer Engine >= 1.11.0 (--moe-grouped-gemm)" in lines and lines[-1] == "the trainer takes this job"
    )


def test_a_refused_recipe_has_its_table_and_no_verdict() -> None:
    found = examine(recipe_of("--bf16 --fp4-format e2m1"), gpus=1)
    assert "--fp4-format does not work with competition routing" in str(found.refusal)
    file = io.StringIO()
    print_features(found, "recipe.yaml", file)
    assert "the trainer takes this job" not in file.getvalue()
    document = json.loads(json.dumps(features_document(found, "recipe.yaml")))
    assert document["refused"] == str(found.refusal)
    assert {
        "name": "NVFP4",
        "status": "refused",
        "evidence": "the scoring pass does not pad its tokens",
        "gpu_test": None,
    } in document["features"]


def test_what_is_only_priced_says_so() -> None:
    found = examine(recipe_of("--bf16 --optimizer muon"), gpus=1)
    (muon,) = [feature for feature in found.features if feature.name == "Muon"]
    assert shown(muon).startswith("priced alone: tests/plan/test_optimizer.py::")

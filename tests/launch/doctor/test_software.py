"""What is said about packages."""

from typing import Any

import pytest

from megatron_compete.launch.doctor import fusions, software
from megatron_compete.launch.doctor.probe import Probed

HERE = Probed("there", {"version": "0.19.2", "have_te": False})
MISSING = Probed("missing")


def te(**recipes: str) -> Probed:
    return Probed("there", {"version": "2.14.0", "recipes": recipes})


def test_own_requirements_are_met_here() -> None:
    finding = software.requirements_finding()
    assert finding.state == "ok", finding.value


def test_unmet_requirements_are_named_with_the_version_found() -> None:
    wanted = ["packaging>=9999", "no-such-package>1", "numpy", "nothing-either; extra == 'dev'", "torch>=2.8"]
    finding = software.requirements_finding(wanted)
    assert finding.state == "problem" and finding.serves == ("training",)
    complaints = finding.value.split("; ")
    assert len(complaints) == 2
    assert complaints[0].startswith("packaging ") and complaints[0].endswith(" is not >=9999")
    assert complaints[1] == "no-such-package is missing"


def test_a_prerelease_of_the_container_meets_a_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.metadata, "version", lambda name: "2.12.0a0+0291f960b6.nv26.04")
    assert software.requirements_finding(["torch>=2.8"]).state == "ok"


def test_broken_te_stops_training_but_missing_te_does_not() -> None:
    broken = next(software.transformer_engine_findings(Probed("broken", why="ImportError: libcublas.so.13")))
    missing = next(software.transformer_engine_findings(MISSING))
    assert broken.state == "problem" and "training" in broken.serves and "libcublas" in broken.value
    assert missing.state == "missing" and "training" not in missing.serves and "fp8" in missing.serves


def test_fp8_recipes_are_those_that_te_allows() -> None:
    _, some = software.transformer_engine_findings(te(delayed="", blockwise="", mxfp8="needs Blackwell"))
    _, none = software.transformer_engine_findings(te(delayed="no driver", blockwise="no driver"))
    assert some.state == "ok" and some.value == "delayed, blockwise; not mxfp8: needs Blackwell"
    assert none.state == "missing" and none.value == "not delayed, blockwise: no driver" and none.serves == ("fp8",)


def test_te_that_megatron_cannot_take_is_a_problem() -> None:
    findings = list(software.megatron_findings(HERE, Probed("there"), te(delayed="")))
    assert [finding.state for finding in findings] == ["ok", "ok", "problem"]
    assert "cannot use Transformer Engine 2.14.0" in findings[-1].value
    assert len(list(software.megatron_findings(HERE, Probed("there"), MISSING))) == 2


def test_a_trainer_that_does_not_import_is_a_problem_of_training() -> None:
    findings = list(software.megatron_findings(HERE, Probed("broken", why="ImportError: x"), MISSING))
    assert findings[1].state == "problem" and findings[1].serves == ("training",)


def test_apex_of_pypi_is_told_from_nvidias() -> None:
    extensions = {"amp_C": False, "fused_layer_norm_cuda": True}
    finding = software.apex_finding(Probed("there", {"extensions": extensions}))
    assert finding.state == "note" and finding.value == "without amp_C" and "PyPI's apex is another" in finding.advice
    assert software.apex_finding(Probed("there", {"extensions": dict.fromkeys(extensions, True)})).state == "ok"


def test_dispatchers_are_what_megatron_found() -> None:
    facts: dict[str, Any] = {"deep_ep": True, "hybrid_ep": False}
    both = Probed("there", {"buffer": True, "hybrid": True})
    found = list(software.deep_ep_findings(both, Probed("there", facts)))
    assert [(finding.state, finding.serves) for finding in found] == [("ok", ("deepep",)), ("missing", ("hybridep",))]
    unknown = software.deep_ep_findings(both, Probed("broken", why="Megatron does not import"))
    assert [finding.state for finding in unknown] == ["ok", "ok"], "its own word where Megatron has none"


def test_pictures_need_the_formats_that_datasets_have() -> None:
    here, without = software.picture_finding(), software.picture_finding(lambda feature: feature != "webp")
    assert (here.state, here.serves) == ("ok", ("pictures",)) and here.value.endswith("JPEG, PNG, WebP")
    assert (without.state, without.serves) == ("missing", ("pictures",)) and without.value.endswith("without WebP")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Open MPI v4.1.7rc1, package: Open MPI root@hpc, ident: 4.1.7rc1", "Open MPI v4.1.7rc1"),
        ("MPICH Version: 5.0.2 MPICH Release date: Fri", "MPICH 5.0.2"),
        ("Intel(R) MPI Library 2021.14 for Linux* OS", "Intel(R) MPI Library 2021.14"),
        ("FooMPI 1", "FooMPI 1"),
    ],
)
def test_the_mpi_behind_mpi4py(text: str, name: str) -> None:
    assert software.mpi_library(Probed("there", {"library": text})) == name


PLAIN = {
    "have_te": False, "adam": "torch", "multi_tensor": "megatron", "layer_norm_kernel": False, "weight_gradient": False,
    "grouped_linear": False, "permute": False, "router": False, "rope": False, "softmax": False,
}  # fmt: skip
WITH_TE = PLAIN | {
    "have_te": True, "adam": "transformer_engine", "multi_tensor": "transformer_engine", "grouped_linear": "megatron",
    "permute": "transformer_engine", "router": "transformer_engine", "rope": "megatron",
}  # fmt: skip


def test_every_fusion_is_missing_without_te_and_there_with_it() -> None:
    plain = list(fusions.fusion_findings(Probed("there", PLAIN)))
    fused = list(fusions.fusion_findings(Probed("there", WITH_TE)))
    assert {finding.state for finding in plain} == {"missing"} and all(finding.advice for finding in plain)
    assert {finding.state for finding in fused} == {"ok"}
    assert [finding.name for finding in plain] == [finding.name for finding in fused]


def test_an_old_te_leaves_gradient_clipping_to_torch() -> None:
    """Transformer Engine 2.12 lacks a kernel that Megatron-Core 0.19 imports together with the others."""
    facts = WITH_TE | {"multi_tensor": "megatron"}
    states = {finding.name: finding for finding in fusions.fusion_findings(Probed("there", facts))}
    assert states["gradient norm and clipping"].state == "missing"
    assert "newer Transformer Engine" in states["gradient norm and clipping"].advice


def test_apex_alone_fuses_adam_norm_and_gradient_accumulation() -> None:
    facts = PLAIN | {
        "adam": "apex",
        "multi_tensor": "apex",
        "layer_norm_kernel": True,
        "weight_gradient": True,
        "softmax": True,
    }
    states = {finding.name: finding.state for finding in fusions.fusion_findings(Probed("there", facts))}
    assert [name for name, state in states.items() if state == "missing"] == [
        "grouped GEMM of experts", "token permutation", "router's top-k", "rotary embedding",
    ]  # fmt: skip

"""Findings about packages: Python, this package's requirements, Megatron, Transformer Engine, apex, DeepEP, MPI."""

import platform
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from megatron_compete import __version__
from megatron_compete.launch.doctor.finding import Finding
from megatron_compete.launch.doctor.probe import Probed

DISTRIBUTION = "megatron-compete"

IN_THE_WAY = "fix it, or uninstall it: Megatron imports it wherever it is installed"

OLDEST_PYTHON = (3, 12)

PICTURE_FORMATS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP"}
"""Pillow's names of what it is built with, and what that reads."""

EXPORT_PACKAGES = ("transformers", "tokenizers", "safetensors", "sentencepiece")

MPI_LIBRARIES = (r"Open MPI v[\w.]+", r"MPICH Version: [\w.]+", r"Intel\(R\) MPI Library [\w.]+", r"MVAPICH\S* [\w.]+")
"""How MPI_Get_library_version begins."""


def python_finding() -> Finding:
    """The interpreter, and where it is from."""
    old = sys.version_info < OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        "Software",
        "Python",
        "problem" if old else "ok",
        f"{platform.python_version()}, {sys.executable}",
        f"install Python {wanted} or newer" if old else "",
        ("training",),
    )


def requirements_finding(requirements: list[str] | None = None) -> Finding:
    """Whether what this package requires is installed, in the versions that it requires.

    Args:
        requirements: as in a package's metadata; None reads this package's own.
    """
    name = f"{DISTRIBUTION} {__version__}"
    if requirements is None:
        try:
            requirements = metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            how = "not installed, only on the path: its requirements cannot be checked"
            return Finding("Software", name, "note", how, "pip install it, or ignore this in a code snapshot")
    wanted = [requirement for requirement in map(Requirement, requirements) if _applies(requirement)]
    unmet = [complaint for complaint in map(_complaint, wanted) if complaint]
    return Finding(
        "Software",
        name,
        "problem" if unmet else "ok",
        "; ".join(unmet) or f"all {len(wanted)} required packages in the versions it needs",
        f"pip install 'megatron-compete=={__version__}' again, or these alone" if unmet else "",
        ("training",),
    )


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _complaint(requirement: Requirement) -> str:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):  # the NGC image has pre-releases of torch
        return ""
    return f"{requirement.name} {version} is not {requirement.specifier}"


def torch_finding(torch: Probed) -> Finding:
    """torch imports and computes on the CPU."""
    if torch.state != "there":
        return _unusable("PyTorch", torch, "training", "gpu", required="pip install torch, or use the container")
    facts = torch.facts
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "CPU only"
    return Finding(
        "Software",
        "PyTorch",
        "problem" if facts["computes"] else "ok",
        f"{facts['version']}, built for {build}" + (f": {facts['computes']}" if facts["computes"] else ""),
        "install torch again" if facts["computes"] else "",
        ("training", "gpu"),
    )


def megatron_findings(megatron: Probed, trainer: Probed, transformer_engine: Probed) -> Iterator[Finding]:
    """Megatron-Core and the trainer import, and Megatron takes the Transformer Engine that is there."""
    if megatron.state != "there":
        yield _unusable("Megatron-Core", megatron, "training", required="pip install 'megatron-core>=0.19,<0.20'")
        return
    yield Finding("Software", "Megatron-Core", "ok", megatron.facts["version"], serves=("training",))
    if trainer.state != "there":
        yield _unusable("trainer entry", trainer, "training", required="see the message")
    else:
        yield Finding("Software", "trainer entry", "ok", "imports", serves=("training",))
    if transformer_engine.state == "there" and not megatron.facts["have_te"]:
        yield Finding(
            "Software",
            "Megatron with TE",
            "problem",
            f"Megatron cannot use Transformer Engine {transformer_engine.facts['version']}: a name that it imports is gone",
            "install the Transformer Engine of Megatron-Core's own release",
            ("fp8", "fusions"),
        )


def transformer_engine_findings(probed: Probed) -> Iterator[Finding]:
    """Transformer Engine, and the FP8 recipes that these GPUs can run."""
    if probed.state != "there":
        # Megatron imports it wherever it is installed, so a broken one stops every training.
        serves = ("fp8", "fusions", "training") if probed.state == "broken" else ("fp8", "fusions")
        advice = "only with a GPU: use the NGC image, or pip install 'transformer-engine[pytorch]'"
        yield _unusable("Transformer Engine", probed, *serves, required=advice, broken=IN_THE_WAY)
        return
    yield Finding("Software", "Transformer Engine", "ok", probed.facts["version"], serves=("fp8", "fusions"))
    recipes: dict[str, str] = probed.facts["recipes"]
    usable = [recipe for recipe, reason in recipes.items() if not reason]
    refused: dict[str, list[str]] = {reason: [] for reason in recipes.values() if reason}
    for recipe, reason in recipes.items():
        if reason:
            refused[reason].append(recipe)
    not_usable = "; ".join(f"not {', '.join(names)}: {reason}" for reason, names in refused.items())
    yield Finding(
        "Software",
        "FP8 recipes",
        "ok" if usable else "missing",
        "; ".join(filter(None, (", ".join(usable), not_usable))),
        "" if usable else "train in bf16, or on Hopper, Ada or Blackwell GPUs",
        ("fp8",),
    )


def apex_finding(probed: Probed) -> Finding:
    """apex and its compiled extensions; the package of that name on PyPI is another one."""
    if probed.state != "there":
        serves = ("training",) if probed.state == "broken" else ()
        advice = "only for layers without Transformer Engine: use the NGC image, or build NVIDIA/apex"
        return _unusable("apex", probed, *serves, required=advice, broken=IN_THE_WAY)
    extensions: dict[str, bool] = probed.facts["extensions"]
    absent = [name for name, there in extensions.items() if not there]
    value = "without " + ", ".join(absent) if absent else "with all extensions that Megatron uses"
    advice = "build NVIDIA/apex with --cpp_ext --cuda_ext --fast_layer_norm (PyPI's apex is another project)"
    return Finding("Software", "apex", "note" if absent else "ok", value, advice if absent else "")


def deep_ep_findings(probed: Probed, megatron: Probed) -> Iterator[Finding]:
    """DeepEP's two dispatchers, as Megatron sees them."""
    if probed.state != "there":
        serves = ("deepep", "hybridep") + (("training",) if probed.state == "broken" else ())
        advice = "optional: --moe-token-dispatcher-type alltoall needs none; otherwise build deepseek-ai/DeepEP"
        yield _unusable("DeepEP", probed, *serves, required=advice, broken=IN_THE_WAY)
        return
    for name, own, fact, flag in (
        ("DeepEP", "buffer", "deep_ep", "deepep"),
        ("HybridEP", "hybrid", "hybrid_ep", "hybridep"),
    ):
        there = bool(megatron.facts.get(fact, probed.facts[own]))
        yield Finding(
            "Software",
            name,
            "ok" if there else "missing",
            f"Megatron can use it (--moe-flex-dispatcher-backend {flag})" if there else "not in this build of DeepEP",
            "" if there else "build DeepEP's branch that has it",
            (flag,),
        )


def mpi_library(probed: Probed) -> str:
    """Name and version of the MPI behind mpi4py; empty if there is none."""
    text = probed.facts.get("library", "")
    found = re.match("|".join(MPI_LIBRARIES), text)
    return found.group().replace(" Version:", "") if found else text[:40]


def mpi_finding(probed: Probed) -> Finding:
    """mpi4py and the MPI library it opens."""
    if probed.state != "there":
        advice = "load the cluster's MPI module, or pip install 'megatron-compete[mpi]' for one machine"
        return _unusable("mpi4py", probed, "mpi", required=advice)
    return Finding("Software", "mpi4py", "ok", f"{probed.facts['version']} with {mpi_library(probed)}", serves=("mpi",))


def export_finding() -> Finding:
    """The Hugging Face packages; exports with expert groups need transformers 5."""
    versions: dict[str, str] = {}
    for package in EXPORT_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    absent = [package for package in EXPORT_PACKAGES if package not in versions]
    value = ", ".join(f"{package} {version}" for package, version in versions.items())
    if absent:
        return Finding(
            "Software", "Hugging Face", "missing", value or "none", f"pip install {' '.join(absent)}", ("export",)
        )
    if int(versions["transformers"].split(".")[0]) < 5:
        return Finding("Software", "Hugging Face", "note", value, "exports with expert groups need transformers 5")
    return Finding("Software", "Hugging Face", "ok", value, serves=("export",))


def picture_finding(features: Callable[[str], object] | None = None) -> Finding:
    """Pillow, which decodes the pictures of visual instruction data, with the formats that these have.

    Args:
        features: whether Pillow was built with one of `PICTURE_FORMATS`; None: ask it.
    """
    try:
        import PIL
        from PIL import features as built
    except ImportError as error:
        return Finding("Software", "Pillow", "missing", str(error), "pip install 'pillow>=11'", ("pictures",))
    absent = [name for feature, name in PICTURE_FORMATS.items() if not (features or built.check)(feature)]
    if absent:
        value = f"{PIL.__version__} without {', '.join(absent)}"
        return Finding("Software", "Pillow", "missing", value, "install Pillow from its wheel", ("pictures",))
    reads = ", ".join(PICTURE_FORMATS.values())
    return Finding("Software", "Pillow", "ok", f"{PIL.__version__}: {reads}", serves=("pictures",))


def triton_finding() -> Finding:
    """triton, which torch.compile needs on GPUs; its version is read without importing it."""
    for package in ("triton", "pytorch-triton"):
        for distribution in metadata.distributions(name=canonicalize_name(package)):
            return Finding("Software", "triton", "ok", distribution.version)
    return Finding("Software", "triton", "missing", "not installed", "comes with torch's CUDA builds", ("gpu",))


def _unusable(name: str, probed: Probed, *serves: str, required: str, broken: str = "") -> Finding:
    """Of a package that is missing (then do `required`) or broken (then `broken`, where that is something else)."""
    if probed.state == "missing":
        return Finding("Software", name, "missing", "not installed", required, serves)
    return Finding("Software", name, "problem", probed.why, broken or required, serves)

"""Which of Megatron's fused kernels are used here: what Megatron chose when it was imported, and what switches the rest on.

Megatron decides most of them by what it can import, some by a flag; nothing in this project switches one off except
`--relu`, whose activation has no fused form.
"""

from collections.abc import Iterator

from megatron_compete.launch.doctor.finding import Finding, State
from megatron_compete.launch.doctor.probe import Probed

GROUP = "Megatron's fused kernels"

TE = "Transformer Engine"
APEX = "apex"


def fusion_findings(megatron: Probed) -> Iterator[Finding]:
    """One finding for each fused kernel; none where Megatron does not import."""
    if megatron.state != "there":
        return
    facts = megatron.facts
    te = bool(facts["have_te"])
    yield _chosen("Adam", facts["adam"], "torch", f"{TE} or {APEX}")
    yield _chosen("gradient norm and clipping", facts["multi_tensor"], "megatron", f"a newer {TE}, or {APEX}")
    yield _layer_norm(facts["layer_norm_kernel"], te)
    yield _weight_gradient(facts["weight_gradient"], te)
    yield _flagged("grouped GEMM of experts", facts["grouped_linear"], "--moe-grouped-gemm")
    yield _flagged("token permutation", facts["permute"], "--moe-permute-fusion")
    yield _flagged("router's top-k", facts["router"], "--moe-router-fusion")
    yield _there("rotary embedding", bool(facts["rope"]), f"install {TE}")
    yield _softmax(facts["softmax"], te)


def _chosen(name: str, origin: str, fallback: str, needs: str) -> Finding:
    fused = origin != fallback
    value = f"fused, of {_package(origin)}" if fused else "plain torch operations"
    return _there(name, fused, f"needs {needs}", value)


def _layer_norm(apex_kernel: bool, te: bool) -> Finding:
    value = (
        f"{TE}'s; local layers: {'apex' if apex_kernel else 'torch'}" if te else "apex's" if apex_kernel else "torch's"
    )
    return _there("layer norm", te or apex_kernel, f"needs {TE}, or {APEX}", value)


def _weight_gradient(apex_kernel: bool, te: bool) -> Finding:
    """`--gradient-accumulation-fusion` is on by default, and local linear layers refuse to be built without apex's kernel."""
    if apex_kernel:
        return _there("gradient accumulation", True, "", "fused, in all linear layers")
    advice = "--no-gradient-accumulation-fusion with --transformer-impl local"
    return _there("gradient accumulation", te, advice, f"{TE}'s layers only" if te else "not fused")


def _flagged(name: str, there: object, flag: str) -> Finding:
    return _there(name, bool(there), f"install {TE}, then {flag}", f"with {flag}" if there else "")


def _softmax(there: bool, te: bool) -> Finding:
    value = f"{TE}'s attention has its own" if te and not there else ""
    return _there("masked softmax", there or te, f"needs {APEX}'s kernels, or {TE}", value)


def _there(name: str, there: bool, advice: str, value: str = "") -> Finding:
    state: State = "ok" if there else "missing"
    return Finding(
        GROUP, name, state, value or ("fused" if there else "not fused"), "" if there else advice, ("fusions",)
    )


def _package(origin: str) -> str:
    return {"transformer_engine": TE, "transformer_engine_torch": TE, "apex": APEX, "amp_C": APEX}.get(origin, origin)

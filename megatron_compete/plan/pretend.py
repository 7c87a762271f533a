"""Checking a GPU job's arguments on a host that has no GPU.

Megatron asks the host's device and packages while it validates arguments; on a workstation it would refuse, or switch
off, what the cluster has. Inside `pretended_gpu()` it meets a GPU of the planned generation and a Transformer Engine.
Only what is missing is stood in for, and only while arguments are checked: no kernel is called, nothing is built.
"""

import contextlib
import io
import logging
import os
import types
import warnings
from collections.abc import Iterator

from megatron_compete.launch.launchers import ASSERTED_BY_MEGATRON
from megatron_compete.plan.transformer_engine import NEWEST
from megatron_compete.upstream import replace_symbol, resolve

CAPABILITY = (9, 0)
"""Compute capability that Megatron is told of: Hopper's. Its checks tell Ampere, Hopper and Blackwell apart only in what
the launcher's environment must hold."""

FUSED_KERNELS = (
    "megatron.core.models.common.embeddings.rope_utils:fused_apply_rotary_pos_emb",
    "megatron.core.models.common.embeddings.rope_utils:fused_apply_rotary_pos_emb_thd",
    "megatron.core.transformer.moe.moe_utils:fused_permute",
    "megatron.core.transformer.moe.moe_utils:fused_permute_with_probs",
    "megatron.core.transformer.moe.moe_utils:fused_sort_chunks_by_index",
    "megatron.core.transformer.moe.moe_utils:fused_sort_chunks_by_index_with_probs",
    "megatron.core.transformer.moe.moe_utils:fused_unpermute",
)
"""Kernels of Transformer Engine whose presence `TransformerConfig` asks for: None where it is not installed."""


@contextlib.contextmanager
def pretended_gpu(transformer_engine: str = NEWEST) -> Iterator[None]:
    """Megatron's checks inside see a GPU host; its prints and warnings about the arguments are dropped.

    Args:
        transformer_engine: version that Megatron is told of where none is installed. By default one that has all that
            is ever asked for; what a job needs of it is `plan/transformer_engine.py`'s to say.
    """
    device = types.SimpleNamespace(major=CAPABILITY[0], minor=CAPABILITY[1], name="planned")
    with contextlib.ExitStack() as stack:
        stack.enter_context(replace_symbol("torch.cuda:is_available", lambda: True))
        stack.enter_context(replace_symbol("torch.cuda:get_device_capability", lambda *a, **k: CAPABILITY))
        stack.enter_context(replace_symbol("torch.cuda:get_device_properties", lambda *a, **k: device))
        stack.enter_context(_transformer_engine(transformer_engine))
        stack.enter_context(_launcher_environment())
        stack.enter_context(_quiet())
        yield


@contextlib.contextmanager
def _transformer_engine(version: str) -> Iterator[None]:
    from megatron.core.utils import get_te_version
    from packaging.version import Version

    with contextlib.ExitStack() as stack:
        if get_te_version() == Version("0.0.0"):
            stack.enter_context(replace_symbol("megatron.core.utils:_te_version", Version(version)))
        for kernel in FUSED_KERNELS:
            owner, name = resolve(kernel)
            if getattr(owner, name) is None:
                stack.enter_context(replace_symbol(kernel, object()))
        yield


@contextlib.contextmanager
def _launcher_environment() -> Iterator[None]:
    """What our launcher sets for every rank, and Megatron asserts."""
    before = {name: os.environ.get(name) for name in ASSERTED_BY_MEGATRON}
    for name, value in ASSERTED_BY_MEGATRON.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)

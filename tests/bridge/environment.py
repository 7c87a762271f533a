"""Megatron-Bridge's wheel on a host without CUDA and without Transformer Engine."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WHEEL = "megatron.bridge"
IMPORTED = (
    "megatron.bridge",
    "megatron.bridge.training.pretrain",
    "megatron.bridge.training.gpt_step",
    "megatron.bridge.training.mlm_compat.arguments",  # compiles functions, which must be done before a CPU stands in
    "megatron.bridge.training.model_load_save",
)


def is_installed() -> bool:
    """Whether this is the environment of `make test-bridge`."""
    return importlib.util.find_spec("megatron") is not None and importlib.util.find_spec(WHEEL) is not None


def load_bridge() -> None:
    """Import the wheel; again is harmless.

    It derives classes from Transformer Engine's, for adapters and layers that no test here builds, and Megatron-Core must
    find it absent, as it is. So what looks for it in Megatron-Core is imported first, and then the wheel with names in
    its place, which are taken away again.
    """
    if IMPORTED[-1] in sys.modules:
        return
    import modelopt.torch  # noqa: F401  imports itself in a circle where one of its plugins is imported first

    _import_core()
    with _transformer_engine_by_name():
        for module in IMPORTED:
            importlib.import_module(module)


def _import_core() -> None:
    """All of Megatron-Core that looks for Transformer Engine when it is imported."""
    import megatron.core

    root = Path(megatron.core.__path__[0])
    for path in sorted(root.rglob("*.py")):
        if "transformer_engine" in path.read_text() and "fsdp" not in path.parts:
            name = ".".join(("megatron", "core", *path.relative_to(root).with_suffix("").parts))
            with contextlib.suppress(ImportError):  # parts that need a GPU's packages
                importlib.import_module(name.removesuffix(".__init__"))


@contextlib.contextmanager
def _transformer_engine_by_name() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == _Finder.package]:
            del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    package = "transformer_engine"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != self.package:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Names(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


class _Names(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        return _Empty.named(name)


class _Empty(type):
    """Of classes that have an empty class under every name, too."""

    @classmethod
    def named(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls(name, (), {})

    def __getattr__(cls, name: str) -> Any:
        return _Empty.named(name)

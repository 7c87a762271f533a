"""scipy, which comes with an extra of the package."""

import importlib
from types import ModuleType

from megatron_compete.common.errors import CompeteError


def scipy_module(name: str) -> ModuleType:
    """`scipy.NAME`.

    Raises:
        CompeteError: scipy is not installed.
    """
    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError:
        raise CompeteError("the audit needs scipy: pip install 'megatron-compete[report]'") from None

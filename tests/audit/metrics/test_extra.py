import sys

import pytest

from megatron_compete.audit.metrics.extra import scipy_module
from megatron_compete.common.errors import CompeteError


def test_scipy_is_named_with_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scipy_module("special").ndtr(0.0) == 0.5
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(CompeteError, match=r"needs scipy: pip install 'megatron-compete\[report\]'"):
        scipy_module("special")

"""Replacements nest, are undone in any order, and leave what was there, whatever kind of attribute it was."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from megatron_compete.upstream import UpstreamChanged, replace_symbol, wrap_symbol
from megatron_compete.upstream.table import TABLE, Row


class Thing:
    """A class of upstream's, with an attribute of each kind."""

    @staticmethod
    def static(value: int) -> int:
        return value

    @classmethod
    def of_class(cls, value: int) -> tuple[type, int]:
        return cls, value

    def method(self, value: int) -> tuple[Any, int]:
        return self, value


class Inheriting(Thing):
    """Has nothing of its own."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """An upstream module, all of which may be replaced."""
    module = types.ModuleType("upstream_module")
    module.Thing, module.Inheriting, module.log, module.value = Thing, Inheriting, log, 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "upstream_module", module)
    row = Row("upstream_module", (), "of this test", "tests/upstream/test_replacement.py::module")
    names = ("log", "value", "gone", "Thing.static", "Thing.of_class", "Thing.method", "Inheriting.method")
    for name in names:
        monkeypatch.setitem(TABLE, f"upstream_module:{name}", row)
    before = dict(vars(module)), dict(vars(Thing)), dict(vars(Inheriting))
    yield module
    assert (dict(vars(module)), dict(vars(Thing)), dict(vars(Inheriting))) == before


def log(line: str, *, end: str = "") -> str:
    return line + end


def adding(text: str) -> Callable[..., str]:
    return lambda upstream, line, **named: text + upstream(line, **named)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_several_nest_and_are_undone_in_any_order(module: types.ModuleType, order: tuple[int, ...]) -> None:
    placed = [wrap_symbol("upstream_module:log", adding(text)) for text in "abc"]
    left = list("abc")
    assert module.log("x", end="!") == "cbax!"
    for number in order:
        placed[number].undo()
        placed[number].undo()
        left.remove("abc"[number])
        assert module.log("x") == "".join(reversed(left)) + "x"


def test_a_value_is_put_in_place_and_wrapped(module: types.ModuleType) -> None:
    with replace_symbol("upstream_module:value", 2), replace_symbol("upstream_module:value", 3):
        assert module.value == 3
    with replace_symbol("upstream_module:log", lambda line: "ours"), wrap_symbol("upstream_module:log", adding("a")):
        assert module.log("x") == "aours"


def test_an_error_inside_puts_it_back(module: types.ModuleType) -> None:
    with pytest.raises(KeyError), wrap_symbol("upstream_module:log", adding("a")):
        raise KeyError


def test_every_kind_of_method_keeps_its_kind(module: types.ModuleType) -> None:
    thing = Thing()
    with (
        wrap_symbol("upstream_module:Thing.static", lambda upstream, value: upstream(value) + 1),
        wrap_symbol("upstream_module:Thing.of_class", lambda upstream, cls, value: upstream(cls, value + 1)),
        wrap_symbol("upstream_module:Thing.method", lambda upstream, self, value: upstream(self, value + 1)),
    ):
        assert Thing.static(1) == thing.static(1) == 2
        assert Inheriting.of_class(1) == (Inheriting, 2)
        assert thing.method(1) == (thing, 2)


def test_an_inherited_method_is_replaced_below_alone(module: types.ModuleType) -> None:
    with wrap_symbol("upstream_module:Inheriting.method", lambda upstream, self, value: upstream(self, -value)):
        assert Inheriting().method(1)[1] == -1 and Thing().method(1)[1] == 1


def test_one_object_alone(module: types.ModuleType) -> None:
    one, other = Thing(), Thing()
    with wrap_symbol("upstream_module:Thing.method", lambda upstream, value: upstream(value + 1), on=one):
        assert one.method(1) == (one, 2) and other.method(1) == (other, 1)
    assert vars(one) == {}
    with pytest.raises(TypeError, match="cannot be replaced on a int, which is no Thing"):
        wrap_symbol("upstream_module:Thing.method", adding(""), on=3)


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(KeyError, match=r"json:loads has no row in .*table\.py"):
        replace_symbol("json:loads", None)


def test_what_upstream_no_longer_has_is_refused(module: types.ModuleType) -> None:
    with pytest.raises(UpstreamChanged, match=r"upstream_module:gone is not there .*because of this test"):
        replace_symbol("upstream_module:gone", None)
    with pytest.raises(UpstreamChanged, match="is no function but 1"):
        wrap_symbol("upstream_module:value", adding(""))


@pytest.mark.parametrize(
    "around", [lambda upstream, text: "", lambda upstream, line, *, stop="": "", lambda upstream, line, end, stop: ""]
)
def test_arguments_of_other_names_are_refused(module: types.ModuleType, around: Callable[..., str]) -> None:
    with pytest.raises(UpstreamChanged, match=r"log takes \(line, end\), and its replacement \("):
        wrap_symbol("upstream_module:log", around)
    assert module.log("x") == "x"

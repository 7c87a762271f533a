"""Replacing an upstream symbol and putting it back, also where several of ours stand around the same one.

A symbol is "module:name" or "module:Class.name". Replacements of one symbol form a stack: each wraps the one before it,
and the innermost wraps what upstream has. When one of them is undone the rest are put together again, so the order in
which they are undone does not matter.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from megatron_compete.upstream.table import TABLE

MISSING = object()
"""What an owner has of its own under a name that it inherits, or that only its class has."""


class UpstreamChanged(RuntimeError):
    """A symbol is not upstream what its replacement was written for: another version is installed."""


class Replacement:
    """One replacement that is in place until `undo`; as a context manager, until the end of its block."""

    def __init__(self, symbol: str, over: Callable[[Any], Any], on: object | None) -> None:
        self.over = over
        """From what is replaced to what stands in its place."""
        self._stack = _stack(symbol, on)
        self._stack.push(self)

    def undo(self) -> None:
        """Take this one out; again is harmless."""
        self._stack.remove(self)

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def replace_symbol(symbol: str, value: Any, on: object | None = None) -> Replacement:
    """Put `value` in the symbol's place.

    Args:
        symbol: "module:name" or "module:Class.name"; it has a row in `TABLE`.
        on: an object of that class, to replace the attribute for it alone.
    Raises:
        UpstreamChanged: upstream has no such symbol.
        KeyError: the table has no row for it.
    """
    return Replacement(symbol, lambda upstream: value, on)


def wrap_symbol(symbol: str, around: Callable[..., Any], on: object | None = None) -> Replacement:
    """Have the symbol's callers call `around(upstream, *args, **named)`, where `upstream` is what they called before.

    Args:
        symbol, on: as for `replace_symbol`. For a method of a class, `args` begins with the object.
        around: names its arguments as upstream does, or takes them by position alone.
    Raises:
        UpstreamChanged: upstream has no such symbol, it is no function, or its arguments have other names.
        KeyError: the table has no row for it.
    """

    def over(upstream: Any) -> Any:
        _check_arguments(symbol, upstream, around)

        def call(*args: Any, **named: Any) -> Any:
            return around(upstream, *args, **named)

        return functools.update_wrapper(call, upstream)

    return Replacement(symbol, over, on)


class _Stack:
    """The replacements of one symbol, innermost first."""

    def __init__(self, key: tuple[int, str], owner: Any, name: str) -> None:
        self.key, self.owner, self.name = key, owner, name
        self.layers: list[Replacement] = []
        self.own = vars(owner).get(name, MISSING)
        """As the owner stores it: a static method as such."""
        self.upstream = self.own.__func__ if isinstance(self.own, (staticmethod, classmethod)) else getattr(owner, name)

    def push(self, layer: Replacement) -> None:
        self.layers.append(layer)
        try:
            self._put_together()
        except UpstreamChanged:
            self.remove(layer)
            raise

    def remove(self, layer: Replacement) -> None:
        if layer in self.layers:
            self.layers.remove(layer)
            self._put_together()

    def _put_together(self) -> None:
        if not self.layers:
            del _stacks[self.key]
            if self.own is MISSING:
                delattr(self.owner, self.name)
            else:
                setattr(self.owner, self.name, self.own)
            return
        value = self.upstream
        for layer in self.layers:
            value = layer.over(value)
        kind = type(self.own) if isinstance(self.own, (staticmethod, classmethod)) else None
        setattr(self.owner, self.name, kind(value) if kind is not None else value)


_stacks: dict[tuple[int, str], _Stack] = {}


def _stack(symbol: str, on: object | None) -> _Stack:
    if symbol not in TABLE:
        raise KeyError(
            f"{symbol} has no row in megatron_compete/upstream/table.py: add one, with its reason and its test"
        )
    owner, name = resolve(symbol)
    if on is not None:
        if not isinstance(on, owner):
            raise TypeError(f"{symbol} cannot be replaced on a {type(on).__name__}, which is no {owner.__name__}")
        owner = on
    key = (id(owner), name)
    if key not in _stacks:
        _stacks[key] = _Stack(key, owner, name)
    return _stacks[key]


def resolve(symbol: str) -> tuple[Any, str]:
    """The module or class that has the symbol, and its name there.

    Raises:
        UpstreamChanged: upstream has no such symbol.
    """
    module, _, path = symbol.partition(":")
    *outer, name = path.split(".")
    try:
        owner = functools.reduce(getattr, outer, importlib.import_module(module))
        getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise UpstreamChanged(f"{symbol} is not there ({error}); {_expected(symbol)}") from error
    return owner, name


def _expected(symbol: str) -> str:
    return (
        f"it is replaced because {TABLE[symbol].why}. Install the versions of constraints.txt, or see whether "
        f"{TABLE[symbol].test} still needs it"
    )


def _check_arguments(symbol: str, upstream: Any, around: Callable[..., Any]) -> None:
    """Stop where `around` names arguments that `upstream` has not, or not in this order."""
    if not callable(upstream):
        raise UpstreamChanged(f"{symbol} is no function but {upstream!r:.80}; {_expected(symbol)}")
    try:
        theirs = inspect.signature(upstream).parameters
    except ValueError:  # some functions in C
        return
    ours = list(inspect.signature(around).parameters.values())
    named = [one.name for one in ours if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
    by_keyword = {one.name for one in ours if one.kind is one.KEYWORD_ONLY}
    if list(theirs)[: len(named)] != named or not by_keyword <= theirs.keys():
        raise UpstreamChanged(
            f"{symbol} takes ({', '.join(theirs)}), and its replacement ({', '.join([*named, *by_keyword])}); "
            f"{_expected(symbol)}"
        )

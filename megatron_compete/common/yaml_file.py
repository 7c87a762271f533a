"""YAML files of users: recipes, chains of jobs, studies. One reader for all, whose errors name file and line.

What YAML 1.1, and PyYAML with it, makes of a word in silence is not made of it here: `12:00:00` is no number to base 60,
`010` no octal one, `2026-01-01` no date; all stay as they are written. `1e-4` is a number, as in YAML 1.2. Words that YAML
1.1 and 1.2 read differently (`yes`, `no`, `on`, `off`), keys that are given twice or are no text, tags of other types, and
characters that no argument can have are errors.

PyYAML parses; it has none of these rules, so they are ours. What keys a file has and of which kinds, pydantic checks
(`sections.py`).
"""

import math
import re
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from megatron_compete.common.errors import CompeteError

MOST_VALUES = 100_000
"""In a file with its aliases filled in; a few lines of aliases to aliases can stand for more than memory holds."""

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
_AMBIGUOUS = re.compile(r"(?:yes|no|on|off)$", re.IGNORECASE)
_ODD_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class YamlFile:
    """A file's content, of mappings, lists, text, numbers, true, false and null.

    Args:
        flag: what named the file, for errors.
    Raises:
        CompeteError: it cannot be read, or is not what this module takes for YAML.
    """

    def __init__(self, path: Path, flag: str) -> None:
        self.path, self.flag = path, flag
        text = self._text()
        try:
            loader = _Loader(text)
            self._root = loader.get_single_node()
            if self._root is not None:
                _check(self._root, {})
            self.content: Any = None if self._root is None else loader.construct_document(self._root)
        except yaml.reader.ReaderError as error:
            self._fail(
                f"has the character U+{error.character:04X}, which YAML does not take",
                text.count("\n", 0, error.position),
            )
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = str(error.problem or error.context)
            self._fail(
                what if isinstance(error, _Refusal) else f"is not YAML: {what}", 0 if mark is None else mark.line
            )
        except RecursionError:
            raise CompeteError(f"{flag} {path}: is nested too deeply") from None

    def _text(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise CompeteError(f"{self.flag} {self.path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            self._fail("is not UTF-8: save it as UTF-8 text", error.object.count(b"\n", 0, error.start))

    def _fail(self, what: str, line: int) -> NoReturn:
        raise CompeteError(f"{self.flag} {self.path}:{line + 1}: {what}") from None

    def fail(self, what: str, *keys: str) -> NoReturn:
        """Raise a `CompeteError` about the value at `keys`, which need not be there."""
        raise CompeteError(f"{self.flag} {self.path}:{self._line(keys)}: {what}")

    def _line(self, keys: tuple[str, ...]) -> int:
        """Line of a key, or of the innermost one above it that is there; from 1."""
        node, line = self._root, 1
        for key in keys:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = [pair for pair in pairs if pair[0].value == key]
            if not found:
                break
            line, node = found[-1][0].start_mark.line + 1, found[-1][1]
        return line

    def section(self, content: Any, *keys: str) -> dict[str, Any]:
        """A mapping, which may be left empty; `keys` say where it is."""
        if content is None:
            return {}
        if not isinstance(content, dict):
            self.fail(f"{'.'.join(keys) or 'the file'} is {kind_of(content)}, not a mapping of names to values", *keys)
        return content


def kind_of(value: Any) -> str:
    """What a value is, in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "true", False: "false"}[value]
    return {str: "text", int: "a number", float: "a number", list: "a list", dict: "a mapping"}[type(value)]


def dump_yaml(content: Any) -> str:
    """YAML that `YamlFile` reads back as `content`, keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=math.inf)
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with this module's kinds of values alone."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  as PyYAML declares it
    yaml_constructors: ClassVar[dict[Any, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or `_Loader` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if _ODD_CHARACTER.search(value):
        _refuse(f"{value!r} has a character that no argument can have", node)
    if node.style is None and _AMBIGUOUS.match(value):
        _refuse(f"{value} is true or false to some and text to others: write true or false, or quote it", node)
    return value


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = float(node.value) if _FLOAT.match(node.value) else math.nan
    if not math.isfinite(value):
        _refuse(f"{node.value} is no number that can be used", node)
    return value


def _sequence(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


class _Refusal(yaml.MarkedYAMLError):
    """YAML, and not what this module takes."""


def _refuse(what: str, node: yaml.Node) -> NoReturn:
    raise _Refusal(None, None, what, node.start_mark)


def _unknown(loader: yaml.SafeLoader, node: yaml.Node) -> NoReturn:
    _refuse(f"the tag {node.tag} is not known here: take it out", node)


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Check keys and aliases; returns how many values a node stands for. A size of 0 marks a node that is being counted."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            _refuse("an alias stands for something that it is a part of", node)
        return sizes[id(node)]
    sizes[id(node)] = 0
    below: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        below = node.value
    elif isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in node.value])
        below = [value for _, value in node.value]
    sizes[id(node)] = 1 + sum(_check(part, sizes) for part in below)
    if sizes[id(node)] > MOST_VALUES:
        _refuse(f"its aliases stand for more than {MOST_VALUES} values", node)
    return sizes[id(node)]


def _check_keys(keys: list[yaml.Node]) -> None:
    seen = set()
    for key in keys:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TAG + "str", _TAG + "merge"):
            _refuse(f"the key {key.value if isinstance(key, yaml.ScalarNode) else 'here'} is no text: quote it", key)
        if key.value in seen:
            _refuse(f"{key.value} is given twice: keep one", key)
        seen.add(key.value)


_SCALARS: tuple[tuple[str, re.Pattern[str], list[str] | None], ...] = (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), ["<"]),
)
"""Plain scalars that are no text, and the characters that they begin with."""

for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))

_PLAIN = {name: pattern for name, pattern, _ in _SCALARS}


def _plain(name: str, meaning: Any) -> Any:
    """A constructor of scalars that match their own pattern, whatever tag the file gives them."""

    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode) or not _PLAIN[name].match(node.value):
            _refuse(f"{node.value if isinstance(node, yaml.ScalarNode) else 'this'} is no {name}", node)
        return meaning(node.value)

    return construct


_Loader.add_constructor(_TAG + "bool", _plain("bool", lambda text: text.lower() == "true"))
_Loader.add_constructor(_TAG + "int", _plain("int", int))
_Loader.add_constructor(_TAG + "null", _plain("null", lambda text: None))
_Loader.add_constructor(_TAG + "float", _float)
_Loader.add_constructor(_TAG + "str", _text)
_Loader.add_constructor(_TAG + "seq", _sequence)
_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_constructor(None, _unknown)

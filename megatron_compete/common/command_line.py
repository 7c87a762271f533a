"""Command lines out of dataclasses: a field is a flag, and what argparse checks is checked of Python callers too.

    @dataclass(frozen=True)
    class Cut:
        output_prefix: str                       # --output-prefix, required
        parts: tuple[str, ...] = option((), metavar="NAME=SIZE")
        order: Literal["drawn", "given"] = "drawn"
        \"\"\"How documents are chosen.\"\"\"        # the help, with the default behind it

        def __post_init__(self) -> None:
            check_options(self)

A flag that is not given leaves no trace in the namespace, so that a default stands in one place, the field.
"""

import argparse
import ast
import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from megatron_compete.common.config_fields import check_fields
from megatron_compete.common.errors import CompeteError, did_you_mean

PROGRAM = "megatron-compete"

Flags = argparse.ArgumentParser | argparse._ArgumentGroup
_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What a field's flag has that its name, type, default and doc do not say."""

    names: tuple[str, ...] = ()
    """Other names than the field's; one without dashes is an argument by position."""
    help: str | None = None
    """Other help than the field's doc."""
    metavar: str | None = None
    negatable: bool = False
    """Give a switch that is off a --no- form too; one that is on always has it."""
    parse: Callable[[str], Any] | None = None
    """The field's value of the flag's text."""
    shown: str | None = None
    """The default as the help shows it, where that is not the field's."""
    repeats: bool = False
    """Each of several values has the flag before it."""
    hidden: bool = False
    """Not a flag."""


def option(default: Any = MISSING, *names: str, **more: Any) -> Any:
    """A field whose flag is described by `Option`; without a default it is required."""
    return dataclasses.field(default=default, metadata={_KEY: Option(names, **more)})


def check_options(options: Any) -> None:
    """Check what a dataclass holds by its annotations, as argparse would.

    Raises:
        CompeteError: names the flag, the value and what is allowed.
    """
    check_fields(options, lambda name: flag_of(type(options), name))


def flag_of(options: type, name: str) -> str:
    """The flag of a dataclass's field."""
    (field,) = (field for field in fields(options) if field.name == name)
    return _flags(name, _option_of(field))[0]


def add_options(flags: Flags, options: type, *, without: Sequence[str] = (), required: bool = True) -> None:
    """Add the fields of a dataclass as flags, but fields that are dataclasses themselves.

    Args:
        without: fields that the command sets itself.
        required: whether fields without a default have to be given.
    """
    hints, docs = get_type_hints(options), _docs(options)
    for field in fields(options):
        described = _option_of(field)
        hint = _without_none(hints[field.name])
        if described.hidden or field.name in without or dataclasses.is_dataclass(hint):
            continue
        names = _flags(field.name, described)
        settings = _settings(field, hint, described, bool(described.names))
        if names[0].startswith("-"):
            settings |= {"dest": field.name, "required": required and _is_required(field)}
        help = described.help or docs.get(field.name, "")
        flags.add_argument(*names, default=argparse.SUPPRESS, help=_shown(help, field, described), **settings)


def take_options[Options](options: type[Options], given: dict[str, Any], **more: Any) -> Options:
    """Build the dataclass of what `add_options` added; its values are taken out of `given`, `vars()` of a namespace."""
    hints = get_type_hints(options)
    for field in fields(options):  # type: ignore[arg-type]
        if field.name in given and field.name not in more:
            value, parse = given.pop(field.name), _option_of(field).parse
            is_tuple = get_origin(_without_none(hints[field.name])) is tuple
            more[field.name] = parse(value) if parse else tuple(value) if is_tuple else value
    return options(**more)


def _option_of(field: "dataclasses.Field[Any]") -> Option:
    return field.metadata.get(_KEY, Option())


def _flags(name: str, described: Option) -> tuple[str, ...]:
    return described.names or ("--" + name.replace("_", "-"),)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _without_none(hint: Any) -> Any:
    """X of `X | None`."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    return hint


def _settings(field: "dataclasses.Field[Any]", hint: Any, described: Option, is_renamed: bool) -> dict[str, Any]:
    """What argparse is told about a field's values."""
    if hint is bool:
        if described.negatable or (field.default is True and not is_renamed):
            return {"action": argparse.BooleanOptionalAction}
        return {"action": "store_false" if field.default is True else "store_true"}
    several = get_origin(hint) is tuple
    settings: dict[str, Any] = {} if not several else {"action": "append"} if described.repeats else {"nargs": "+"}
    one = get_args(hint)[0] if several else hint
    if get_origin(one) is Literal:
        return settings | {"choices": get_args(one), "type": type(get_args(one)[0])}
    kinds = {int: "N", float: "X", Path: "PATH", str: None}
    if described.metavar or kinds.get(one):
        settings["metavar"] = described.metavar or kinds[one]
    return settings | {"type": str if described.parse else one}


def _shown(help: str, field: "dataclasses.Field[Any]", described: Option) -> str:
    """The help with the default, where there is one to show."""
    default = described.shown if described.shown is not None else field.default
    text = " ".join(help.replace("`", "").split()).removesuffix(".").replace("%", "%%")
    first = text.partition(" ")[0]
    if described.help is None and text and first[1:] == first[1:].lower():  # a sentence becomes a note
        text = text[0].lower() + text[1:]
    if "default" in text or default in (None, MISSING, "") or isinstance(default, bool | tuple):
        return text
    return f"{text} (default: {default:g})" if isinstance(default, float) else f"{text} (default: {default})"


@cache
def _docs(options: type) -> dict[str, str]:
    """The string under each field."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, doc in zip(body.body, body.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = str(doc.value.value)
    return docs


class HelpFormatter(argparse.HelpFormatter):
    """Paragraphs are wrapped; lines that are set in, commands and lists, stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(shutil.get_terminal_size().columns, 120) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            one if one.startswith(" ") else textwrap.fill(one, width, break_on_hyphens=False) for one in paragraphs
        )


def _needed(actions: Iterable[argparse.Action]) -> Iterator[str]:
    """What a command line cannot do without, for its usage."""
    for action in actions:
        if action.required:
            value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
            several = " ..." if action.nargs == "+" else ""
            yield f"{' '.join([*action.option_strings[:1], str(value)])}{several}"


class Parser(argparse.ArgumentParser):
    """Whose errors are a `CompeteError`: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise."""
        raise CompeteError(f"{message}: see {self.prog} --help")


@dataclass(frozen=True)
class Command:
    """A verb: its flags, and what it does with them. Called with words, it parses them and runs."""

    name: str
    description: str
    example: str
    """A whole command line, without the program and the verb; the help ends with it."""
    run: Callable[[Any], None]
    """Gets the options, or the namespace where there is no dataclass of them."""
    options: type | None = None
    """The dataclass whose fields are the flags."""
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds flags that no single dataclass has."""
    epilog: str = ""
    takes_overrides: bool = False
    """Whether flags that are not its own override a recipe; they are the namespace's `overrides`."""
    help_action: type[argparse.Action] | Literal["help"] = "help"

    def parser(self) -> Parser:
        """The verb's own parser."""
        parser = Parser(f"{PROGRAM} {self.name}", add_help=False)
        self.fill(parser)
        return parser

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Add flags and help to a parser."""
        parser.description, parser.formatter_class = inspect.cleandoc(self.description), HelpFormatter
        example = textwrap.indent(f"{PROGRAM} {self.name} {self.example}", "    ")
        parser.epilog = f"{inspect.cleandoc(self.epilog)}\n\nexample:\n\n{example}".strip()
        parser.allow_abbrev = not self.takes_overrides
        parser.add_argument(
            "-h", "--help", action=self.help_action, default=argparse.SUPPRESS, help="show this and leave"
        )
        if self.options is not None:
            add_options(parser, self.options)
        if self.add_arguments is not None:
            self.add_arguments(parser)
        parser.usage = " ".join(["%(prog)s", *_needed(parser._actions), "[FLAGS]"])

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The namespace of a command line.

        Raises:
            CompeteError: a flag that is not known, or a value that cannot be used.
        """
        parser = self.parser()
        if not self.takes_overrides:
            self._refuse_unknown(words, parser._option_string_actions)
        options, rest = parser.parse_known_args(words)
        if self.takes_overrides:
            options.overrides = rest
        elif rest:
            raise self._unknown(rest[0], parser._option_string_actions)
        return options

    def __call__(self, words: Sequence[str]) -> None:
        """Parse and run."""
        given = self.parse(words)
        self.run(given if self.options is None else take_options(self.options, vars(given)))

    def _refuse_unknown(self, words: Sequence[str], known: Mapping[str, Any]) -> None:
        """Before argparse, which would rather miss a required flag than name the one that is misspelt."""
        for word in words[: list(words).index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(flag.startswith(name) for flag in known):
                raise self._unknown(word, known)

    def _unknown(self, word: str, known: Mapping[str, Any]) -> CompeteError:
        hint = did_you_mean(word.partition("=")[0], known)
        return CompeteError(f"{self.name} takes no argument {word}{hint}: see {PROGRAM} {self.name} --help")

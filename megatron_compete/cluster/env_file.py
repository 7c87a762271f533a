"""KEY=value lines as bash reads them, one assignment a line, without running bash.

What bash would take for more than an assignment (commands, lists, redirections, values over several lines) is an error: the
batch scripts source the same file, and both must see the same values.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from megatron_compete.common.errors import CompeteError

_KEY = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=")
_PIECE = re.compile(r"""'(?P<literal>[^']*)'|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>(?:[^\s'"\\]|\\.)+)""")
_VARIABLE = re.compile(r"\\(?P<escaped>.)|\$(?:(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})|(?P<odd>[$`])")
_OPERATOR = re.compile(r"(?<!\\)(?:\\\\)*[;&|<>()]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def read_env_file(path: Path) -> dict[str, str]:
    """The file's assignments, variables filled in from the lines above and from the environment.

    Raises:
        CompeteError: names the line, and of a line that may hold a secret its key alone.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise CompeteError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise CompeteError(f"{path}:{number}: is not UTF-8: save it as UTF-8 text") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}:{number}"
        if _CONTROL.search(line):
            odd = "Windows line ends" if line.endswith("\r") else "control characters"
            raise CompeteError(f"{where}: has {odd}, which bash takes for a part of the value: take them out")
        if line.strip() and not line.lstrip().startswith("#"):
            key, value = _assignment(line, where, os.environ | found)
            if key in found:
                raise CompeteError(f"{where}: {key} was set before: keep one line")
            found[key] = value
    return found


def _assignment(line: str, where: str, variables: Mapping[str, str]) -> tuple[str, str]:
    head = _KEY.match(line)
    if head is None:
        raise CompeteError(f"{where}: {line.split('=')[0].strip()[:40]!r} begins no KEY=value")
    key, value, at = head[1], "", head.end()
    while (piece := _PIECE.match(line, at)) is not None:
        value += _meaning(piece, f"{where}: {key}", variables, first=at == head.end())
        at = piece.end()
    rest = line[at:]
    if rest[:1] in ("'", '"', "\\"):
        raise CompeteError(
            f"{where}: {key}: a quote is not closed, or the line goes on in the next: keep it on one line"
        )
    if rest.strip() and not rest.lstrip().startswith("#"):
        raise CompeteError(f"{where}: {key} is no KEY=value: quote a value with spaces in it")
    return key, value


def _meaning(piece: re.Match[str], where: str, variables: Mapping[str, str], first: bool) -> str:
    """What a quoted or bare piece of a value stands for."""
    if piece["literal"] is not None:
        return piece["literal"]
    if piece["quoted"] is not None:
        return _filled_in(piece["quoted"], where, variables, escapes='$`"\\')
    bare = piece["bare"]
    if _OPERATOR.search(bare):
        raise CompeteError(
            f"{where}: has one of ; & | < > ( ) outside of quotes, which bash would act on: quote the value"
        )
    folders = bare.split(":")  # bash knows ~ at the start of a value and behind each colon
    folders = [os.path.expanduser(one) if first or index else one for index, one in enumerate(folders)]
    return _filled_in(":".join(folders), where, variables, escapes=None)


def _filled_in(text: str, where: str, variables: Mapping[str, str], escapes: str | None) -> str:
    """Variables filled in, commands refused.

    Args:
        escapes: characters that a backslash takes their meaning from; None: all.
    """

    def meaning(match: re.Match[str]) -> str:
        if match["escaped"] is not None:
            return match["escaped"] if escapes is None or match["escaped"] in escapes else match[0]
        name = match["name"] or match["braced"]
        if name is None:
            raise CompeteError(f"{where}: only $NAME and ${{NAME}} are filled in, nothing is run here: quote it by ''")
        if name not in variables:
            raise CompeteError(f"{where}: names a variable that is not set, {name[:40]}: write its value")
        return variables[name]

    return _VARIABLE.sub(meaning, text)

"""Every message of a `CompeteError`, read from the code: what went wrong, and the way out that it names."""

import ast
from collections.abc import Iterator
from pathlib import Path

from generate import PACKAGE, first_sentence

NAME = "CompeteError"
SKIPPED = ("custom_code",)


def errors_page() -> str:
    """Messages by room and module."""
    sections = "".join(room_section(room) for room in sorted(path for path in PACKAGE.iterdir() if path.is_dir()))
    return f"""# Errors and their ways out

What is the user's to fix ends with exit code 2 and one line, `error: ...`, that names the file or flag, the value and a
way out. These are all of them, by the room of the package that raises them. `{{...}}` stands for a value.

{sections}"""


def room_section(room: Path) -> str:
    """The messages of a room; nothing where it raises none."""
    modules = [(path, messages) for path in sorted(room.rglob("*.py")) if (messages := list(messages_of(path)))]
    if not modules or room.name in SKIPPED:
        return ""
    about = first_sentence(ast.get_docstring(ast.parse((room / "__init__.py").read_text())))
    lines = [f"\n## {room.name}\n\n{about}\n"]
    for path, messages in modules:
        lines.append(f"\n**`{path.relative_to(PACKAGE.parent)}`**\n")
        lines += [f"- {in_code(message)}" for message in dict.fromkeys(messages)]
    return "\n".join(lines) + "\n"


def in_code(message: str) -> str:
    """As a code span, whatever backticks are in it."""
    return f"`` {message} ``" if "`" in message else f"`{message}`"


def messages_of(path: Path) -> Iterator[str]:
    """Messages of the errors that a module makes, in their order."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == NAME and node.args:
            message = " ".join(text_of(node.args[0]).split())
            if len(message) > len("{...}: {...}") and message.count(" ") > 1:  # others only pass one on
                yield message


def text_of(node: ast.expr) -> str:
    """The text of an expression, with names or `...` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{last_name(node.value)}}}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return f"{{{last_name(node)}}}"


def last_name(node: ast.expr) -> str:
    """What a value is called: `path` of `self.path`, `flag` of `flag.name`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript | ast.Starred):
        return last_name(node.value)
    return "..."

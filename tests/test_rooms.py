"""The package's import graph: rooms know only those below them, no modules import each other, the method no trainer."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import megatron_compete

PACKAGE = Path(megatron_compete.__file__).parent
ROOMS = re.findall(r"^    (\w+)  +\S.*$", megatron_compete.__doc__ or "", flags=re.M)
"""From the ground up, as the package's docstring has them."""

METHOD = ("routing", "schedule", "moe", "trainers", "vlm")
"""Rooms that know Megatron's layers and nothing of its trainer."""


def module_name(path: Path) -> str:
    """`megatron_compete.a.b` for a file; a folder's name for its `__init__.py`."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a module; empty for the package itself, which is above none."""
    return module.split(".")[1] if "." in module else ""


def imports_in(module: str, tree: ast.AST) -> Iterator[str]:
    """Everything that a piece of a module's source imports, by full name; what is imported from a module, as that module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = str(node.module)
            if node.level:  # Hugging Face's custom code is imported so
                source = f"{module.rsplit('.', node.level)[0]}.{source}"
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in MODULES else source


def arrows(module: str) -> set[str]:
    """Our modules that this one imports anywhere: also inside functions, and for type checkers alone."""
    return {name for name in imports_in(module, MODULES[module]) if name in MODULES and name != module}


def test_every_room_is_in_the_list_and_there() -> None:
    assert {room_of(module) for module in MODULES} - {"", "__main__"} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_runs_up(room: str) -> None:
    above = ROOMS[ROOMS.index(room) + 1 :]
    found = [
        f"{module} -> {target}"
        for module in MODULES
        if room_of(module) == room
        for target in sorted(arrows(module))
        if room_of(target) in above
    ]
    assert not found, f"{room} is below {', '.join({room_of(one.split()[-1]) for one in found})}"


def test_no_modules_import_each_other() -> None:
    """When they are imported: imports inside functions and for type checkers may close a circle within a room."""
    graph = {module: set(_at_import(module)) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def _at_import(module: str) -> Iterator[str]:
    for statement in MODULES[module].body:
        is_typing = isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
        if not is_typing and not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield from (name for name in imports_in(module, statement) if name in MODULES and name != module)


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in METHOD])
def test_the_method_knows_no_trainer(module: str) -> None:
    upstream = {name for name in imports_in(module, MODULES[module]) if name.split(".")[0] == "megatron"}
    assert not {name for name in upstream if not name.startswith("megatron.core")}
    texts = [node.value for node in ast.walk(MODULES[module]) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and text.startswith("megatron.training")]
    if room_of(module) in ("routing", "schedule"):
        assert not upstream, "the paper's functions are plain torch"

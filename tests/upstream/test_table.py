"""The table is whole: nothing is replaced beside it, and no row is without use, upstream symbol or test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import megatron_compete
from megatron_compete.upstream import resolve
from megatron_compete.upstream.table import ROWS, TABLE

PACKAGE = Path(megatron_compete.__file__).parent
MECHANISM = PACKAGE / "upstream"
TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if MECHANISM not in path.parents)

SETTINGS = {
    "sys.argv",
    "sys.stdout",
    "sys.stderr",
    "mpi4py.rc.initialize",
    "PIL.Image.MAX_IMAGE_PIXELS",  # Pillow's reference documents it as a limit to be set
}
"""Attributes of modules that are there to be set."""

OWN_OBJECTS = {
    "bridge/recipe.py": "a field of the user's recipe",
    "cluster/status.py": "the fields of its own dataclass",
    "moe/baselines/cosine.py": "a parameter of its own layer, as Megatron marks its own",
    "moe/fp8.py": "the state of modules, put back as it was",
    "moe/precision.py": "the state of modules, put back as it was",
    "verify/single.py": "parsed arguments",
}
"""Files that use `setattr`, and on what."""


@pytest.mark.parametrize("symbol", TABLE)
def test_every_symbol_is_there_upstream(symbol: str) -> None:
    resolve(symbol)


def test_no_symbol_has_two_rows() -> None:
    assert sum(len(row.symbols) for row in ROWS) == len(TABLE)


def test_every_test_is_there() -> None:
    for row in ROWS:
        path, _, name = row.test.partition("::")
        tree = ast.parse((TESTS.parent / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row.test


def test_every_row_is_used() -> None:
    strings = {
        node.value
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(TABLE) <= strings


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_replaced_elsewhere(path: Path) -> None:
    found = list(assignments_to_imported(ast.parse(path.read_text())))
    if str(path.relative_to(PACKAGE)) not in OWN_OBJECTS:
        found += list(dynamic_assignments(ast.parse(path.read_text())))
    assert not found, f"{path}: {found}: replace upstream symbols through megatron_compete.upstream"


PATCHES = {
    "a module's function": "from megatron.training import training\ntraining.train = f",
    "under another name": "import megatron.core as core\ncore.a.b = f",
    "a class's method": "from megatron.core import Optimizer\nOptimizer.step = f",
    "within a function": "def g():\n    import torch\n    torch.cuda.stream = f",
    "through a name of its own": "from megatron.core import Optimizer\ndef g():\n    one = Optimizer\n    one.step = f",
    "several at once": "from megatron.training import training\ntraining.a, (x, training.b) = f",
    "in a loop": "import torch\nfor torch.cuda.stream in (f,): pass",
    "deleted": "import torch\ndel torch.cuda.stream",
    "by setattr": "def g(owner): setattr(owner, 'a', f)",
    "in its dictionary": "import torch\nvars(torch.cuda)['stream'] = f\ntorch.cuda.__dict__['stream'] = f",
    "by mock": "from unittest import mock",
}


@pytest.mark.parametrize("kind", PATCHES)
def test_no_way_of_patching_is_missed(kind: str) -> None:
    tree = ast.parse(PATCHES[kind])
    assert [*assignments_to_imported(tree), *dynamic_assignments(tree)]


@pytest.mark.parametrize(
    "source",
    [
        "from megatron_compete.moe import layer\nlayer.x = 1",
        "def g(config): config.x = 1",
        "import torch\nx = torch.cuda.stream",
        "import torch\nx = torch.zeros(1)\nx[0] = torch.ones(1)\nx.data = 3",
        "import sys\nsys.argv = []",
        "class A:\n    def __init__(self): setattr(self, 'x', 1)",
    ],
)
def test_what_is_ours_may_be_set(source: str) -> None:
    tree = ast.parse(source)
    assert not [*assignments_to_imported(tree), *dynamic_assignments(tree)]


def assignments_to_imported(tree: ast.Module) -> Iterator[str]:
    """Assignments to attributes of anything that is imported from outside of the package."""
    imported = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            text = ast.unparse(node)
            target = node if isinstance(node, ast.Attribute) else node.value
            is_dictionary = isinstance(node, ast.Subscript)
            if is_dictionary and "__dict__" not in text and not text.startswith("vars("):
                continue
            if _root(target) in imported and text not in SETTINGS:
                yield text


def dynamic_assignments(tree: ast.Module) -> Iterator[str]:
    """`setattr`, `delattr` and mocks, which may be to anything."""
    for node in ast.walk(tree):
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1].strip("_") in (
            "setattr",
            "delattr",
        )
        if is_call and ast.unparse(node.args[0]) != "self":
            yield ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "unittest" in ast.unparse(node):
            yield ast.unparse(node)


def _imported(tree: ast.Module) -> set[str]:
    """Names of what is imported from outside of the package, and names that are given to it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names if not _is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and not _is_ours(node.module or ""):
            names |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):  # `one = DistributedOptimizer`, `module = torch.cuda`
        is_name = isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Attribute))
        if is_name and _root(node.value) in names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "megatron_compete"


def _root(node: ast.AST) -> str:
    """The name that `a.b.c` or `vars(a.b)` begins with; empty for anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "vars":
        return _root(node.args[0])
    return node.id if isinstance(node, ast.Name) else ""

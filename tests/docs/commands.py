"""The commands of a Markdown file, and whether each would be taken: by the parser it goes to, and the files it names."""

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = (
    "python", "megatron-compete", "make", "bash", "sbatch", "cp", "torchrun", "pytest", "docker", "examples/evaluate.sh",
)  # fmt: skip
BEFORE = ("taskset", "mpirun", "srun", "salloc")
"""Commands that start another, which is looked at."""

PLACEHOLDERS = {"N": "4", "LR": "1e-4", "B": "2", "G": "4"}
FOLDERS = (
    r"(?:examples|tools|benchmarks|slurm|docker|tests|docs|megatron_compete)/[\w./-]+\.(?:yaml|py|sh|sbatch|example|md)"
)
"""Files that a command may name, of this repository."""


class Parsed(Exception):
    """The command line was taken."""


def commands_of(path: Path) -> list[str]:
    """Lines of indented and fenced code that start one of our commands, with lines that are continued put together."""
    found, fenced = [], False
    for line in re.sub(r" *\\\n *", " ", path.read_text()).splitlines():
        if line.startswith("```"):
            fenced = not fenced
            continue
        if line.startswith("    ") or fenced:
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # code of another language
                continue
            found += [shlex.join(part) for part in parts_of(words) if own_words(part)]
    return found


def parts_of(words: list[str]) -> list[list[str]]:
    """The commands of a line that `&&` joins."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def own_words(words: list[str]) -> list[str]:
    """Words from our command on: without settings, what goes before it, and the folder of an environment."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    words = [word.removeprefix(".venv/bin/") for word in words[:1]] + words[1:]
    if words[:1] == ["python3"]:
        words = ["python", *words[1:]]
    if words and words[0] in BEFORE:
        at = next((at for at, word in enumerate(words) if word in FIRST), len(words))
        words = words[at:]
    return words if words and words[0] in FIRST else []


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where the command would not be taken."""
    words = own_words(shlex.split(command, comments=True))
    for name in re.findall(FOLDERS, command):
        assert (ROOT / name).exists(), f"{command}: there is no {name}"
    if "..." in words or "MEGATRON_ARGUMENTS" in words:  # flags are left out
        return
    words = [PLACEHOLDERS.get(word, word) for word in words]
    program, rest = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets, f"{command}: no such target"
    elif program == "megatron-compete":
        check_verb(rest)
    elif program == "torchrun":
        check_torchrun(rest)
    elif program == "pytest":
        check_paths(rest)
    elif program == "python" and rest[:2] == ["-m", "pip"]:
        check_extras(command)
    elif program == "python" and rest[:2] == ["-m", "pytest"]:
        check_paths(rest[2:])
    elif program == "python" and rest[:2] == ["-m", "megatron_compete"]:
        check_verb(rest[2:])
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1].partition(".")[0]), command
    elif program == "python" and rest[0].endswith(".py"):
        check_script(rest[0], rest[1:], monkeypatch)


def check_verb(words: list[str]) -> None:
    """A verb's own flags by its parser; what overrides a recipe is a recipe's to refuse, and Megatron's."""
    from megatron_compete.cli.verbs import find_verb
    from megatron_compete.launch.recipe import read_recipe

    if words == ["--version"] or words[-1] == "--help":
        return
    options = find_verb(words[0]).load().parse(words[1:])
    path, overrides = getattr(options, "recipe", None), getattr(options, "overrides", [])
    if path is None:
        assert not overrides, f"{words}: {overrides[0]} is not known"
    elif (ROOT / path).exists():
        recipe = read_recipe(ROOT / path)
        recipe.override(overrides)
        command = recipe.command()
        check_training_flags(command[command.index("-m") + 2 :])
    else:  # one that a command before it writes
        check_training_flags(overrides)


def check_torchrun(words: list[str]) -> None:
    """Our entry, a script of `examples/`, or a trainer of somebody else's that takes Megatron's arguments alone."""
    if "-m" in words:
        at = words.index("-m") + 1
        assert importlib.util.find_spec(words[at]), f"no module {words[at]}"
        check_training_flags(words[at + 1 :])
    else:
        at = next(at for at, word in enumerate(words) if word.endswith(".py"))
        if words[at].startswith("examples/"):
            check_example(words[at:])
        else:
            check_training_flags(words[at + 1 :], own=False)


def check_example(words: list[str]) -> None:
    """The parser of a script of ours."""
    with mock.patch.object(sys, "argv", words):
        runpy.run_path(str(ROOT / words[0]))["arguments"]()


def check_training_flags(words: list[str], own: bool = True) -> None:
    """Megatron's parser, with our flags or without, in another process: it can be loaded once."""
    from tests.ranks import run_rank

    assert run_rank(unknown_flags, words, own) == []


def unknown_flags(words: list[str], own: bool) -> list[str]:
    from megatron.training.arguments import parse_args

    from megatron_compete.training.arguments import add_arguments

    sys.argv = ["pretrain", *words]
    try:
        parse_args(add_arguments if own else None)
    except SystemExit:
        return words
    return []


def check_paths(words: list[str]) -> None:
    """What pytest is to run is there."""
    for word in words:
        assert not word.startswith("tests") or (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def check_extras(command: str) -> None:
    """The extras that pip is to install are declared."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"\.\[([\w,-]+)\]", command):
        assert set(extras.split(",")) <= set(declared), f"{command}: no such extra"


def check_script(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script: one that stands for a verb, or a benchmark with a parser of its own."""
    verb = re.search(r'^ +main\("(\w+)"\)', (ROOT / name).read_text(), re.MULTILINE)
    if verb:
        check_verb([verb[1], *words])
    else:
        takes(name.removesuffix(".py").replace("/", "."), words, monkeypatch)


def takes(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the `main` of a module takes these words."""
    real = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *arguments: Any, **named: Any) -> NoReturn:
        real(parser, *arguments, **named)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises(Parsed):
            importlib.import_module(module).main()

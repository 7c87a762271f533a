"""The commands of a Markdown file, and whether each would be taken: by the parser it goes to, and the files it names."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("python", "megatron-compete", "make", "bash", "sbatch", "cp", "torchrun", "examples/evaluate.sh")
BEFORE = ("taskset", "mpirun", "srun", "salloc", "docker")
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
            if words and starts_a_command(words):
                found.append(line.strip())
    return found


def starts_a_command(words: list[str]) -> bool:
    return own_words(words)[:1] != []


def own_words(words: list[str]) -> list[str]:
    """Words from our command on: without settings and what goes before it."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words and words[0] in BEFORE:
        at = next((at for at, word in enumerate(words) if word in FIRST), len(words))
        words = words[at:]
    return words if words and (words[0] in FIRST or words[0].startswith("tools/")) else []


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where the command would not be taken."""
    words = own_words(shlex.split(command, comments=True))
    for name in re.findall(FOLDERS, command):
        assert (ROOT / name).exists(), f"{command}: there is no {name}"
    if "..." in words:  # flags are left out
        return
    words = [PLACEHOLDERS.get(word, word) for word in words]
    program, rest = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets, f"{command}: no such target"
    elif program == "megatron-compete":
        check_verb(rest)
    elif program == "python" and rest[:2] == ["-m", "megatron_compete"]:
        check_verb(rest[2:])
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1].partition(".")[0]), command
        takes(f"{rest[1]}.__main__" if (ROOT / rest[1].replace(".", "/")).is_dir() else rest[1], rest[2:], monkeypatch)
    elif program == "python" and rest[0].endswith(".py"):
        script = ROOT / rest[0]
        found = re.search(r'^    main\("(\w+)"\)$', script.read_text(), re.MULTILINE)
        if found:
            check_verb([found[1], *rest[1:]])
        else:
            takes(rest[0].removesuffix(".py").replace("/", "."), rest[1:], monkeypatch)


def check_verb(words: list[str]) -> None:
    """A verb's own flags by its parser; what overrides a recipe is a recipe's to refuse, and Megatron's."""
    from megatron_compete.cli.verbs import find_verb
    from megatron_compete.launch.recipe import read_recipe

    if words[0] in ("--help", "--version"):
        return
    verb = find_verb(words[0]).load()
    if words[1:] == ["--help"]:
        return
    arguments = verb.parse(words[1:])
    path, overrides = getattr(arguments, "recipe", None), getattr(arguments, "overrides", [])
    if path is None:
        assert not overrides, f"{words}: {overrides[0]} is not known"
    elif (ROOT / path).exists():
        recipe = read_recipe(ROOT / path)
        recipe.override(overrides)
        command = recipe.command()
        check_training_flags(command[command.index("-m") + 2 :])
    else:  # one that a command before it writes
        check_training_flags(overrides)


def check_training_flags(words: list[str]) -> None:
    """Megatron's parser with ours, in another process: it can be loaded once."""
    from tests.ranks import run_rank

    assert run_rank(unknown_flags, words) == []


def unknown_flags(words: list[str]) -> list[str]:
    from megatron.training.arguments import parse_args

    from megatron_compete.training.arguments import add_arguments

    sys.argv = ["pretrain", *words]
    try:
        parse_args(add_arguments)
    except SystemExit:
        return words
    return []


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

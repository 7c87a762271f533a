"""Jobs around training: preprocess, convert, evaluate. What a section of a chain file becomes as arguments of
`slurm/KIND.sbatch`, and what one job hands to the next."""

import glob
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe, Value

Arguments = dict[str, Value]

EVALUATE_FLAGS = (
    "checkpoint", "hf", "output", "tasks", "include", "limit", "batch", "device", "dtype", "trust-remote-code", "text",
    "windows", "length", "tolerance",
)  # fmt: skip
"""Arguments of slurm/evaluate.sbatch."""


@dataclass
class Flow:
    """What jobs of a chain have made, or will have when the next one begins."""

    data: list[str] = field(default_factory=list)
    """Prefixes of datasets, for --data-path."""
    tokenizer: Arguments = field(default_factory=dict)
    """The tokenizer that made them, as the trainer's arguments."""
    checkpoint: Path | None = None
    hf: Path | None = None


def preprocess_arguments(arguments: Arguments, tokenizer: Arguments | None, run: Path, flow: Flow) -> list[str]:
    """Arguments of slurm/preprocess.sbatch: a tokenizer's training and `--` first, where one is to be trained.

    Raises:
        CompeteError: no input, or nothing that says which tokenizer.
    """
    arguments = dict(arguments)
    arguments["input"] = existing_inputs(arguments.get("input"))
    arguments.setdefault("output-prefix", str(run / "data" / "corpus"))
    words = []
    if tokenizer is not None:
        words = [*_tokenizer_words(dict(tokenizer), arguments, run), "--"]
    if "tokenizer-type" not in arguments:
        raise CompeteError(
            "preprocess: no tokenizer: give arguments: tokenizer-type and tokenizer-model, or tokenizer: {vocab-size: N} "
            "to train one"
        )
    flow.tokenizer = {
        name: value for name, value in arguments.items() if name.startswith(("tokenizer-", "vocab-", "merge-", "tiktoken-"))
        and name not in ("tokenizer-engine", "tokenizer-engine-sample")
    }  # fmt: skip
    flow.data = [f"{arguments['output-prefix']}_{key}_document" for key in _words(arguments.get("json-keys", "text"))]
    return words + flag_words(arguments)


def _tokenizer_words(tokenizer: Arguments, arguments: Arguments, run: Path) -> list[str]:
    """Flags of `megatron-compete tokenizer`; the corpus's own become those that use its model."""
    if "vocab-size" not in tokenizer:
        raise CompeteError("preprocess: tokenizer: vocab-size is missing: 32000 for example")
    given = [name for name in ("tokenizer-type", "tokenizer-model") if name in arguments]
    if given:
        raise CompeteError(f"preprocess: tokenizer: trains one, and arguments: {given[0]} names another: keep one")
    tokenizer["input"] = existing_inputs(tokenizer.get("input", arguments["input"]))
    prefix = str(tokenizer.setdefault("output-prefix", str(run / "tokenizer" / "tokenizer")))
    arguments["tokenizer-type"] = "SentencePieceTokenizer"
    arguments["tokenizer-model"] = prefix.removesuffix(".model") + ".model"
    return flag_words(tokenizer)


def existing_inputs(value: Value) -> list[str]:
    """Files, folders and patterns of an input, absolute.

    Raises:
        CompeteError: none given, or one that matches nothing.
    """
    patterns = [str(Path(word).expanduser().absolute()) for word in _words(value)]
    if not patterns:
        raise CompeteError("preprocess: arguments: input is missing: name files, folders or patterns of the raw text")
    for pattern in patterns:
        if not glob.glob(pattern, recursive=True):
            raise CompeteError(f"preprocess: input {pattern}: no such file")
    return patterns


def flow_into_recipe(recipe: Recipe, flow: Flow) -> None:
    """Data and tokenizer of the job before, unless the recipe's overrides name others."""
    if flow.data and "data-path" not in recipe.arguments:
        if len(flow.data) > 1:
            raise CompeteError(
                f"pretrain: preprocess makes {len(flow.data)} datasets: name one by arguments: data-path"
            )
        recipe.arguments["data-path"] = flow.data[0]
        recipe.arguments.update(flow.tokenizer)


def convert_arguments(arguments: Arguments, run: Path, flow: Flow) -> list[str]:
    """Arguments of slurm/convert.sbatch.

    Raises:
        CompeteError: no checkpoint to convert, or another direction than to Hugging Face.
    """
    arguments = dict(arguments)
    if arguments.setdefault("to", "hf") != "hf":
        raise CompeteError(
            f"convert: to: {arguments['to']}: a chain converts to hf; for the other way run the tool itself"
        )
    checkpoint = _given_or_made(arguments, "checkpoint", flow.checkpoint, "convert", "pretrain")
    arguments["checkpoint"] = str(checkpoint)
    output = Path(str(arguments.setdefault("output", str(run / "hf")))).absolute()
    arguments["output"] = str(output)
    flow.hf, flow.checkpoint = output, checkpoint
    return flag_words(arguments)


def evaluate_arguments(arguments: Arguments, run: Path, flow: Flow) -> list[str]:
    """Arguments of slurm/evaluate.sbatch.

    Raises:
        CompeteError: no model to evaluate, or an argument that the script does not have.
    """
    arguments = dict(arguments)
    for name in arguments:
        if name not in EVALUATE_FLAGS:
            raise CompeteError(f"evaluate: arguments: {name} is none of {', '.join(EVALUATE_FLAGS)}")
    arguments["hf"] = str(_given_or_made(arguments, "hf", flow.hf, "evaluate", "convert"))
    arguments.setdefault("output", str(run / "results"))
    for name in ("text", "include"):
        if name in arguments:
            path = Path(str(arguments[name])).expanduser().absolute()
            if not path.exists():
                raise CompeteError(f"evaluate: {name}: {path} is not there")
            arguments[name] = str(path)
    if "text" in arguments:  # Megatron's perplexity and logits beside Hugging Face's
        arguments["checkpoint"] = str(_given_or_made(arguments, "checkpoint", flow.checkpoint, "evaluate", "pretrain"))
    if isinstance(arguments.get("tasks"), list):
        arguments["tasks"] = ",".join(_words(arguments["tasks"]))
    return flag_words(arguments)


def _given_or_made(arguments: Arguments, name: str, made: Path | None, kind: str, before: str) -> Path:
    """A folder that an argument names and that is there, or that an earlier job makes."""
    if name in arguments:
        path = Path(str(arguments[name])).expanduser().absolute()
        if not path.is_dir():
            raise CompeteError(f"{kind}: {name}: {path} is not there")
        return path
    if made is None:
        raise CompeteError(f"{kind}: no {before} in the chain before it: name the folder by arguments: {name}")
    return made


def tool_command(kind: str, words: list[str], code: Path) -> str:
    """For `command.txt`: what the batch script runs, as a shell line."""
    if kind == "evaluate":  # two tools, or one of them: the script's own arguments say it in one line
        return shlex.join(["bash", str(code / "slurm" / "evaluate.sbatch"), *words]) + "\n"
    tool = {"preprocess": "preprocess_data.py", "convert": "convert_checkpoint.py"}[kind]
    commands = [["python", str(code / "tools" / tool), *words]]
    if "--" in words:
        cut = words.index("--")
        commands = [
            ["python", str(code / "tools" / "train_tokenizer.py"), *words[:cut]],
            ["python", str(code / "tools" / tool), *words[cut + 1 :]],
        ]
    return " && ".join(shlex.join(command) for command in commands) + "\n"


def flag_words(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments by name as words of a command line, as recipes have them: true is the bare flag, false none."""
    words: list[str] = []
    for name, value in arguments.items():
        if value is not None and value is not False:
            words += [f"--{name}", *([] if value is True else _words(value))]
    return words


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]

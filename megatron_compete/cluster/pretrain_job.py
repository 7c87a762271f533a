"""A recipe as a job on several nodes: what the run folder decides, and what can be checked before the queue."""

from collections.abc import Iterator
from pathlib import Path

from megatron_compete.cluster.settings import Settings
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.local_paths import check_local
from megatron_compete.common.yaml_file import dump_yaml
from megatron_compete.data.megatron_tokenizer import check_named
from megatron_compete.launch.recipe import Recipe, Value

OF_THE_JOB = (
    "node-rank",
    "master-addr",
    "master-port",
    "rdzv-backend",
    "rdzv-endpoint",
    "rdzv-id",
    "local-addr",
    "standalone",
)
"""Options of torchrun that the batch script gives."""

PATHS = (
    "save", "load", "tensorboard-dir", "data-cache-path", "tokenizer-model", "vocab-file", "merge-file",
    "pretrained-checkpoint", "data-args-path", "per-split-data-args-path", "image-folder", "image-processor", "energon-path",
)  # fmt: skip
"""Arguments that name one file or folder."""

MUST_EXIST = (
    "vocab-file", "merge-file", "pretrained-checkpoint", "data-args-path", "per-split-data-args-path", "image-folder",
    "image-processor", "energon-path",
)  # fmt: skip
BLENDS = ("data-path", "train-data-path", "valid-data-path", "test-data-path")
DATA = ("mock-data", *BLENDS, "data-args-path", "per-split-data-args-path", "energon-path")
FILE_TOKENIZERS = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", "TikTokenizer")
"""Tokenizers whose --tokenizer-model is a file; others take names on a hub too."""


def resolve(recipe: Recipe, run: Path, nodes: int, settings: Settings) -> None:
    """Put into a recipe what the run folder and the cluster decide. Paths become absolute.

    Raises:
        CompeteError: the recipe decides what is the job's, or would not go on from its own checkpoints.
    """
    for name in OF_THE_JOB:
        if recipe.launch.get(name) not in (None, False):
            raise CompeteError(f"{name}: {recipe.launch[name]} in the recipe is the job's to say: take it out")
    recipe.launch["nnodes"] = nodes
    recipe.launch["nproc-per-node"] = settings.tasks_per_node
    arguments = recipe.arguments
    for name, value in arguments.items():
        check_local(f"--{name}", value)
    arguments["save"] = _absolute(arguments.get("save") or run / "checkpoints")
    arguments["load"] = _absolute(arguments.get("load") or arguments["save"])
    if arguments["load"] != arguments["save"]:
        raise CompeteError(
            f"--load {arguments['load']} is not --save {arguments['save']}: after every requeue the job would begin there "
            "again; to start from its weights give --pretrained-checkpoint, to continue it give it as --save"
        )
    arguments["tensorboard-dir"] = _absolute(arguments.get("tensorboard-dir") or run / "tensorboard")
    arguments["exit-signal-handler"] = True
    for name in PATHS:
        if isinstance(arguments.get(name), str) and Path(str(arguments[name])).exists():
            arguments[name] = _absolute(arguments[name])
    for name in BLENDS:
        if name in arguments:
            is_data = _is_file if _sees(recipe) else _is_dataset
            arguments[name] = [_absolute(item) if is_data(item) else item for item in _items(arguments[name])]


def check_files(recipe: Recipe) -> None:
    """Raise a `CompeteError` for data, a tokenizer or a checkpoint that is not there."""
    arguments = recipe.arguments
    if not any(arguments.get(name) for name in DATA):
        if _sees(recipe):
            raise CompeteError(
                "no training data: give --train-data-path FILE.json with conversations, and --image-folder"
            )
        raise CompeteError("no training data: give --data-path PREFIX (of the .bin/.idx pair), or --mock-data")
    for name in BLENDS:
        for prefix in _prefixes(_items(arguments.get(name))):
            for suffix in ("",) if _sees(recipe) else (".bin", ".idx"):
                if not Path(prefix + suffix).is_file():
                    raise CompeteError(f"--{name} {prefix}: {prefix}{suffix} is not there")
    for name in MUST_EXIST:
        if arguments.get(name) is not None and not Path(str(arguments[name])).exists():
            raise CompeteError(f"--{name} {arguments[name]} is not there")
    kind, model = (arguments.get(name) for name in ("tokenizer-type", "tokenizer-model"))
    if not arguments.get("use-checkpoint-args"):
        check_named(None if kind is None else str(kind), None if model is None else str(model))
    if model is not None and kind in FILE_TOKENIZERS and not Path(str(model)).is_file():
        raise CompeteError(f"--tokenizer-model {model} is not there")


def recipe_text(recipe: Recipe) -> str:
    """A resolved recipe as YAML."""
    content = {"launch": recipe.launch, "arguments": recipe.arguments}
    return "# Resolved by megatron-compete submit.\n" + dump_yaml(content)


def checkpoint_folder(recipe: Recipe) -> Path:
    """Where a resolved recipe's checkpoints go."""
    return Path(str(recipe.arguments["save"]))


def _absolute(path: object) -> str:
    return str(Path(str(path)).expanduser().absolute())


def _items(value: Value) -> list[str]:
    return [] if value is None or isinstance(value, bool) else [str(item) for item in (value if isinstance(value, list) else [value])]  # fmt: skip


def _prefixes(items: list[str]) -> Iterator[str]:
    """Prefixes of a blend, without its weights."""
    yield from (item for item in items if not _is_number(item))


def _sees(recipe: Recipe) -> bool:
    """Whether the model has a vision tower: its data are JSON files and not prefixes."""
    return bool(recipe.arguments.get("vision-model-type"))


def _is_file(item: str) -> bool:
    return not _is_number(item) and Path(item).is_file()


def _is_dataset(item: str) -> bool:
    return not _is_number(item) and Path(f"{item}.idx").is_file()


def _is_number(item: str) -> bool:
    try:
        float(item)
    except ValueError:
        return False
    return True

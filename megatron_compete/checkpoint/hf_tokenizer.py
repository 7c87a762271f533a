"""A Hugging Face tokenizer's folder as data: its files, its special ids, and the generation settings that go with it.

An import puts all of it into one folder, which the run's --tokenizer-model names through training to the export: what
training does not touch arrives as it was.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_compete.common.errors import CompeteError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""What such a tokenizer consists of, where it has it; data, no code."""

TEMPLATES = "additional_chat_templates"
"""Folder of chat templates beside the first."""

GENERATION = "generation_config.json"

Ids = dict[str, int | list[int] | None]
"""bos_token_id, eos_token_id, pad_token_id."""

ID_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer's files."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files that a tokenizer has in `source`, links as what they point to (the hub's cache holds links)."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for template in sorted((source / TEMPLATES).glob("*.jinja")):
        (target / TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(template, target / TEMPLATES / template.name)


def generation_settings(folder: Path) -> dict[str, Any]:
    """Content of `generation_config.json`; empty where there is none.

    Raises:
        CompeteError: it is not a JSON object.
    """
    path = folder / GENERATION
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompeteError(f"{path} cannot be read: {error}. Repair or remove it") from error
    if not isinstance(settings, dict):
        raise CompeteError(f"{path} is not a JSON object. Repair or remove it")
    return settings


def ids_in(*settings: Mapping[str, Any]) -> Ids:
    """Special ids in configurations; one later in the row goes before."""
    ids: Ids = dict.fromkeys(ID_NAMES)
    for one in settings:
        ids |= {name: one[name] for name in ID_NAMES if one.get(name) is not None}
    return ids


def id_settings(ids: Ids) -> dict[str, Any]:
    """Generation settings of a model that brings none: where a generation starts and ends."""
    return {name: value for name, value in ids.items() if value is not None}


def write_generation(source: Path, target: Path, ids: Ids) -> None:
    """The source's generation settings as they are, or where it has none its special ids."""
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, target / GENERATION)
    elif settings := id_settings(ids):
        (target / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def special_ids(folder: Path) -> Ids:
    """Ids of a tokenizer's special tokens, as transformers reads its files; their code is not run.

    Raises:
        CompeteError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the classes fail in many ways
        raise CompeteError(
            f"the Hugging Face tokenizer in {folder} cannot be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}): name another folder with --tokenizer-model, or export "
            "the weights alone with --no-tokenizer"
        ) from error
    return {name: getattr(tokenizer, name) for name in ID_NAMES}

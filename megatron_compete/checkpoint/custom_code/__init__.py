"""Python files that go into an export whose architecture is not one of transformers'.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads them through `auto_map`. They import torch
and transformers alone, and each other by name.
"""

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.families import Family


@dataclass(frozen=True)
class Code:
    """What goes into the export of one architecture."""

    files: tuple[str, ...]
    classes: dict[str, str]
    """`auto_map` of config.json: where transformers finds the classes."""


LLAVA = "modeling_competellava.CompeteLlavaForConditionalGeneration"

CODE = {
    "competesmoe": Code(
        ("configuration_competesmoe.py", "modeling_competesmoe.py"),
        {
            "AutoConfig": "configuration_competesmoe.CompeteSMoEConfig",
            "AutoModel": "modeling_competesmoe.CompeteSMoEModel",
            "AutoModelForCausalLM": "modeling_competesmoe.CompeteSMoEForCausalLM",
        },
    ),
    "competellava": Code(
        ("configuration_competellava.py", "modeling_competellava.py"),
        {
            "AutoConfig": "configuration_competellava.CompeteLlavaConfig",
            "AutoModel": LLAVA,  # lmms-eval asks for it, and wants a model with a head
            "AutoModelForImageTextToText": LLAVA,
        },
    ),
}
"""By `model_type`."""


def auto_map(family: Family) -> dict[str, str]:
    """`auto_map` of the family's config.json; empty for a stock architecture."""
    return CODE[family.name].classes if family.code else {}


def write_code(family: Family, folder: Path) -> None:
    """Put the family's files into an export."""
    write_files(family.code, folder)


def write_files(names: tuple[str, ...], folder: Path) -> None:
    """Put files of this folder into an export."""
    for name in names:
        (folder / name).write_bytes(_source(name))


def is_own_code(folder: Path) -> bool:
    """Whether the folder's model has code, and all that loading it would run is this package's, byte for byte."""
    config, tokenizer = (_read_json(folder / name) for name in ("config.json", "tokenizer_config.json"))
    code = CODE.get(str(config.get("model_type")))
    if code is None or config.get("auto_map") != code.classes or "auto_map" in tokenizer:
        return False
    return all((folder / name).is_file() and (folder / name).read_bytes() == _source(name) for name in code.files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _source(name: str) -> bytes:
    return importlib.resources.files(__name__).joinpath(name).read_bytes()

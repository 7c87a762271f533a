"""Python files that go into an export whose architecture is not one of transformers'.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads them through `auto_map`. They import torch
and transformers alone, and each other by name.
"""

import importlib.resources
import json
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.families import FAMILIES, Family


def auto_map(family: Family) -> dict[str, str]:
    """`auto_map` of the family's config.json: where transformers finds the classes; empty for a stock architecture."""
    stem = family.architecture.removesuffix("ForCausalLM")
    classes = {
        "AutoConfig": f"configuration_{family.name}.{stem}Config",
        "AutoModel": f"modeling_{family.name}.{stem}Model",
        "AutoModelForCausalLM": f"modeling_{family.name}.{family.architecture}",
    }
    return classes if family.code else {}


def write_code(family: Family, folder: Path) -> None:
    """Put the family's files into an export."""
    for name in family.code:
        (folder / name).write_bytes(_source(name))


def is_own_code(folder: Path) -> bool:
    """Whether the folder's model has code, and all that loading it would run is this package's, byte for byte."""
    config, tokenizer = (_read_json(folder / name) for name in ("config.json", "tokenizer_config.json"))
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or not family.code or config.get("auto_map") != auto_map(family) or "auto_map" in tokenizer:
        return False
    return all((folder / name).is_file() and (folder / name).read_bytes() == _source(name) for name in family.code)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _source(name: str) -> bytes:
    return importlib.resources.files(__name__).joinpath(name).read_bytes()

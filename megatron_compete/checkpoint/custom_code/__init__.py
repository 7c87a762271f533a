"""Python files that go into an export whose architecture is not one of transformers'.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads them through `auto_map`. They import torch
and transformers alone, and each other by name.
"""

import importlib.resources
import json
from pathlib import Path

FILES = ("configuration_competesmoe.py", "modeling_competesmoe.py")


def is_own_code(folder: Path) -> bool:
    """Whether the code that a folder's config.json names is this package's, byte for byte: running it takes no one's word."""
    try:
        auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]
        modules = {f"{reference.rpartition('.')[0]}.py" for reference in auto_map.values()}
        package = importlib.resources.files(__name__)
        return modules <= set(FILES) and all(
            (folder / name).read_bytes() == package.joinpath(name).read_bytes() for name in FILES
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False

"""The parts of a vision-language model in Hugging Face folders, each with the names that its family states.

transformers has named a LLaVA's tensors in three ways: the hub's (`language_model.model.`, `vision_tower.vision_model.`),
those of version 5's modules (`model.language_model.`, `model.vision_tower.`), and version 5's when it saves, which are the
hub's without `vision_model.`. Towers alone are saved with and without that, too.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import PARTS, Part

Rename = Callable[[str], str | None]

TOWER = "vision_model."
"""What the families' names of a tower's tensors begin with."""

PREFIXES: dict[Part, tuple[tuple[str, str], ...]] = {
    "language": (
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        ("lm_head.", "lm_head."),
    ),
    "vision": (
        ("vision_tower.vision_model.", TOWER),
        ("model.vision_tower.vision_model.", TOWER),
        ("vision_tower.", TOWER),
        ("model.vision_tower.", TOWER),
    ),
    "projector": (("multi_modal_projector.", ""), ("model.multi_modal_projector.", "")),
}
"""In a LLaVA: what a part's names begin with, and the family's."""

SHOWN = {"language": "language_model.", "vision": "vision_tower.", "projector": "multi_modal_projector."}

OF_TOWERS = ("vision_model.", "embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
"""What names of a tower's tensors begin with where it is saved alone, or beside a text encoder."""

LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
UNUSED = ("vision_model.post_layernorm.", "vision_model.head.", "vision_model.embeddings.position_ids")
"""Behind the states that a projector takes, or following from the configuration."""


def of_part(part: Part, name: str) -> str | None:
    """A LLaVA's tensor as the part's family names it; None of another part's."""
    for prefix, family in PREFIXES[part]:
        if name.startswith(prefix):
            return family + name.removeprefix(prefix)
    return None


def of_tower(name: str) -> str | None:
    """A tower's tensor as its family names it; None of a text encoder's."""
    return TOWER + name.removeprefix(TOWER) if name.startswith(OF_TOWERS) else None


def up_to(layers: int, rename: Rename, name: str) -> str | None:
    """`rename`'s name of a tensor before the states behind `layers` layers of a tower; None of what comes after."""
    found = rename(name)
    if found is None or found.startswith(UNUSED):
        return None
    layer = LAYER.match(found)
    return None if layer and int(layer[1]) >= layers else found


def llava_folders(folder: Path, configs: dict[Part, dict[str, Any]], layers: int) -> dict[Part, HfFolder]:
    """The parts of a LLaVA.

    Args:
        configs: sections of the parts.
        layers: of the tower, as many as are taken.
    Raises:
        CompeteError: damaged files, or tensors of no part.
    """
    renames: dict[Part, Rename] = {part: partial(of_part, part) for part in PARTS}
    _check_strangers(folder, HfFolder(folder, {}), renames)
    renames["vision"] = partial(up_to, layers, renames["vision"])
    return {part: HfFolder(folder, configs[part], renames[part], SHOWN[part]) for part in PARTS}


def tower_folder(folder: Path, layers: int) -> HfFolder:
    """A tower, or one beside a text encoder, given as --vision-tower."""
    return HfFolder(folder, {}, partial(up_to, layers, of_tower), "", "--vision-tower")


def _check_strangers(folder: Path, whole: HfFolder, renames: dict[Part, Rename]) -> None:
    strangers = sorted(name for name in whole.tensors if not any(rename(name) for rename in renames.values()))
    if strangers:
        raise CompeteError(
            f"{folder} has {len(strangers)} tensors that no LLaVA has: {', '.join(strangers[:4])}: load it with transformers "
            "as what it is, and save_pretrained() a LlavaForConditionalGeneration"
        )


def left_out(folder: HfFolder, rename: Rename) -> int:
    """How many tensors of the tower come behind the states that are taken."""
    names = {name for file in folder.files.values() for name in file.tensors if rename(name)}
    return sum(not name.endswith("position_ids") for name in names) - len(folder.tensors)

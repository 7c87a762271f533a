"""What the layers of a vision-language model are called where people read of them.

Layers are numbered through the whole model: the tower's 1 to V, the projector V + 1, the decoder's from V + 2.
"""

from megatron_compete.vlm.config import Part

PART_NAMES: dict[Part, str] = {"vision": "tower", "projector": "projector", "language": "decoder"}
"""What people call the parts."""


def layer_name(number: int, tower_layers: int | None) -> str:
    """`tower 3`, `projector` or `decoder 5` for a layer's number in the whole model; each part counts from 1.

    Args:
        tower_layers: of the tower; None for a language model, whose layers have their numbers alone.
    """
    if tower_layers is None:
        return str(number)
    if number <= tower_layers:
        return f"tower {number}"
    return "projector" if number == tower_layers + 1 else f"decoder {number - tower_layers - 1}"

"""Values of configuration dataclasses, checked by the annotations that argparse takes types and choices from."""

import math
from collections.abc import Callable
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_compete.common.errors import CompeteError

_NUMBERS = {int: "a whole number", float: "a number that is finite"}


def check_fields(config: Any, flag_of: Callable[[str], str]) -> None:
    """Check every field that is annotated as a `Literal`, bool, int or float; a misspelt choice would mean another one.

    Args:
        config: a dataclass's instance.
        flag_of: the flag of a field, by its name.
    Raises:
        CompeteError: names the flag, the value and what is allowed.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        wanted = _wanted(hints[field.name], getattr(config, field.name))
        if wanted is not None:
            raise CompeteError(f"{flag_of(field.name)} {getattr(config, field.name)} is out of range: {wanted}")


def _wanted(hint: Any, value: Any) -> str | None:
    """What a value should have been, None where it is right."""
    if NoneType in get_args(hint):  # X | None
        others = [one for one in get_args(hint) if one is not NoneType]
        return None if value is None or len(others) > 1 else _wanted(others[0], value)
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"choose from {', '.join(map(str, get_args(hint)))}"
    if hint is bool:
        return None if isinstance(value, bool) else "give true or false"
    if hint in _NUMBERS:
        allowed = int if hint is int else (int, float)
        right = isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
        return None if right else f"give {_NUMBERS[hint]}"
    return None

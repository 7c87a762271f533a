"""Sections of users' YAML files as pydantic models: the library checks keys, kinds and ranges; errors name file and line.

pydantic's own errors take several lines and know no place in a file, so the first one becomes a `YamlFile.fail`.
"""

from typing import Annotated, Any, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from megatron_compete.common.errors import did_you_mean
from megatron_compete.common.yaml_file import YamlFile, kind_of


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("give a number")
    return value


def _word(value: Any) -> str:
    if isinstance(value, bool | list | dict):
        raise ValueError("give text or a number")
    return "" if value is None else str(value)


def _each_once[T: tuple[Any, ...]](values: T) -> T:
    if len(set(values)) < len(values):
        raise ValueError("name each one once")
    return values


Count = Annotated[int, Field(strict=True, ge=1)]
"""A whole number from 1."""
Number = Annotated[float, BeforeValidator(_number), Field(ge=0)]
"""A number from 0, whole or not."""
Word = Annotated[str, BeforeValidator(_word)]
"""Text, or a number as it is written."""
Names = Annotated[tuple[str, ...], AfterValidator(_each_once)]
Seeds = Annotated[tuple[StrictInt, ...], Field(min_length=1), AfterValidator(_each_once)]


class Section(BaseModel):
    """A mapping with keys of its own, written with dashes. What is left empty has its default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"), validate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _given(cls, content: Any, info: ValidationInfo) -> Any:
        """Content without what is left empty; in a file, a key that is unknown is an error."""
        if not isinstance(content, dict | None):
            return content
        known = [str(field.alias) for field in cls.model_fields.values()]
        for key in content or {}:
            if info.context is not None and cls.model_config["extra"] == "forbid" and key not in known:
                what = f"is no key here{did_you_mean(key, known)}: known are {', '.join(known)}"
                raise PydanticCustomError("unknown_key", "unknown key", {"key": key, "what": what})
        return {key: value for key, value in (content or {}).items() if value is not None}


def read_section[S: Section](file: YamlFile, model: type[S], content: Any, *keys: str) -> S:
    """The content of a file as a model, or of the section at `keys`.

    Raises:
        CompeteError: the first thing that is wrong, with its key's line; unknown keys go before missing ones.
    """
    try:
        return model.model_validate(file.section(content, *keys), context=file)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "unknown_key")
    place, value, context = [*keys, *map(str, first["loc"])], first["input"], first.get("ctx", {})
    match first["type"]:
        case "missing":
            refuse(file, "is missing", *place)
        case "unknown_key":
            refuse(file, context["what"], *place, context["key"])
        case "model_type" | "dict_type":
            refuse(file, f"is {kind_of(value)}, not a mapping of names to values", *place)
        case "value_error":
            refuse(file, f"is {value!r}: {context['error']}", *place)
    wanted = first["msg"].replace("Input should be", "give").replace("greater than or equal to", "at least")
    refuse(file, f"is {value!r}: {wanted}", *place)


def refuse(file: YamlFile, what: str, *keys: str) -> NoReturn:
    """Raise a `CompeteError` that begins with the value's place in the file."""
    file.fail(f"{'.'.join(keys) or 'the file'} {what}", *keys)

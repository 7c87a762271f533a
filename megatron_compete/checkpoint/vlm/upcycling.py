"""Tower, projector and language model as mixtures of experts, the parts that --experts-in names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron_compete.checkpoint.chunks import megatron_chunks
from megatron_compete.checkpoint.families.llava import MEGATRON, language_arguments, part_dimensions, with_experts
from megatron_compete.checkpoint.families.vision import EXPERTS_OF_PARTS, experts_of
from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.checkpoint.reader import TensorInfo, TensorSource, TorchDistCheckpoint
from megatron_compete.checkpoint.upcycle import MLP, routing_arguments, upcycle, upcycle_mlps
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import PARTS, Part

DEFAULT: tuple[Part, ...] = ("vision", "projector")
WIDTHS = {"vision": "vision_ffn_hidden_size", "projector": "projector_ffn_hidden_size"}


class Within:
    """The tensors of a source whose keys begin with a prefix, by what follows it."""

    def __init__(self, source: TensorSource, prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self.tensors: Mapping[str, TensorInfo] = {
            key.removeprefix(prefix): info for key, info in source.tensors.items() if key.startswith(prefix)
        }

    def read(self, key: str, index: tuple[int, ...] = ()) -> Any:
        """The tensor `key`, or its slice at `index`."""
        return self._source.read(self._prefix + key, index)


def prefixed(chunks: Sequence[Chunk], part: Part) -> list[Chunk]:
    """A part's chunks as those of the model."""
    return [replace(chunk, key=MEGATRON[part] + chunk.key) for chunk in chunks]


def of_part(chunks: Sequence[Chunk], part: Part) -> list[Chunk]:
    """The reverse, of the model's chunks that are the part's."""
    prefix = MEGATRON[part]
    return [replace(chunk, key=chunk.key.removeprefix(prefix)) for chunk in chunks if chunk.key.startswith(prefix)]


def checkpoint_chunks(checkpoint: TorchDistCheckpoint) -> Iterator[Chunk]:
    """Every tensor of the model in a trainer's checkpoint, a layer at a time.

    Raises:
        CompeteError: layers of a part are not stacked, so they are not all alike.
    """
    for part in PARTS:
        layers = part_dimensions(checkpoint.arguments, part).layers
        found = megatron_chunks(Within(checkpoint, MEGATRON[part]), layers, checkpoint.folder, ("",))
        yield from prefixed(list(found), part)


def upcycle_parts(arguments: Mapping[str, Any], chunks: Sequence[Chunk], how: Upcycling) -> tuple[dict[str, Any], list[Chunk]]:  # fmt: skip
    """Arguments and tensors of the model whose parts `how.experts_in` are mixtures.

    Raises:
        CompeteError: parts that have experts already or cannot be cut so, or a router whose weights do not sum to 1.
    """
    how.check()
    parts = tuple(part for part in PARTS if part in (how.experts_in or DEFAULT))
    _check(arguments, parts)
    made: list[Chunk] = []
    result = dict(arguments) | routing_arguments(arguments)
    result.pop("router", None)  # that of a dense model, which has none
    for part in PARTS:
        of_this = of_part(chunks, part)
        if part == "language" and part in parts:
            own, of_this = upcycle(language_arguments(arguments), of_this, how)
            result |= {
                name: own[name]
                for name in ("moe_ffn_hidden_size", "moe_layer_freq", "moe_shared_expert_intermediate_size")
            }
        elif part in parts:
            d = part_dimensions(arguments, part)
            mlp = "" if part == "projector" else MLP
            of_this = upcycle_mlps(of_this, how, d.ffn, d.layers, False, mlp, MEGATRON[part])
            result[WIDTHS[part]] = d.ffn // how.granularity
        made += prefixed(of_this, part)
    return with_experts(result, parts, how.experts, how.k), made


def _check(arguments: Mapping[str, Any], parts: Sequence[Part]) -> None:
    shown = " ".join(parts)
    for part in PARTS:
        if experts_of(arguments, part)[0] and (part in parts or part != "language"):
            raise CompeteError(
                f"--experts-in {shown}: the checkpoint has experts in {part} already; upcycle all parts of the dense model at once"
            )
    if not arguments.get("num_experts"):
        return
    for requirement in EXPERTS_OF_PARTS:  # tower and projector would route as the language model does
        if requirement.refuses(arguments):
            raise CompeteError(
                f"--experts-in {shown}: the language model has {requirement.found(arguments)}, and tower and projector would "
                f"route so, too; their function is kept where {requirement.reason.removeprefix('it ').removeprefix('its ')}"
            )

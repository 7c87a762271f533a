"""A trained vision-language model as a LLaVA: transformers' own where tower and projector are dense, ours otherwise."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.custom_code import CODE
from megatron_compete.checkpoint.export_tokenizer import Copied, ExportTokenizer, export_tokenizer
from megatron_compete.checkpoint.families import Dimensions
from megatron_compete.checkpoint.families.llava import (
    CUSTOM,
    MEGATRON,
    STOCK,
    Llava,
    choose_llava,
    is_custom,
    llava_config,
    part_dimensions,
)
from megatron_compete.checkpoint.hf_model import load_hf_tokenizer
from megatron_compete.checkpoint.hf_tokenizer import has_tokenizer
from megatron_compete.checkpoint.options import Export
from megatron_compete.checkpoint.plan import ExportPlan, embedding
from megatron_compete.checkpoint.prepared import DTYPES, Prepared, check_rows
from megatron_compete.checkpoint.reader import TensorInfo, TorchDistCheckpoint
from megatron_compete.checkpoint.vlm.card import vision_card
from megatron_compete.checkpoint.vlm.processor import trained_settings, write_processor
from megatron_compete.checkpoint.vlm.template import adds_special_tokens, trained_template, write_template
from megatron_compete.checkpoint.vlm.upcycling import Within
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import PARTS, Part

CLASSES = {STOCK: "LlavaForConditionalGeneration", CUSTOM: "CompeteLlavaForConditionalGeneration"}

NAMES: dict[str, dict[Part, tuple[tuple[str, str], ...]]] = {
    STOCK: {
        "language": (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
        "vision": (("", "vision_tower."),),
        "projector": (("", "multi_modal_projector."),),
    },
    CUSTOM: {
        "language": (("model.", "model.language_model."), ("lm_head.", "lm_head.")),
        "vision": (("", "model.vision_tower."),),
        "projector": (("", "model.multi_modal_projector."),),
    },
}
"""What a family's names begin with, and the folder's. The hub's for transformers' class; a class with code of its own gets no
renaming by transformers, so its names are those of its modules."""

POST_NORM = "vision_model.post_layernorm."
"""A norm of transformers' towers behind the states that a projector takes."""


class PartsPlan:
    """Every tensor of the exported model, part by part.

    Raises:
        CompeteError: a tensor is missing, has another shape than the arguments say, or has no place in its part.
    """

    def __init__(self, plans: Mapping[Part, ExportPlan], names: Mapping[Part, tuple[tuple[str, str], ...]]) -> None:
        self.plans, self._names = plans, names

    def sizes(self) -> dict[str, TensorInfo]:
        """Shape and dtype of every tensor; nothing is read."""
        found = {
            self._name(part, name): info for part, plan in self.plans.items() for name, info in plan.sizes().items()
        }
        return found | {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in self._post_norm().items()
        }

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for part, plan in self.plans.items():
            for name, tensor in plan:
                yield self._name(part, name), tensor
        yield from self._post_norm().items()

    def _name(self, part: Part, name: str) -> str:
        old, new = next(pair for pair in self._names[part] if name.startswith(pair[0]))
        return new + name.removeprefix(old)

    def _post_norm(self) -> dict[str, Tensor]:
        """The unused norm, which transformers loads: weights 1, biases 0."""
        plan = self.plans["vision"]
        size, name = plan.dimensions.hidden, self._name("vision", POST_NORM)
        return {f"{name}weight": torch.ones(size, dtype=plan.dtype), f"{name}bias": torch.zeros(size, dtype=plan.dtype)}


def prepare_parts(checkpoint: TorchDistCheckpoint, export: Export) -> Prepared:
    """A vision-language model, ready to be written.

    Raises:
        CompeteError: a model that no LLaVA can represent, a tokenizer without its image token, or no image processor where
            training had one.
    """
    arguments = checkpoint.arguments
    llava = choose_llava(arguments, export.family)
    tokenizer = export_tokenizer(arguments, export.tokenizer_model, export.no_tokenizer)
    plans = _plans(checkpoint, llava, tokenizer, DTYPES[export.dtype] if export.dtype else None)
    kind = CUSTOM if is_custom(arguments) else STOCK
    image_token_id = _image_token_id(arguments, tokenizer, export.tokenizer_model)
    config = _config(kind, llava, arguments, plans["language"], tokenizer, image_token_id)
    images = trained_settings(arguments, export.image_processor)
    cautions = tuple(_cautions(arguments, llava, tokenizer))
    return Prepared(
        llava.language, config, PartsPlan(plans, NAMES[kind]), tokenizer, CODE[kind].files if kind in CODE else (),
        config["text_config"]["max_position_embeddings"],
        card=partial(vision_card, llava, arguments, checkpoint.iteration, cautions=cautions),
        cautions=cautions,
        write_more=partial(_write_processor, arguments, images),
    )  # fmt: skip


def _plans(checkpoint: TorchDistCheckpoint, llava: Llava, tokenizer: ExportTokenizer, dtype: torch.dtype | None) -> dict[Part, ExportPlan]:  # fmt: skip
    arguments, plans = checkpoint.arguments, {}
    words = Within(checkpoint, MEGATRON["language"])
    table = embedding(words)
    check_rows(table.shape[0], tokenizer)
    for part in PARTS:
        d = part_dimensions(arguments, part, table.shape[0], tokenizer.vocab_size)
        source = words if part == "language" else Within(checkpoint, MEGATRON[part])
        plans[part] = ExportPlan(source, llava.of(part), d, dtype, ("",), table.dtype)
    return plans


def _config(
    kind: str, llava: Llava, arguments: Mapping[str, Any], language: ExportPlan, tokenizer: ExportTokenizer, image_token_id: int
) -> dict[str, Any]:  # fmt: skip
    d: Dimensions = language.dimensions
    if image_token_id >= d.vocab:
        raise CompeteError(
            f"the image token has id {image_token_id}, and the model embeds {d.vocab} ids: it was trained with another "
            "tokenizer, name that with --tokenizer-model"
        )
    dtype = str(language.dtype).removeprefix("torch.")
    trained = trained_template(arguments)  # tells an evaluation that prompts are tokenized as training did
    return {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **({"auto_map": CODE[kind].classes} if kind in CODE else {}),
        **llava_config(llava, arguments, d, tokenizer.ids, image_token_id),
        **({} if trained is None else {"conversation_template": trained}),
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _image_token_id(arguments: Mapping[str, Any], tokenizer: ExportTokenizer, named: Path | None) -> int:
    """Id of the image token: the tokenizer's, or without one what an import keeps."""
    token = str(arguments.get("image_token") or "<image>")
    folder = tokenizer.source if isinstance(tokenizer, Copied) else named
    if folder is None and arguments.get("hf_image_token_id") is not None:
        return int(arguments["hf_image_token_id"])
    path = Path(str(arguments.get("tokenizer_model"))) if folder is None else folder
    if not path.is_dir() or not has_tokenizer(path):
        raise CompeteError(
            f"the id of the image token {token} is in the Hugging Face tokenizer that the model was trained with, and {path} "
            "is none: give its folder as --tokenizer-model"
        )
    number = load_hf_tokenizer(path, "--tokenizer-model").get_vocab().get(token)
    if number is None:
        raise CompeteError(
            f"--tokenizer-model {path} has no token {token}, which stands for pictures: give the one trained with"
        )
    return int(number)


def _write_processor(arguments: Mapping[str, Any], images: Mapping[str, Any], folder: Path) -> None:
    """Pictures as training made them, and prompts as it rendered them."""
    image_token = str(arguments.get("image_token") or "<image>")
    write_processor(folder, images, arguments, image_token)
    write_template(folder, arguments, image_token)


def _cautions(arguments: Mapping[str, Any], llava: Llava, tokenizer: ExportTokenizer) -> Iterator[str]:
    if caution := llava.language.caution(arguments):
        yield caution
    if arguments.get("use_tiling"):
        yield "trained on pictures in tiles (--use-tiling), and a LLaVA of transformers gets each picture as one"
    if trained_template(arguments) == "plain":
        yield "trained on pictures and captions alone (--conversation-template plain): it has seen no question"
    if isinstance(tokenizer, Copied) and adds_special_tokens(tokenizer.source, arguments):
        yield (
            "trained on what the chat template renders, without the special tokens that the tokenizer adds to a text: give "
            "add_special_tokens=False with a prompt"
        )

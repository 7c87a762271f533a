"""A checkpoint as a model of transformers in this process: a Hugging Face folder, or an export of a Megatron checkpoint."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_compete.audit.layers import MoeLayer, find_layers
from megatron_compete.audit.parts import Ranks
from megatron_compete.checkpoint.families.vision import is_vision_language
from megatron_compete.checkpoint.hf_model import load_hf_model, load_hf_tokenizer, model_from_config, takes_pictures
from megatron_compete.common.comparison import check_finite
from megatron_compete.common.errors import CompeteError
from megatron_compete.routing.precision import at_least_fp32

PICTURES = "{} is a vision-language model, and audits read text alone: they are of language models"


@dataclass(frozen=True)
class Source:
    """How a checkpoint is opened."""

    checkpoint: Path
    """A Hugging Face folder, or Megatron's --save folder or one iteration of it."""
    iteration: int | None = None
    tokenizer_model: Path | None = None
    """The training tokenizer, where it has moved (Megatron checkpoints)."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Model:
    """A model in evaluation mode whose parameters need no gradient."""

    source: Source
    module: nn.Module
    layers: list[MoeLayer]
    device: torch.device

    @property
    def config(self) -> Any:
        """The text model's, of transformers."""
        return self.module.config.get_text_config()  # type: ignore[operator, union-attr]

    def losses(self, ids_BL: Tensor) -> Tensor:
        """Sum of the next-token losses of each sequence [B, L + 1], in nats: fp64 [B], on the model's device.

        Raises:
            CompeteError: losses that are no numbers.
        """
        ids_BL = ids_BL.to(self.device)
        logits = self.module(ids_BL[:, :-1], use_cache=False).logits
        # One sequence at a time: logits in fp32 are the largest tensors of a small model.
        sums = [F.cross_entropy(at_least_fp32(one), ids, reduction="sum") for one, ids in zip(logits, ids_BL[:, 1:])]
        losses_B = torch.stack(sums).double()
        check_finite(losses_B, f"losses of {self.source.checkpoint}")
        return losses_B


def hugging_face_folder(source: Source, scratch: Path, ranks: Ranks) -> Path:
    """The folder to load: the checkpoint itself, or its export below `scratch`, which the first rank writes.

    Raises:
        CompeteError: no checkpoint, a dense one, or one that no Hugging Face family can represent.
    """
    if (source.checkpoint / "config.json").is_file():
        if takes_pictures(source.checkpoint):
            raise CompeteError(PICTURES.format(source.checkpoint))
        return source.checkpoint
    from megatron_compete.checkpoint.export import run
    from megatron_compete.checkpoint.location import find_checkpoint
    from megatron_compete.checkpoint.options import Export
    from megatron_compete.checkpoint.reader import TorchDistCheckpoint

    found = find_checkpoint(source.checkpoint, source.iteration)
    arguments = TorchDistCheckpoint(found).arguments
    if is_vision_language(arguments):
        raise CompeteError(PICTURES.format(source.checkpoint))
    if not arguments.get("num_experts"):
        raise CompeteError(f"{source.checkpoint} is a dense model: it has no experts, so there is nothing to audit")
    tokenizer = source.tokenizer_model
    given = tokenizer or arguments.get("tokenizer_model")
    # A folder for each checkpoint: what a killed audit of another one left is not in the way.
    folder = scratch / f"{found.name}-{hashlib.sha256(str(found.resolve()).encode()).hexdigest()[:8]}"
    export = Export(
        source.checkpoint, folder, source.iteration, tokenizer_model=tokenizer,
        no_tokenizer=given is None, drop_mtp=bool(arguments.get("mtp_num_layers")),
    )  # fmt: skip
    if ranks.is_first:
        run(export)
    ranks.wait()
    return folder


def open_model(source: Source, folder: Path) -> Model:
    """Load what `hugging_face_folder` gave.

    Raises:
        CompeteError: transformers cannot load it, or it has no MoE layers.
    """
    # On the meta device first: a dense model is refused before its weights are read.
    find_layers(model_from_config(folder, "checkpoint", source.trust_remote_code), str(source.checkpoint))
    device = choose_device(source.device)
    module = (
        load_hf_model(folder, "checkpoint", source.dtype, source.trust_remote_code).to(device).requires_grad_(False)
    )
    return Model(source, module, find_layers(module, str(source.checkpoint)), device)


def choose_device(name: str) -> torch.device:
    """The device of a name; of several GPUs each rank of a node takes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def open_tokenizer(source: Source, folder: Path) -> tuple[Callable[[str], list[int]] | None, int | None]:
    """Encoding without added tokens and the id that ends a document; (None, None) where the folder has no tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None, None
    tokenizer = load_hf_tokenizer(folder, "checkpoint", source.trust_remote_code)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return encode, tokenizer.eos_token_id

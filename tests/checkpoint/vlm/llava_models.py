"""Tiny vision-language models of transformers' real classes with random weights, saved as a user would have them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)

from tests.checkpoint.hf_models import CONFIGS, VOCAB

TOWER: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 18,
    "patch_size": 4,
}  # fmt: skip
"""Patches that do not fill the picture; widths that are easily mixed up differ from each other and from those of the language models."""

KINDS = {"siglip": ("siglip_vision_model", SiglipVisionModel), "clip": ("clip_vision_model", CLIPVisionModel)}
PATCHES = 16
IMAGE, END = VOCAB - 1, 2
"""Ids of the image token and of the end of a text."""


def tower_config(kind: str, **changes: Any) -> Any:
    return CONFIG_MAPPING[KINDS[kind][0]](**(TOWER | changes))


def randomize(model: torch.nn.Module, seed: int = 1) -> None:
    """Random weights with norms and biases, and activations that are neither tiny nor saturated."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # The norms of a gated delta net's keys and answers would multiply the rounding of saturated ones.
            value.normal_(std=0.05 if "in_proj_qkvz" in name else 0.3 if value.dim() > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)


def save_tower(folder: Path, kind: str, **changes: Any) -> Path:
    model = KINDS[kind][1](tower_config(kind, **changes))
    randomize(model)
    model.save_pretrained(folder)
    return folder


def save(folder: Path, kind: str = "siglip", family: str = "llama", tokenizer: bool = True, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:  # fmt: skip
    """Write a LLaVA; `changes` are of its own configuration, `text` and `vision` of the sections."""
    text = CONFIG_MAPPING[family](**(CONFIGS[family] | changes.pop("text", {})))
    vision = tower_config(kind, **changes.pop("vision", {}))
    strategy = "full" if kind == "siglip" else "default"
    config = LlavaConfig(
        text_config=text, vision_config=vision,
        **{"image_token_index": IMAGE, "image_seq_length": PATCHES, "vision_feature_select_strategy": strategy} | changes,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    randomize(model)
    model.to(dtype).save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, words: int = VOCAB, image: bool = True) -> None:
    """Words `w3`, `w4`, ... behind special tokens, the image token last."""
    names = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, words - image)), *["<image>"] * image]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>", "</s>", *["<image>"] * image])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)


def change_config(folder: Path, section: str | None = None, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section]).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pictures(count: int = 2) -> torch.Tensor:
    """[count, 3, 18, 18]."""
    return torch.randn(count, 3, 18, 18, generator=torch.Generator().manual_seed(7))


def tokens() -> torch.Tensor:
    """Ids [2, 12] of texts with one picture each, at different places; Megatron's, with one id for it."""
    ids = torch.randint(3, IMAGE, (2, 12), generator=torch.Generator().manual_seed(5))
    ids[0, 1] = ids[1, 6] = IMAGE
    return ids


def expanded(ids: torch.Tensor, embeddings: int) -> torch.Tensor:
    """The same for transformers, with an id for each embedding of a picture."""
    rows = [
        torch.cat([torch.full((embeddings,), IMAGE) if one == IMAGE else one.view(1) for one in row]) for row in ids
    ]
    return torch.stack(rows)


def logits(folder: Path, model_class: Any = LlavaForConditionalGeneration, embeddings: int = PATCHES, **more: Any) -> torch.Tensor:  # fmt: skip
    """Of `tokens()` and `pictures()`, [2, 11 + embeddings, V]."""
    model, report = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **more)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=expanded(tokens(), embeddings), pixel_values=pictures()).logits
    return result

"""Tiny vision-language models as Hugging Face folders, and what they answer by transformers alone."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.data.digit_processor import write_digit_processor


def write_model(folder: Path) -> Path:
    """A random LLaVA of transformers' own class for pictures of digits."""
    write_digit_processor(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    settings: dict[str, Any] = {
        "vision_config": SiglipVisionConfig(**shape, image_size=16, patch_size=8, vision_use_head=False),
        "text_config": LlamaConfig(
            **shape,
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        ),
        "image_token_index": tokenizer.image_token_id,
        "image_seq_length": 4,
        "vision_feature_select_strategy": "full",
    }
    model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # answers depend on the picture
    model.save_pretrained(folder)
    processor = LlavaProcessor(
        AutoImageProcessor.from_pretrained(folder), tokenizer, patch_size=8, vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


def write_experts(folder: Path) -> Path:
    """An export with experts in tower and projector, which has code of its own; the experts differ from each other."""
    dense, checkpoint = (folder.with_name(f"{folder.name}-{what}") for what in ("dense", "megatron"))
    import_checkpoint(Import(write_model(dense), checkpoint, upcycling=Upcycling(4, noise=0.5)))
    export_to_hf(Export(checkpoint, folder))
    return folder


def answers(folder: Path, records: list[dict[str, Any]], images: Path) -> list[str]:
    """One record after the other, without padding and without lmms-eval."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    given = []
    for record in records:
        picture = Image.open(images / record["image"]) if "image" in record else None
        inputs = processor(text=record["conversations"][0]["value"] + " ", images=picture, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=0)
        given.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return given

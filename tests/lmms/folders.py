"""Tiny vision-language models as Hugging Face folders, and what they answer by transformers alone."""

import sys
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

from megatron_compete.data.digit_processor import write_digit_processor

CODE = '''
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

class LouderConfig(LlavaConfig):
    model_type = "louder_llava"

class Louder(LlavaForConditionalGeneration):
    """Pictures count for more than in the stock class, by a weight that it does not have."""
    config_class = LouderConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.multi_modal_projector.gain = torch.nn.Parameter(torch.tensor(4.0))
        self.model.multi_modal_projector.register_forward_hook(lambda module, _, output: output * module.gain)
'''


def write_model(folder: Path, own_code: bool) -> Path:
    """A random LLaVA for pictures of digits; with `own_code` a class that transformers has not."""
    write_digit_processor(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
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
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    model = _own_class(folder, settings) if own_code else LlavaForConditionalGeneration(LlavaConfig(**settings))
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


def _own_class(folder: Path, settings: dict[str, Any]) -> Any:
    source = folder.with_name(f"{folder.name}-code")  # save_pretrained copies it into the folder
    source.mkdir()
    (source / "modeling_louder.py").write_text(CODE)
    sys.path.insert(0, str(source))
    try:
        from modeling_louder import Louder, LouderConfig
    finally:
        sys.path.remove(str(source))
    LouderConfig.register_for_auto_class()
    Louder.register_for_auto_class("AutoModelForImageTextToText")
    return Louder(LouderConfig(**settings))


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

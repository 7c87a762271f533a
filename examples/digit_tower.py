"""Models that the vision-language demo starts from: a SigLIP that has learned digits, and a Llama that knows nothing.

A real run begins with towers and language models of a hub; these stand for them where there is no network.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from megatron_compete.data.digit_pictures import COLOURS, DIGITS, PICTURE_SIDE, DigitPictures

HIDDEN, LAYERS, HEADS = 96, 4, 4
STEPS, BATCH, PICTURES = 350, 64, 6_000


def write_text_model(folder: Path, processor: Path) -> None:
    """A Llama of random weights with the tokenizer of `processor`."""
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(processor)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, vocab_size=len(tokenizer), max_position_embeddings=32, rms_norm_eps=1e-5,
        tie_word_embeddings=False, initializer_range=0.1, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tower(folder: Path, pictures: DigitPictures, processor: Path) -> float:
    """Train a SigLIP to say of each patch which digit it shows, in which colour: what a tower brings along from its own
    pretraining. A patch is a digit.

    Returns:
        Share of the digits in held-out pictures that a linear layer on its states names.
    """
    torch.manual_seed(1)
    process = AutoImageProcessor.from_pretrained(processor)
    # LLaVA takes the states before the last layer, so the tower has one more than are trained and used
    config = SiglipVisionConfig(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS + 1, num_attention_heads=HEADS,
        image_size=PICTURE_SIDE, patch_size=PICTURE_SIDE // 2, vision_use_head=False,
    )  # fmt: skip
    tower, head = SiglipVisionModel(config), torch.nn.Linear(HIDDEN, len(DIGITS) + len(COLOURS))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], 2e-3, betas=(0.9, 0.95))

    def logits(pixels: Tensor) -> tuple[Tensor, Tensor]:
        states = tower(pixels, output_hidden_states=True).hidden_states[-2]
        return head(states).split([len(DIGITS), len(COLOURS)], dim=-1)

    pixels, digits, colours = _named(pictures.train_path, pictures.image_folder, process)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, 2 * (1 - step / STEPS))
        some = torch.randint(len(pixels), (BATCH,))
        of_digits, of_colours = logits(pixels[some])
        loss = F.cross_entropy(of_digits.flatten(0, 1), digits[some].flatten())
        loss = loss + F.cross_entropy(of_colours.flatten(0, 1), colours[some].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tower.save_pretrained(folder)
    process.save_pretrained(folder)
    with torch.no_grad():
        pixels, digits, _ = _named(pictures.heldout_path, pictures.image_folder, process)
        return float((logits(pixels)[0].argmax(dim=-1) == digits).float().mean())


def _named(records: Path, images: Path, process: object) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [N, 3, H, W] whose caption names all four digits, with these and their colours [N, 4]."""
    captions = [record for record in json.loads(records.read_text()) if record["kind"] == "caption"][:PICTURES]
    words = [record["conversations"][1]["value"].split() for record in captions]
    pixels = process([Image.open(images / record["image"]) for record in captions], return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    colours = [[list(COLOURS).index(word) for word in of_one[::2]] for of_one in words]
    digits = [[DIGITS.index(word) for word in of_one[1::2]] for of_one in words]
    return pixels, torch.tensor(digits), torch.tensor(colours)

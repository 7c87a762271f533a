"""Is a conversion of a vision-language model the same model? Logits behind random pictures, and what both generate.

Windows of text are shown behind a picture and without one, by turns. Megatron's model takes one id for a picture,
transformers' one for each of its embeddings; positions behind it are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.families.llava import picture_embeddings
from megatron_compete.checkpoint.hf_model import load_hf_model, load_hf_tokenizer
from megatron_compete.checkpoint.vlm.processor import PROCESSOR
from megatron_compete.common.comparison import check_finite, largest_difference
from megatron_compete.common.errors import CompeteError
from megatron_compete.verify.pictures import compare_pictures

PROMPT, GENERATED = 8, 16
"""Tokens of text before a generation, and of it, at most."""
LEAST = 4
"""Tokens of text behind a picture."""


@dataclass(frozen=True)
class VisionComparison:
    """What `compare_vision` found."""

    tokens: int
    """Compared, embeddings of pictures included."""
    max_logit_difference: float
    mean_logit_difference: float
    top1_agreement: float
    """Share of the positions at which both models prefer the same next token."""
    pictures: int
    same_ids: bool
    """Whether both tokenizers gave the same ids for every document."""
    pictures_not_compared: str
    """Why the folder's image processor was not compared with training's; empty where both make the same pixels."""
    same_generation: bool
    """Whether both models went on alike, token by token, from the same pictures and texts."""
    vocab_size: int


def compare_vision(
    checkpoint: Any, hf: Path, texts: list[str], limit: int, length: int, tokenizer_model: str | None, trust_remote_code: bool
) -> VisionComparison:  # fmt: skip
    """Run both models; Megatron's with one rank in this process, in fp32.

    Args:
        checkpoint: the `TorchDistCheckpoint`.
        limit: windows at most.
        length: tokens of text in a window at most; with a picture before them no more than the model was trained with.
    Raises:
        CompeteError: a folder that cannot be loaded, other pixels than in training, a text too short, or logits that are no
            numbers.
    """
    from megatron.training import get_tokenizer

    from megatron_compete.verify.conversion import windows
    from megatron_compete.verify.single import load_model

    not_compared = compare_pictures(hf, checkpoint.arguments, trust_remote_code)
    longest = int(checkpoint.arguments["seq_length"])
    room = _room(length, longest, picture_embeddings(checkpoint.arguments))
    _, model = load_model(checkpoint, tokenizer_model, trust_remote_code)
    ids = [get_tokenizer().tokenize(text) for text in texts]
    hf_tokenizer = load_hf_tokenizer(hf, "--hf", trust_remote_code)
    hf_model = load_hf_model(hf, "--hf", "float32", trust_remote_code)
    pair = _Pair(model, hf_model, int(model.image_token_index))
    _check_prompt(hf, pair, trust_remote_code)
    batch = windows(ids, room, limit)[:, :-1]
    totals = _Totals()
    for number, window in enumerate(batch):
        shown = _picture(model, number) if number % 2 == 0 else None
        totals.add(*pair.logits(window[None], shown))
    prompt = min(PROMPT, room // 2)
    count = min(GENERATED, longest - pair.embeddings - prompt)
    same = all(
        pair.generates_alike(row[None, :prompt], _picture(model, number), count) for number, row in enumerate(batch[:2])
    )
    same_ids = all(hf_tokenizer(text)["input_ids"] == own for text, own in zip(texts, ids))
    pictures = (len(batch) + 1) // 2
    return VisionComparison(*totals.means(), pictures, same_ids, not_compared, same, pair.vocab)


def _room(length: int, longest: int, embeddings: int) -> int:
    """Tokens of text in a window: `length`, or what a sequence of `longest` has left behind a picture.

    Raises:
        CompeteError: too few to compare.
    """
    left = longest - embeddings
    if left < LEAST:
        raise CompeteError(
            f"the model is for sequences of {longest} (--seq-length), and a picture takes {embeddings} of them: there is no "
            f"room for {LEAST} tokens of text, verify its files without --text"
        )
    if length < LEAST:
        raise CompeteError(f"--length {length} is too little text behind a picture: give {LEAST} or more")
    return min(length, left)


def _picture(model: Any, seed: int) -> Tensor:
    """A picture [1, 3, H, W] of noise, as large as a normalised one's values."""
    size = (1, 3, model.vision_model.img_h, model.vision_model.img_w)
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def _check_prompt(hf: Path, pair: "_Pair", trust_remote_code: bool) -> None:
    """Check that the folder's processor, where it has one, makes as many tokens and pixels of a picture as the model takes.

    Raises:
        CompeteError: it makes something else, or cannot be loaded.
    """
    from PIL import Image
    from transformers import AutoProcessor

    if not (hf / PROCESSOR).is_file():
        return
    try:
        processor = AutoProcessor.from_pretrained(hf, trust_remote_code=trust_remote_code)
        made = processor(text=processor.image_token, images=Image.new("RGB", (50, 40)), return_tensors="pt")
        count = int((made["input_ids"] == pair.image_id).sum())
        size = tuple(made["pixel_values"].shape[-2:])
    except Exception as error:  # the classes fail in many ways
        raise CompeteError(f"--hf {hf}: its processor cannot be used: {type(error).__name__}: {error}") from error
    tower = pair.megatron.vision_model
    if (count, size) != (pair.embeddings, (tower.img_h, tower.img_w)):
        raise CompeteError(
            f"--hf {hf}: its processor makes {count} tokens and {size[0]} x {size[1]} pixels of a picture, and the model takes "
            f"{pair.embeddings} and {tower.img_h} x {tower.img_w}"
        )


class _Pair:
    """Both models, asked the same."""

    def __init__(self, megatron: Any, hf: Any, image_id: int) -> None:
        self.megatron, self.hf, self.image_id = megatron, hf, image_id
        self.embeddings = int(megatron.img_seq_len)
        self.vocab = int(hf.config.text_config.vocab_size)

    def logits(self, tokens: Tensor, picture: Tensor | None) -> tuple[Tensor, Tensor]:
        """Megatron's and transformers', [1, S, V], for text [1, S] and a picture before it."""
        theirs = self._hf_inputs(tokens, picture)
        with torch.no_grad():
            return self._megatron_logits(tokens, picture), self.hf(**theirs).logits

    def _megatron_logits(self, tokens: Tensor, picture: Tensor | None) -> Tensor:
        ids, images = tokens, torch.zeros(0, 3, self.megatron.vision_model.img_h, self.megatron.vision_model.img_w)
        if picture is not None:
            ids, images = torch.cat([torch.full((1, 1), self.image_id), tokens], 1), picture
        positions = torch.arange(ids.shape[1])[None]
        tiles = torch.ones(len(images), dtype=torch.int)
        output, _ = self.megatron(images, ids, positions, None, num_image_tiles=tiles)
        logits: Tensor = output
        return logits[..., : self.vocab]

    def _hf_inputs(self, tokens: Tensor, picture: Tensor | None) -> dict[str, Tensor]:
        if picture is None:
            return {"input_ids": tokens}
        ids = torch.cat([torch.full((1, self.embeddings), self.image_id), tokens], 1)
        return {"input_ids": ids, "pixel_values": picture}

    def generates_alike(self, tokens: Tensor, picture: Tensor, count: int) -> bool:
        """Whether both go on greedily alike, to the end of the text or for `count` tokens; transformers from its cache,
        Megatron without."""
        from transformers import GenerationConfig

        how = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0, suppress_tokens=[self.image_id])
        given = self._hf_inputs(tokens, picture)
        with torch.no_grad():
            whole = self.hf.generate(**given, attention_mask=torch.ones_like(given["input_ids"]), generation_config=how)
        theirs = whole[:, given["input_ids"].shape[1] :]
        ours = tokens
        for _ in range(theirs.shape[1]):
            with torch.no_grad():
                last = self._megatron_logits(ours, picture)[:, -1]
            last[:, self.image_id] = -torch.inf
            ours = torch.cat([ours, last.argmax(-1, keepdim=True)], 1)
        return theirs.shape[1] > 0 and theirs.equal(ours[:, tokens.shape[1] :])


class _Totals:
    """Sums over windows of what `VisionComparison` averages."""

    def __init__(self) -> None:
        self.tokens, self.max, self.difference, self.same = 0, 0.0, 0.0, 0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        check_finite(ours, "logits of --checkpoint")
        check_finite(theirs, "logits of --hf")
        self.max = max(self.max, largest_difference(ours, theirs, "logits"))
        self.tokens += ours.shape[1]
        self.difference += float((ours - theirs).abs().mean(-1).sum())
        self.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())

    def means(self) -> tuple[int, float, float, float]:
        """Tokens, largest and mean difference, share of equal preferences."""
        return self.tokens, self.max, self.difference / self.tokens, self.same / self.tokens


def rows(found: VisionComparison) -> Sequence[tuple[str, str]]:
    """Lines of a report."""
    return (
        ("tokens compared", f"{found.tokens:,}, {found.pictures} pictures"),
        ("largest logit difference", f"{found.max_logit_difference:.2e}"),
        ("mean logit difference", f"{found.mean_logit_difference:.2e}"),
        ("same preferred token", f"{found.top1_agreement:.2%}"),
        ("same token ids", "yes" if found.same_ids else "NO"),
        ("same pictures", f"not compared: {found.pictures_not_compared}" if found.pictures_not_compared else "yes"),
        ("same generation", "yes" if found.same_generation else "NO"),
    )

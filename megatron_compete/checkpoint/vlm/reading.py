"""A vision-language model to import: a LLaVA's folder, or a language model with a tower put before it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.chunks import hf_chunks, part_chunks
from megatron_compete.checkpoint.families import read_config
from megatron_compete.checkpoint.families.llava import (
    TOWERS,
    check_decoder,
    is_llava_config,
    language_arguments,
    part_dimensions,
    read_llava,
    read_tower,
)
from megatron_compete.checkpoint.hf_model import load_hf_tokenizer
from megatron_compete.checkpoint.hf_reader import HfFolder
from megatron_compete.checkpoint.hf_tokenizer import Ids, generation_settings, has_tokenizer, ids_in
from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.options import Import
from megatron_compete.checkpoint.source import TOKENIZER, Source, copy_files, dtype_notes, tokenizer_arguments
from megatron_compete.checkpoint.vlm.folders import left_out, llava_folders, of_part, of_tower, tower_folder
from megatron_compete.checkpoint.vlm.fresh import fresh_projector, given_projector, with_rows
from megatron_compete.checkpoint.vlm.processor import copy_template, image_settings, tower_settings, write_processor
from megatron_compete.checkpoint.vlm.upcycling import prefixed
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import PARTS

IMAGE_TOKEN = "<image>"
FEATURE_LAYER = -2
"""LLaVA's: the states before the tower's last layer."""


@dataclass(frozen=True)
class ImageToken:
    """The token that stands for a picture."""

    text: str
    number: int
    is_new: bool = False
    """Whether the tokenizer is to be told of it."""


def read_parts(what: Import) -> Source:
    """The model, its tensors not yet read.

    Raises:
        CompeteError: a model that Megatron cannot represent, or damaged files.
    """
    return _read_llava(what.checkpoint, what.output) if what.vision_tower is None else _compose(what, what.vision_tower)


def _read_llava(source: Path, output: Path) -> Source:
    config = HfFolder.config_of(source)
    llava, arguments = read_llava(config)
    sections = {"language": config.get("text_config") or {}, "vision": {}, "projector": {}}
    folders = llava_folders(source, sections, arguments["vision_num_layers"])  # type: ignore[arg-type]
    language = language_arguments(arguments)
    chunks = prefixed(list(hf_chunks(folders["language"], llava.language, language)), "language")
    for part in PARTS[:2]:
        found = part_chunks(folders[part], llava.of(part), part_dimensions(arguments, part))
        chunks += prefixed(list(found), part)
    ids = ids_in(config, config.get("text_config") or {}, generation_settings(source))
    token = _token_of(source, arguments["hf_image_token_id"])
    notes = [*_tower_notes(folders["vision"], partial(of_part, "vision")), *dtype_notes(chunks)]
    return _source(source, source, output, arguments, chunks, token, ids, notes)


def _compose(what: Import, tower: Path) -> Source:
    folder = HfFolder(what.checkpoint)
    if is_llava_config(folder.config):
        raise CompeteError(
            f"--checkpoint {what.checkpoint} has a tower already: leave --vision-tower out, or give a language model"
        )
    family, arguments = read_config(folder.config)
    check_decoder(family.name)
    layer = FEATURE_LAYER if what.vision_feature_layer is None else what.vision_feature_layer
    arguments |= read_tower(HfFolder.config_of(tower, "--vision-tower"), layer)
    kind = arguments["vision_model_type"]
    arguments |= {"disable_vision_class_token": kind == "clip", "projector_ffn_hidden_size": arguments["hidden_size"]}
    if arguments.get("num_experts"):
        arguments["experts_in"] = ["language"]
    token = _token_in(what.checkpoint, what.image_token or IMAGE_TOKEN, arguments["vocab_size"])
    words = list(hf_chunks(folder, family, arguments, what.drop_mtp))
    arguments |= {"hf_image_token_id": token.number, "vocab_size": max(arguments["vocab_size"], token.number + 1)}
    chunks = prefixed(list(with_rows(words, arguments["vocab_size"])), "language")
    images, d = tower_folder(tower, arguments["vision_num_layers"]), part_dimensions(arguments, "projector")
    chunks += prefixed(list(part_chunks(images, TOWERS[kind], part_dimensions(arguments, "vision"))), "vision")
    projector = given_projector(what.projector, d) if what.projector else fresh_projector(d, words[0].dtype)
    chunks += prefixed(projector, "projector")
    ids = ids_in(folder.config, generation_settings(what.checkpoint))
    notes = [*_tower_notes(images, of_tower), *_new_notes(what, token), *dtype_notes(chunks)]
    return _source(what.checkpoint, tower, what.output, arguments, chunks, token, ids, notes)


def _source(
    words: Path, pictures: Path, output: Path, arguments: dict[str, Any], chunks: list[Chunk], token: ImageToken, ids: Ids,
    notes: list[str],
) -> Source:  # fmt: skip
    """With the files of the folders `words` and `pictures` that go along."""
    target = output.absolute() / TOKENIZER
    made = arguments | tokenizer_arguments(words, target, ids)
    made |= {"image_token": token.text, "image_processor": str(target)}
    if not arguments.get("num_experts"):
        made["router"] = "topk"  # a dense model is trained, too: its projector, before it is upcycled
    write = partial(_write_files, words, pictures, ids, token, made)
    return Source(words, made, chunks, tuple(notes), write)


def _write_files(words: Path, pictures: Path, ids: Ids, token: ImageToken, arguments: Mapping[str, Any], target: Path) -> None:  # fmt: skip
    copy_files(words, ids, target)
    copy_template(words, target)
    if token.is_new:
        from tokenizers import AddedToken

        tokenizer = load_hf_tokenizer(words, "--checkpoint")
        tokenizer.add_tokens([AddedToken(token.text, special=True, normalized=False)], special_tokens=True)
        tokenizer.save_pretrained(target)
    images = image_settings(pictures) or tower_settings(arguments)
    write_processor(target, images, arguments, token.text)


def _token_of(folder: Path, number: int) -> ImageToken:
    """The image token of a LLaVA, whose id config.json has."""
    if not has_tokenizer(folder):
        return ImageToken(IMAGE_TOKEN, number)
    text = load_hf_tokenizer(folder, "--checkpoint").convert_ids_to_tokens(number)
    if text is None:
        raise CompeteError(
            f"{folder}: config.json has image_token_index {number}, an id that its tokenizer does not have: add the token there"
        )
    return ImageToken(str(text), number)


def _token_in(folder: Path, text: str, vocab: int) -> ImageToken:
    """The image token of a language model's tokenizer; where it has none, behind its last id."""
    if not has_tokenizer(folder):
        return ImageToken(text, vocab)
    tokenizer = load_hf_tokenizer(folder, "--checkpoint")
    number = tokenizer.get_vocab().get(text)
    return ImageToken(text, len(tokenizer), is_new=True) if number is None else ImageToken(text, int(number))


def _tower_notes(folder: HfFolder, rename: Any) -> Iterator[str]:
    if folder.passed_over:
        yield f"passed over {', '.join(folder.passed_over)}: not of the model"
    if count := left_out(folder, rename):
        yield f"left out {count} tensors of the tower behind the states that the projector takes"


def _new_notes(what: Import, token: ImageToken) -> Iterator[str]:
    if token.is_new:
        yield f"the tokenizer has a new token {token.text}, id {token.number}"
    if what.projector is None:
        yield "the projector is new: train it alone first, with --freeze-LM --freeze-ViT"

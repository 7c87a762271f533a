"""Settings of visual instruction data. Names are those of LLaVA and of Megatron-LM's examples/multimodal where they have one."""

import argparse
import os
from dataclasses import dataclass, fields
from typing import Any, Literal

from megatron_compete.common.command_line import flag_of as option_flag
from megatron_compete.common.command_line import option
from megatron_compete.common.config_fields import check_fields
from megatron_compete.common.errors import CompeteError

PIL_MAX_PIXELS = 89_478_485
"""`PIL.Image.MAX_IMAGE_PIXELS`: 256 MB of RGB at 3 bytes a pixel."""


@dataclass(frozen=True)
class ConversationConfig:
    """Visual instruction data: a LLaVA JSON array or JSON Lines, and a folder of images."""

    image_folder: str | None = None
    """Folder that the samples' image paths are relative to."""

    template: Literal["tokenizer", "vicuna_v1", "chatml", "plain"] = option("tokenizer", "--conversation-template")
    """How a conversation becomes text. tokenizer: the chat template of --tokenizer-model; vicuna_v1: LLaVA-1.5's; chatml:
    <|im_start|>ROLE ... <|im_end|>, without a system prompt of its own; plain: image and caption alone, for pretraining
    the projector."""

    image_processor: str | None = None
    """Hugging Face folder with the tower's preprocessor_config.json (default: that of --vision-model-type at --img-h and
    --img-w)."""

    image_aspect_ratio: Literal["pad", "resize"] | None = None
    """pad: a square with a border of the mean colour around the image, as LLaVA-1.5 has it (default, but not with
    --use-tiling); resize: what the image processor does by itself."""

    use_tiling: bool = False
    """Cut an image into tiles of --img-h by --img-w in the grid that is closest to its shape."""

    max_num_tiles: int = 1
    """Tiles of an image at most, without the thumbnail."""

    use_thumbnail: bool = False
    """Put the whole image, made small, behind the tiles of an image that has several."""

    group_by_modality: bool = False
    """Fill each global batch with samples that have images, or with samples that have none."""

    pack: bool = option(False, "--pack-conversations")
    """Put several conversations into a sequence of --seq-length, without attention between them."""

    truncate: bool = option(False, "--truncate-conversations")
    """Cut conversations that are longer than --seq-length, images included, in place of refusing them."""

    skip_bad: bool = option(False, "--skip-bad-samples")
    """Leave out samples that cannot be used, and report them by kind, in place of stopping at the start."""

    check_images: Literal["header", "decode"] = "header"
    """What is read of each image before training. header: that it is there, its format and size; decode: all of it."""

    max_image_pixels: int = PIL_MAX_PIXELS
    """Width times height from which an image counts as a decompression bomb."""

    allow_image_links: bool = False
    """Follow symbolic links that lead out of --image-folder."""

    workers: int | None = option(None, "--conversation-workers")
    """Processes that check the samples before training (default: the cores of this host)."""

    energon_path: str | None = None
    """Dataset of megatron-energon to read in place of JSON, with --dataloader-type external."""

    dataloader_save: str | None = None
    """Folder for the place of an external loader at each checkpoint, by data-parallel rank; resuming reads it there."""

    def __post_init__(self) -> None:
        check_fields(self, flag_of)
        for name in ("max_num_tiles", "max_image_pixels", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CompeteError(f"{flag_of(name)} {value} is out of range: give 1 or more")
        self._check_tiling()
        if self.energon_path is not None:
            self._check_energon()

    def check_folders(self) -> None:
        """Raise a `CompeteError` for a folder that is not there. A plan or a dry run may be made where none is."""
        for flag, path in (("--image-folder", self.image_folder), ("--image-processor", self.image_processor)):
            if path is not None and not os.path.isdir(path):
                raise CompeteError(f"{flag} {path}: no such folder")

    def _check_tiling(self) -> None:
        if not self.use_tiling:
            if self.max_num_tiles > 1 or self.use_thumbnail:
                given = f"--max-num-tiles {self.max_num_tiles}" if self.max_num_tiles > 1 else "--use-thumbnail"
                raise CompeteError(f"{given} has no effect without --use-tiling: give that, or leave it out")
            return
        if self.max_num_tiles == 1:
            raise CompeteError("--use-tiling cuts nothing at --max-num-tiles 1: give that 2 or more, or leave it out")
        if self.image_aspect_ratio is not None:
            raise CompeteError(
                f"--image-aspect-ratio {self.image_aspect_ratio} has no effect with --use-tiling, whose grid follows the "
                "image's shape: leave one out"
            )

    def _check_energon(self) -> None:
        """Energon has its own files, order and checks."""
        for name in ("image_folder", "group_by_modality", "pack", "check_images", "allow_image_links", "workers"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise CompeteError(f"{flag_of(name)} has no effect with --energon-path: leave one of them out")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "ConversationConfig":
        """The settings among parsed arguments.

        Raises:
            CompeteError: a setting that has no effect, is out of range, or names no folder.
        """
        given: dict[str, Any] = {field.name: getattr(args, dest_of(field.name), field.default) for field in fields(cls)}
        return cls(**given)

    @property
    def pads_to_square(self) -> bool:
        """Whether images get LLaVA's border."""
        return self.image_aspect_ratio == "pad" or (self.image_aspect_ratio is None and not self.use_tiling)

    @property
    def worker_count(self) -> int:
        """Processes that check samples."""
        return self.workers or len(os.sched_getaffinity(0))


def flag_of(field: str) -> str:
    """The command-line flag of a field of `ConversationConfig`."""
    return option_flag(ConversationConfig, field)


def dest_of(field: str) -> str:
    """The name of a field of `ConversationConfig` among parsed arguments."""
    return flag_of(field).removeprefix("--").replace("-", "_")

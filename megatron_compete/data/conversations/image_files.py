"""Images of the image folder: found within it, looked at without decoding, and decoded as upright RGB.

As transformers' `load_image` has it: the orientation that a camera noted is applied (LLaVA's own code does not look at
it), then colours become RGB; of an animation the first frame, of transparent pixels the colour beneath. Other than there,
16 bits a pixel are scaled to 8: Pillow's conversion would make nearly all of them white.
"""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.config import ConversationConfig

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112
"""EXIF tag; values from 5 exchange width and height."""

_OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp")


class ImageFolder:
    """The images of a dataset.

    Args:
        config: folder, limits, and whether links may lead out of it.
    """

    def __init__(self, config: ConversationConfig) -> None:
        self.folder = Path(config.image_folder) if config.image_folder else None
        self._root = os.path.realpath(self.folder) if self.folder else ""
        self.max_pixels, self.allow_links = config.max_image_pixels, config.allow_image_links

    def path(self, name: str) -> Path:
        """Where an image lies.

        Raises:
            BadSample: outside_image_folder, missing_image.
        """
        if self.folder is None:
            raise BadSample("missing_image", f"image {name}, and no --image-folder to look for it")
        if not name or "\0" in name:
            raise BadSample("missing_image", f"image {name!r} is no path")
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise BadSample("outside_image_folder", f"image {name} leads out of --image-folder {self.folder}")
        path = self.folder / name
        if not self.allow_links and os.path.commonpath([self._root, os.path.realpath(path)]) != self._root:
            raise BadSample("outside_image_folder", f"image {name} is a link out of --image-folder {self.folder}")
        if not path.is_file():
            raise BadSample("missing_image", f"no image {path}{_other_suffix(path)}")
        if not path.stat().st_size:
            raise BadSample("missing_image", f"image {path} is an empty file")
        return path

    def size(self, name: str) -> tuple[int, int]:
        """Width and height, upright; reads the header alone.

        Raises:
            BadSample: as `path`; damaged_image, huge_image.
        """
        path = self.path(name)
        with self._open(path) as image:
            width, height = image.size
            return (height, width) if _orientation(image, path) >= 5 else (width, height)

    def load(self, name: str) -> "Image":
        """The image, decoded.

        Raises:
            BadSample: as `size`.
        """
        return self.decode(self.path(name))

    def decode(self, source: Path | BinaryIO, name: str = "") -> "Image":
        """An image that lies elsewhere, or the bytes of one, decoded as those of the folder.

        Args:
            name: of bytes, for errors.
        Raises:
            BadSample: damaged_image, huge_image.
        """
        from PIL import ImageOps

        with self._open(source, name) as image:
            return _as_rgb(ImageOps.exif_transpose(image))

    @contextmanager
    def _open(self, source: Path | BinaryIO, name: str = "") -> "Iterator[Image]":
        """Pillow's image; whatever it raises within the block, each decoder another kind, is the image's damage."""
        import PIL.Image

        PIL.Image.MAX_IMAGE_PIXELS = self.max_pixels  # above it Pillow warns, and raises from twice as many on
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with PIL.Image.open(source) as image:
                    width, height = image.size
                    if width * height > self.max_pixels:
                        raise PIL.Image.DecompressionBombError(f"it has {width} x {height} pixels")
                    if image.mode == "F":
                        raise BadSample(
                            "damaged_image", f"image {name or source} has floating-point pixels of unknown range"
                        )
                    yield image
        except BadSample:
            raise
        except PIL.Image.DecompressionBombError as error:
            raise BadSample(
                "huge_image", f"image {name or source} is above --max-image-pixels {self.max_pixels}: {error}"
            ) from None
        except Exception as error:
            raise BadSample(
                "damaged_image", f"image {name or source} cannot be read: {error or type(error).__name__}"
            ) from None


def _orientation(image: "Image", path: Path) -> int:
    """What the camera noted, without decoding: Pillow would decode all of a PNG, whose note may stand at its end."""
    from PIL import Image

    exif = Image.Image.getexif(image)
    if image.format == "PNG" and ORIENTATION not in exif:
        with open(path, "rb") as stream:
            stream.seek(8)
            while len(head := stream.read(8)) == 8:
                length, kind = struct.unpack(">I4s", head)
                if kind == b"eXIf":
                    exif.load(stream.read(length))
                    break
                stream.seek(length + 4, os.SEEK_CUR)
    return int(exif.get(ORIENTATION, 1))


def _as_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):  # I;16 and its byte orders; I is what older Pillows read 16 bits as
        eight_bits = np.asarray(image.convert("I")) >> 8
        return Image.fromarray(np.clip(eight_bits, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _other_suffix(path: Path) -> str:
    """Some of LLaVA's lists name .gif files .jpg."""
    others = [path.with_suffix(suffix) for suffix in _OTHER_SUFFIXES if path.suffix and suffix != path.suffix]
    there = next((other for other in others if other.is_file()), None)
    return "" if there is None else f", but {there.name}: rename it (what counts is the content)"

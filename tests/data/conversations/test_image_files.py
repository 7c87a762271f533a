import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_utils import load_image

from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.image_files import ORIENTATION, ImageFolder
from tests.data.conversations.tiny import picture


def folder(path: Path, **config: object) -> ImageFolder:
    return ImageFolder(ConversationConfig(image_folder=str(path), **config))  # type: ignore[arg-type]


KINDS = {
    "jpeg.jpg": lambda path: picture(9, 6).save(path),
    "gray.png": lambda path: picture(9, 6).convert("L").save(path),
    "two.png": lambda path: picture(9, 6).convert("1").save(path),
    "palette.png": lambda path: picture(9, 6).quantize(16).save(path),
    "clear.png": lambda path: picture(9, 6).quantize(16).save(path, transparency=3),
    "alpha.png": lambda path: picture(9, 6).convert("RGBA").save(path),
    "gray_alpha.png": lambda path: picture(9, 6).convert("LA").save(path),
    "cmyk.jpg": lambda path: picture(9, 6).convert("CMYK").save(path),
    "still.webp": lambda path: picture(9, 6).save(path, lossless=True),
    "moving.webp": lambda path: picture(9, 6).save(path, save_all=True, append_images=[picture(9, 6, 1)]),
    "moving.gif": lambda path: picture(9, 6).save(path, save_all=True, append_images=[picture(9, 6, 1)]),
    "gif_in.jpg": lambda path: picture(9, 6).save(path, format="GIF"),
    "tiff.tif": lambda path: picture(9, 6).save(path),
    "bmp.bmp": lambda path: picture(9, 6).save(path),
}


@pytest.mark.parametrize("name", KINDS)
def test_images_are_what_transformers_loads(name: str, tmp_path: Path) -> None:
    """OCR-VQA's list in LLaVA's mixture has GIF under the name .jpg."""
    KINDS[name](tmp_path / name)
    images = folder(tmp_path)
    loaded = images.load(name)
    assert loaded.mode == "RGB" and loaded.size == images.size(name) == (9, 6)
    assert np.array_equal(np.asarray(loaded), np.asarray(load_image(str(tmp_path / name))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture(9, 6).save(tmp_path / "turned.png", exif=exif)
    images = folder(tmp_path)
    loaded = images.load("turned.png")
    assert images.size("turned.png") == loaded.size == ((6, 9) if orientation >= 5 else (9, 6))
    with Image.open(tmp_path / "turned.png") as plain:
        assert np.array_equal(np.asarray(loaded), np.asarray(ImageOps.exif_transpose(plain)))


def test_an_orientation_at_the_end_of_a_png(tmp_path: Path) -> None:
    """Found without decoding, and what Pillow does with it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(9, 6).save(tmp_path / "late.png")
    content, note = (tmp_path / "late.png").read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note))
    (tmp_path / "late.png").write_bytes(content[:-12] + chunk + content[-12:])
    images = folder(tmp_path)
    assert images.size("late.png") == images.load("late.png").size == (6, 9)


def test_16_bits_keep_their_picture(tmp_path: Path) -> None:
    """Pillow's own conversion has 17 of these 256 levels left, nearly all white."""
    levels = (np.arange(65536, step=16).reshape(64, 64)).astype(np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        assert np.array_equal(np.asarray(folder(tmp_path).load(name))[..., 1], levels >> 8)
    with Image.open(tmp_path / "deep.png") as plain:
        assert len(np.unique(np.asarray(plain.convert("RGB")))) == 17


def _png_of(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and nothing behind it."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT\0\0\0\0\0\0\0\0"


@pytest.mark.parametrize(("width", "height"), [(10_000, 9_000), (20_000, 20_000), (60_000, 60_000)])
def test_a_decompression_bomb(width: int, height: int, tmp_path: Path) -> None:
    """Also between Pillow's warning and its error; from its header, before anything is decoded."""
    (tmp_path / "bomb.png").write_bytes(_png_of(width, height))
    for look in (folder(tmp_path).size, folder(tmp_path).load):
        with pytest.raises(BadSample, match=r"bomb.png is above --max-image-pixels 89478485: ") as bad:
            look("bomb.png")
        assert bad.value.kind == "huge_image"
    assert folder(tmp_path, max_image_pixels=4_000_000_000).size("bomb.png") == (width, height)


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _write_damaged(path: Path) -> dict[str, bool]:
    """Damaged files, and whether the header tells."""
    picture(64, 64).save(path / "cut.jpg")
    _cut(path / "cut.jpg", 0.6)
    picture(64, 64).save(path / "cut.png")
    _cut(path / "cut.png", 0.6)
    picture(64, 64).save(path / "flipped.png")
    content = bytearray((path / "flipped.png").read_bytes())
    content[2000] ^= 255
    (path / "flipped.png").write_bytes(content)
    (path / "page.jpg").write_text("<html>404 Not Found</html>")
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path / "float.tif")
    return {"cut.jpg": False, "cut.png": False, "flipped.png": False, "page.jpg": True, "float.tif": True}


def test_damaged_images(tmp_path: Path) -> None:
    images = folder(tmp_path)
    for name, header_tells in _write_damaged(tmp_path).items():
        for look in (images.load, *([images.size] if header_tells else [])):
            with pytest.raises(BadSample) as bad:
                look(name)
            assert bad.value.kind == "damaged_image" and str(tmp_path / name) in bad.value.reason, name


def test_missing_images(tmp_path: Path) -> None:
    """Visual Genome's archive holds empty files, and OCR-VQA's .gif where the list says .jpg."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "sub").mkdir()
    picture(4, 4).save(tmp_path / "782118577.gif")
    for name, reason in {
        "none.jpg": f"no image {tmp_path}/none.jpg$",
        "empty.jpg": "empty.jpg is an empty file",
        "sub": "no image",
        "": "image '' is no path",
        "a\0b": "is no path",
        "782118577.jpg": "no image .*782118577.jpg, but 782118577.gif: rename it",
    }.items():
        with pytest.raises(BadSample) as bad:
            folder(tmp_path).path(name)
        assert bad.value.kind == "missing_image" and re.search(reason, bad.value.reason)
    with pytest.raises(BadSample, match=r"image 1\.jpg, and no --image-folder to look for it"):
        ImageFolder(ConversationConfig()).path("1.jpg")


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    for place in (inside, outside):
        place.mkdir()
        picture(4, 4).save(place / "1.png")
    os.symlink(outside, inside / "linked")
    os.symlink(outside / "1.png", inside / "link.png")
    os.symlink("1.png", inside / "own.png")
    images = folder(inside)
    assert images.path("own.png").samefile(inside / "1.png")
    for name in (str(inside / "1.png"), "../inside/1.png", "sub/../../1.png", "linked/1.png", "link.png"):
        with pytest.raises(BadSample, match=rf"image {name} (leads|is a link) out of --image-folder {inside}") as bad:
            images.path(name)
        assert bad.value.kind == "outside_image_folder"
    for name in ("linked/1.png", "link.png"):
        assert folder(inside, allow_image_links=True).load(name).size == (4, 4)
    with pytest.raises(BadSample, match="leads out of"):
        folder(inside, allow_image_links=True).path("../inside-not/1.png")
    assert folder(Path(os.path.relpath(inside))).path("1.png").exists()

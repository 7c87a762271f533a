"""What a file is, told by its first bytes.

Names are wrong more often than contents, and a file that is taken for what it is not is lost a line at a time, or whole.
"""

import re

from megatron_compete.common.errors import CompeteError

HEAD_BYTES = 1 << 16
"""How much of a file's beginning is looked at."""

_COMPRESSIONS: tuple[tuple[bytes, str], ...] = (
    (rb"\x1f\x8b", "gz"),
    (rb"\x28\xb5\x2f\xfd", "zst"),
    (rb"[\x50-\x5f]\x2a\x4d\x18", "zst"),  # a frame to be skipped, which pzstd begins with
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bz2"),
    (rb"\xfd7zXZ\x00", "xz"),
    (rb"\x04\x22\x4d\x18", "lz4"),
)

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (rb"PARE", "an encrypted Parquet file: decrypt it"),
    (rb"ARROW1\x00\x00|\xff\xff\xff\xff", "an Arrow file: write its table as Parquet"),
    (rb"Obj\x01", "an Avro file: write it as JSON Lines or Parquet"),
    (rb"\x89HDF\r\n", "an HDF5 file: write it as JSON Lines or Parquet"),
    (rb"SQLite format 3\x00", "an SQLite database: write it as JSON Lines or Parquet"),
    (rb"\x93NUMPY|MMIDIDX\x00", "an array of numbers and no text"),
    (rb"%PDF-", "a PDF: extract its text"),
    (rb"PK\x03\x04", "a zip archive: unpack it, and give what it holds"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive: unpack it, and give what it holds"),
    (rb"(?=.{0,100}\x00).{257}ustar", "a tar archive: unpack it, and give what it holds"),
    (rb"\x1f\x9d|\x02\x21\x4c\x18", "compressed by an old format (compress, or lz4 before its frames): decompress it"),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32: convert it with iconv -f UTF-32 -t UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16: convert it with iconv -f UTF-16 -t UTF-8"),
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer and not the file: get that with git lfs pull"),
)

_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|\?xml)", re.IGNORECASE)


def compression_of(head: bytes, named: str | None) -> str | None:
    """How a file is compressed.

    Args:
        head: its first bytes, at most `HEAD_BYTES`.
        named: what its name says, which holds for content that is neither compressed nor text: it is damaged.
    """
    for pattern, compression in _COMPRESSIONS:
        if re.match(pattern, head, re.DOTALL):
            return named if pattern.startswith(b"[") and named == "lz4" else compression
    return None if head and _is_text(head) else named


def is_parquet(head: bytes) -> bool:
    """Whether a file begins as Parquet does."""
    return head.startswith(b"PAR1")


def refuse_foreign(name: str, head: bytes, is_text: bool) -> None:
    """Look at the first bytes of what was decompressed, or never compressed.

    Args:
        is_text: whether the file is read as plain text, which may well be a web page.
    Raises:
        CompeteError: it is a known format that is not read; says which and what to do.
    """
    for pattern, what in _FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise CompeteError(f"--input {name} is {what}")
    if any(re.match(pattern, head, re.DOTALL) for pattern, _ in _COMPRESSIONS):
        raise CompeteError(f"--input {name} is compressed twice: decompress it once")
    if not is_text and _WEB_PAGE.match(head):
        raise CompeteError(f"--input {name} is a web page, which a download that failed leaves: download it again")


def _is_text(head: bytes) -> bool:
    """Whether these bytes are UTF-8 without control characters that no text has; the last character may be cut off."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
    return b"\x00" not in head

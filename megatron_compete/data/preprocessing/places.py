"""Line numbers in the file, for pieces whose reader did not read what lies before them."""

from megatron_compete.data.inputs.rows import row_group_rows
from megatron_compete.data.inputs.shards import Piece
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.inputs.streams import BUFFER_BYTES


def counts_from_piece(source: Source) -> bool:
    """Whether a reader numbers lines or rows from the beginning of a piece; otherwise from that of the source."""
    return source.compression is None and not source.is_pipe


def lines_before(source: Source, piece: Piece) -> int:
    """Lines or rows of the source before the first that belongs to the piece; reads what lies before, if need be."""
    if piece.start == 0 or not counts_from_piece(source):
        return 0
    if source.format == "parquet":
        return sum(row_group_rows(source)[: piece.start])
    lines, left = 1, piece.start - 1  # the line that byte `start - 1` is in is the last one before
    with open(source.path, "rb") as stream:
        while block := stream.read(min(left, BUFFER_BYTES)):
            lines += block.count(b"\n")
            left -= len(block)
    return lines

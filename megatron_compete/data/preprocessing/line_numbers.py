"""Line numbers in the file, for ranges of a file whose reader did not read what lies before them."""

from megatron_compete.data.inputs.rows import row_group_rows
from megatron_compete.data.inputs.shards import SourceRange
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.inputs.streams import BUFFER_BYTES


def counts_from_range(source: Source) -> bool:
    """Whether a reader numbers lines or rows from the beginning of a range; otherwise from that of the source."""
    return source.compression is None and not source.is_pipe


def lines_before(source: Source, range_: SourceRange) -> int:
    """Lines or rows of the source before the first that belongs to the range; reads what lies before, if need be."""
    if range_.start == 0 or not counts_from_range(source):
        return 0
    if source.format == "parquet":
        return sum(row_group_rows(source)[: range_.start])
    lines, left = 1, range_.start - 1  # the line that byte `start - 1` is in is the last one before
    with open(source.path, "rb") as stream:
        while block := stream.read(min(left, BUFFER_BYTES)):
            lines += block.count(b"\n")
            left -= len(block)
    return lines

"""A corpus in whatever form it comes: JSON Lines, Parquet or plain text, compressed or not, in files or on stdin.

    options.py    the flags, and which files they name      sources.py   one input file: format, compression, size
    streams.py    decompression, and what a cut-off archive looks like
    lines.py      lines and paragraphs of a byte range      rows.py      rows of Parquet row groups
    texts.py      what a line, a paragraph or a row holds under the keys
    shards.py     a corpus cut into shards that do not depend on who works on them
    documents.py  a corpus read in order by one process, and a sample of it

Everything streams: at most one document, or one batch of Parquet rows, is in memory.
"""

from megatron_compete.data.inputs.documents import Document, no_documents, read_documents, sample_texts
from megatron_compete.data.inputs.options import InputOptions, add_input_flags, find_sources, take_input_options
from megatron_compete.data.inputs.sources import Source, total_bytes

__all__ = [
    "Document",
    "InputOptions",
    "Source",
    "add_input_flags",
    "find_sources",
    "no_documents",
    "read_documents",
    "sample_texts",
    "take_input_options",
    "total_bytes",
]

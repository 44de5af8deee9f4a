"""Parquet in memory: the one way tables become bytes and bytes become tables.

Arrow's own threads must never hold a Python object. Given a Python file, Arrow decodes on threads of its pool that
take the interpreter's lock to release it; one that is late meets an interpreter which has begun to end, and the
process aborts after its work is done (7 of 60 processes with pyarrow 25; apache/arrow issues 34314 and 50482). So
bytes go in and out through Arrow's own buffers, and are decoded on the caller's thread.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

ERRORS = (pa.ArrowException, OSError, ValueError)
"""What `open_file`, `read` and a file's own methods raise on bytes that are not Parquet, or damaged."""


def write(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd")
    return bytes(out.getvalue().to_pybytes())


def open_file(data: bytes, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """A Parquet file with its footer read and nothing decoded yet, for looking before `decode`. Raises ERRORS.

    dictionaries: paths of text columns to decode as dictionaries, in which a text that repeats is kept once.
    """
    return pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(dictionaries))


def footer_size(file: pq.ParquetFile) -> tuple[int, int]:
    """How many values all columns hold, and how many bytes they are uncompressed: what the footer says of it."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    values = sum(group.column(c).num_values for group in groups for c in range(group.num_columns))
    return values, sum(group.total_byte_size for group in groups)


def decode(file: pq.ParquetFile) -> pa.Table:
    """All rows and columns of an opened file. Raises ERRORS."""
    return file.read(use_threads=False)


def read(data: bytes) -> pa.Table:
    """The table of a Parquet file. Raises ERRORS."""
    return decode(open_file(data))

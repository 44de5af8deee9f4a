"""Parquet in memory: what comes out is what went in, and no thread of Arrow's is left to meet a dying interpreter."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from hardloop.core import parquet

TABLE = pa.table({"sample_id": ["a", "b"], "truth": [3, 1]})

READS = """
import os, pathlib, sys
import pyarrow as pa
from hardloop.core import parquet
data = pathlib.Path(sys.argv[1]).read_bytes()
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
assert parquet.read(data).num_rows == 200_000
parquet.write(parquet.read(data))
print(threads() - before)
"""


def test_a_table_comes_back_as_it_went_in():
    assert parquet.read(parquet.write(TABLE)).equals(TABLE)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a table at all", parquet.write(TABLE)[:-9]])
def test_other_bytes_raise_what_it_says(data):
    with pytest.raises(parquet.ERRORS):
        parquet.read(data)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc, which only Linux has")
def test_reading_and_writing_start_no_thread(tmp_path: Path):
    """A thread of Arrow's pool that still holds our bytes when the interpreter ends aborts the process."""
    file = tmp_path / "table.parquet"
    file.write_bytes(parquet.write(pa.table({"n": range(200_000), "m": [1.5] * 200_000})))
    out = subprocess.run([sys.executable, "-c", READS, str(file)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "0"

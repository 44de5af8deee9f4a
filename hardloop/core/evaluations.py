"""Evaluations as Parquet: the file `evaluation.parquet` of a model folder, written by training, read by the registry.

One row per labelled sample with what the model said of it; documented in `docs/model-files.md`. Samples, not rows, are
what two models are compared on, so an id stands in the file once.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from hardloop.core import parquet
from hardloop.core.errors import BadInput, BadShape
from hardloop.core.records import Evaluation

FILE = "evaluation.parquet"
VERSION = 1
SLICES = ("mined", "audit", "legacy")
MAX_BYTES = 512 * 1024**2
MAX_VALUES = 200_000_000  # probabilities in all: 1.6 GB once they are in memory, 200,000 samples of 1,000 classes

_VERSION_KEY = b"hardloop.evaluation.version"

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("truth", pa.int64(), nullable=False),
        pa.field("probs", pa.list_(pa.float32()), nullable=False),
    ],
    metadata={_VERSION_KEY: str(VERSION).encode()},
)


def check(evaluation: Evaluation, name: str = "evaluation") -> Evaluation:
    """The evaluation itself when it holds what a gate can compare: see `read`. Raises BadShape naming the row."""
    n = len(evaluation.ids)
    probs_NC = evaluation.probs_NC
    if probs_NC.ndim != 2 or len(probs_NC) != n or evaluation.truth_N.shape != (n,) or len(evaluation.slices) != n:
        raise BadShape(
            f"{name}: {n} ids, {len(evaluation.slices)} slices, truths of shape {evaluation.truth_N.shape} and "
            f"probabilities of shape {probs_NC.shape} do not belong together: one row of each per sample"
        )
    if n == 0:
        return evaluation
    n_classes = probs_NC.shape[1]
    if n_classes < 2:
        raise BadShape(f"{name}: {n_classes} classes; at least 2 are needed")
    _no_row(~np.isfinite(probs_NC).all(axis=1), evaluation, name, "a probability is not a finite number")
    _no_row(probs_NC.min(axis=1) < -1e-6, evaluation, name, "a probability is negative")
    sums_N = probs_NC.sum(axis=1, dtype=np.float64)
    _no_row(np.abs(sums_N - 1.0) > 1e-3, evaluation, name, "the probabilities do not sum to 1")
    outside_N = (evaluation.truth_N < 0) | (evaluation.truth_N >= n_classes)
    _no_row(outside_N, evaluation, name, f"the truth is not a class index from 0 to {n_classes - 1}")
    unknown_N = [part not in SLICES for part in evaluation.slices]
    _no_row(unknown_N, evaluation, name, f"the slice is none of {', '.join(SLICES)}")
    first_row = dict(zip(reversed(evaluation.ids), range(n - 1, -1, -1), strict=True))
    repeated_N = [first_row[sample] != row for row, sample in enumerate(evaluation.ids)]
    _no_row(repeated_N, evaluation, name, "the sample id is there twice")
    return evaluation


def write(evaluation: Evaluation) -> bytes:
    """A Parquet file of the evaluation, rows in their order. Probabilities are kept as float32. Raises BadShape."""
    check(evaluation)
    n, n_classes = evaluation.probs_NC.shape
    flat = pa.array(np.ascontiguousarray(evaluation.probs_NC, dtype=np.float32).reshape(-1))
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * n_classes)
    columns = [
        pa.array(evaluation.ids, type=pa.string()),
        pa.array(evaluation.slices, type=pa.string()),
        pa.array(evaluation.truth_N, type=pa.int64()),
        pa.ListArray.from_arrays(offsets, flat),
    ]
    return parquet.write(pa.Table.from_arrays(columns, schema=SCHEMA))


def read(data: bytes, name: str = FILE) -> Evaluation:
    """The evaluation in a Parquet file: probs_NC float32 (N, C), rows sum to 1; truth_N in 0..C-1; ids distinct.

    Raises BadInput naming `name` for other files, other versions, files too large, and impossible values.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"{name} has {len(data):,} bytes, more than the {MAX_BYTES:,} accepted for an evaluation")
    try:
        table = _table(data, name)
    except parquet.ERRORS as error:
        raise BadInput(f"{name} is not a Parquet file ({error}): it is damaged or not an evaluation") from None
    if any(column.null_count for column in table.columns) or table["probs"].combine_chunks().flatten().null_count:
        raise BadInput(f"{name} holds empty cells: every sample needs id, slice, truth and probabilities")
    n = table.num_rows
    lengths = np.unique(table["probs"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise BadShape(f"{name}: rows hold {lengths[0]} to {lengths[-1]} probabilities; all need one per class")
    flat = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    evaluation = Evaluation(
        ids=tuple(table["sample_id"].to_pylist()),
        truth_N=np.array(table["truth"].to_numpy(), dtype=np.int64),
        probs_NC=np.array(flat, dtype=np.float32).reshape(n, int(lengths[0]) if n else 0),
        slices=tuple(table["slice"].to_pylist()),
    )
    return check(evaluation, name)


def _table(data: bytes, name: str) -> pa.Table:
    """The file's table, its version, size and columns checked on the footer before any column is decoded."""
    file = parquet.open_file(data)
    version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(VERSION):
        raise BadInput(
            f"{name} has evaluation schema version {version}: this Hardloop reads version {VERSION}; upgrade it"
        )
    if not file.schema_arrow.remove_metadata().equals(SCHEMA.remove_metadata()):
        raise BadInput(
            f"{name} claims evaluation schema version {VERSION} but its columns differ: see docs/model-files.md"
        )
    values, _ = parquet.footer_size(file)
    if values > MAX_VALUES:
        raise BadInput(f"{name} holds {values:,} values, more than the {MAX_VALUES:,} accepted for an evaluation")
    return parquet.decode(file)


def _no_row(bad_N: ArrayLike, evaluation: Evaluation, name: str, what: str) -> None:
    rows = np.flatnonzero(bad_N)
    if len(rows):
        raise BadShape(f"{name}, row {rows[0]} (sample {evaluation.ids[rows[0]]!r}): {what}")

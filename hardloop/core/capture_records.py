"""Capture records as Parquet: the versioned schema, documented in `docs/capture-schema.md`.

One file holds the records one writer flushed together. A reader takes every version it knows and refuses others by
name; columns are only ever added, with a new version number.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hardloop.core import parquet
from hardloop.core.errors import BadInput
from hardloop.core.records import CaptureRecord

VERSION = 1
MAX_BYTES = 512 * 1024**2  # of a file as it lies in the store, of its columns uncompressed, and of all its texts
MAX_RECORDS = 10_000  # as many as Capture may be told to write together
MAX_VALUES = 32_000_000  # 1 GB of Python numbers; twice a full file of 1,000 classes and a committee of 64
MAX_METADATA = 1024**2  # characters of one record's; JSON of nothing but brackets takes fifty times that in memory

_VERSION_KEY = b"hardloop.capture.version"

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("captured_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("loop", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("probs", pa.list_(pa.float32()), nullable=False),
        pa.field("member_probs", pa.list_(pa.list_(pa.float32()))),
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("encoder", pa.string()),
        pa.field("policies", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("propensity", pa.float64()),
        pa.field("audit", pa.bool_(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("burst_id", pa.string()),
        pa.field("metadata", pa.string(), nullable=False),
    ],
    metadata={_VERSION_KEY: str(VERSION).encode()},
)


def prefix(loop: str) -> str:
    """Where a loop's capture files lie; their names sort by time."""
    return f"captures/{loop}/"


def write(records: Sequence[CaptureRecord]) -> bytes:
    """A Parquet file of the records, in their order."""
    rows = [_row(record) for record in records]
    return parquet.write(pa.Table.from_pylist(rows, schema=SCHEMA))


def read(data: bytes, name: str = "capture file") -> list[CaptureRecord]:
    """The records of a capture file.

    Raises BadInput naming `name` for other files, versions, files too large and impossible values.
    """
    _check_size(name, MAX_BYTES, len(data), "bytes")
    try:
        table = _table(data, name)
    except parquet.ERRORS as error:
        raise BadInput(f"{name} is not a Parquet file ({error}): it is damaged or was not written by Capture") from None
    try:
        rows = table.to_pylist()
    except (
        pa.ArrowException,
        ValueError,
        OverflowError,
    ) as error:  # moments after the year 9999, text that is not UTF-8
        raise BadInput(f"{name} holds values that its columns cannot have ({error}): it is damaged") from None
    return [_record(row, f"{name}, row {number}") for number, row in enumerate(rows)]


def _table(data: bytes, name: str) -> pa.Table:
    """The file's table, its version, columns and size checked before anything of that size is in memory.

    Texts come as dictionaries: a file may repeat a long text at no cost to itself.
    """
    file = parquet.open_file(data)
    version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(VERSION):
        raise BadInput(
            f"{name} has capture schema version {version}: this Hardloop reads version {VERSION}; upgrade it"
        )
    if not file.schema_arrow.remove_metadata().equals(SCHEMA.remove_metadata()):
        raise BadInput(
            f"{name} claims capture schema version {VERSION} but its columns differ: see docs/capture-schema.md"
        )
    values, uncompressed = parquet.footer_size(file)
    _check_size(name, MAX_RECORDS, file.metadata.num_rows, "records")
    _check_size(name, MAX_VALUES, values, "values")
    _check_size(name, MAX_BYTES, uncompressed, "bytes uncompressed")
    columns = map(file.schema.column, range(len(file.schema)))
    table = parquet.decode(parquet.open_file(data, [c.path for c in columns if c.physical_type == "BYTE_ARRAY"]))
    texts = sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks)
    _check_size(name, MAX_BYTES, texts, "bytes of text")
    return table


def _check_size(name: str, limit: int, size: int, unit: str) -> None:
    if size > limit:
        raise BadInput(f"{name} holds {size:,} {unit}, more than the {limit:,} accepted for a capture file")


def _text_bytes(array: pa.Array) -> int:
    """How many bytes the texts of a column are once each stands for itself."""
    import pyarrow.compute as pc  # slow to import, and beside a model, which only writes, never needed

    if pa.types.is_map(array.type):
        return _text_bytes(array.keys)
    if pa.types.is_list(array.type):
        return _text_bytes(array.flatten())
    if not pa.types.is_dictionary(array.type):
        return 0
    lengths = pc.binary_length(array.dictionary)
    return pc.sum(lengths.take(array.indices.drop_null())).as_py() or 0


def _row(record: CaptureRecord) -> dict[str, Any]:
    members = record.member_probs_MC
    return {
        "sample_id": record.sample_id,
        "image_key": record.image_key,
        "captured_at": record.captured_at,
        "loop": record.loop,
        "model_version": record.model_version,
        "labels": list(record.labels),
        "probs": np.asarray(record.probs_C, dtype=np.float32),
        "member_probs": None if members is None else [np.asarray(m, dtype=np.float32) for m in members],
        "embedding": None if record.embedding_D is None else np.asarray(record.embedding_D, dtype=np.float32),
        "encoder": record.encoder,
        "policies": list(record.policies.items()),
        "propensity": record.propensity,
        "audit": record.audit,
        "source": record.source,
        "group_id": record.group_id,
        "burst_id": record.burst_id,
        "metadata": json.dumps(dict(record.metadata), sort_keys=True),
    }


def _record(row: dict[str, Any], name: str) -> CaptureRecord:
    labels = tuple(row["labels"])
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise BadInput(f"{name}: labels must be distinct and none may be missing")
    if not all(isinstance(value, float) for _, value in row["policies"]):
        raise BadInput(f"{name}: a policy has no value")
    probs_C = _probabilities(row["probs"], len(labels), name)
    members = row["member_probs"]
    if (row["embedding"] is None) != (row["encoder"] is None):
        raise BadInput(f"{name}: an embedding and its encoder's version come together or not at all")
    embedding = None if row["embedding"] is None else np.asarray(row["embedding"], dtype=np.float32)
    if embedding is not None and not np.isfinite(embedding).all():
        raise BadInput(f"{name}: the embedding holds a value that is not finite")
    if len(row["metadata"]) > MAX_METADATA:
        raise BadInput(f"{name}: metadata has more than the {MAX_METADATA:,} characters accepted")
    try:
        metadata = {str(k): str(v) for k, v in json.loads(row["metadata"]).items()}
    except (ValueError, AttributeError, RecursionError):
        raise BadInput(f"{name}: metadata is not a JSON object of strings") from None
    return CaptureRecord(
        sample_id=row["sample_id"],
        image_key=row["image_key"],
        captured_at=row["captured_at"],
        loop=row["loop"],
        model_version=row["model_version"],
        labels=labels,
        probs_C=probs_C,
        member_probs_MC=None if not members else np.stack([_probabilities(m, len(labels), name) for m in members]),
        embedding_D=embedding,
        encoder=row["encoder"],
        policies=dict(row["policies"]),
        propensity=row["propensity"],
        audit=row["audit"],
        source=row["source"],
        group_id=row["group_id"],
        burst_id=row["burst_id"],
        metadata=metadata,
    )


def _probabilities(values: Sequence[float] | None, n_classes: int, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    probs_C = np.asarray([] if values is None else values, dtype=np.float32)
    if len(probs_C) != n_classes or n_classes < 2:
        raise BadInput(f"{name}: {len(probs_C)} probabilities for {n_classes} labels; at least 2 of each are needed")
    if not np.isfinite(probs_C).all() or probs_C.min() < -1e-6 or abs(float(probs_C.sum()) - 1.0) > 1e-3:
        raise BadInput(f"{name}: probabilities must be finite, not negative and sum to 1")
    return probs_C

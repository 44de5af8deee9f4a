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
    """The records of a capture file. Raises BadInput naming `name` for other files, versions and impossible values."""
    try:
        table = parquet.read(data)
    except parquet.ERRORS as error:
        raise BadInput(f"{name} is not a Parquet file ({error}): it is damaged or was not written by Capture") from None
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(VERSION):
        raise BadInput(
            f"{name} has capture schema version {version}: this Hardloop reads version {VERSION}; upgrade it"
        )
    if not table.schema.remove_metadata().equals(SCHEMA.remove_metadata()):
        raise BadInput(
            f"{name} claims capture schema version {VERSION} but its columns differ: see docs/capture-schema.md"
        )
    try:
        rows = table.to_pylist()
    except (
        pa.ArrowException,
        ValueError,
        OverflowError,
    ) as error:  # moments after the year 9999, text that is not UTF-8
        raise BadInput(f"{name} holds values that its columns cannot have ({error}): it is damaged") from None
    return [_record(row, f"{name}, row {number}") for number, row in enumerate(rows)]


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
    try:
        metadata = {str(k): str(v) for k, v in json.loads(row["metadata"]).items()}
    except (ValueError, AttributeError):
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

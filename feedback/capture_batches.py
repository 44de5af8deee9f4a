"""What the capture writer works with: its settings and counters, samples on their way, and batches as Parquet bytes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from feedback.stored_image import StoredImage
from hardloop.core.records import CaptureRecord

log = logging.getLogger("hardloop.capture")


class WriterSettings(BaseModel):
    """How much may wait, how it is batched, and how long a failing store is left alone between tries.

    max_pending, max_pending_bytes: what may wait in memory before new samples are dropped.
    batch_records, batch_bytes: a batch is written when it has this much, or when its first sample waited
        `flush_interval_s`. threads: batches written at the same time; further threads start only under backlog.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_pending: Annotated[int, Field(ge=1)] = 4096
    max_pending_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    batch_records: Annotated[int, Field(ge=1, le=1_000)] = 256
    batch_bytes: Annotated[int, Field(ge=1)] = 32 * 1024 * 1024
    flush_interval_s: Annotated[float, Field(ge=0.0, le=300.0)] = 2.0
    threads: Annotated[int, Field(ge=1, le=32)] = 4
    first_retry_s: Annotated[float, Field(gt=0.0)] = 0.2
    last_retry_s: Annotated[float, Field(gt=0.0)] = 15.0
    exit_flush_s: Annotated[float, Field(ge=0.0)] = 5.0


@dataclass(frozen=True, slots=True)
class CaptureStats:
    """Counters since this process opened the capture. accepted == written + pending + what was dropped when accepted.

    offered: calls of `log`. taken: samples per policy, whether or not they could be kept. refused: bad input by reason.
    dropped: taken samples that were not kept, by reason: "queue_full", "closed" (offered to or left over at close),
    "bad_image" (the full decode failed), "unwritable" (the record does not fit the schema), "internal_error".
    pending, pending_bytes: accepted and not yet safe in the store. last_error: why writing was last tried again.
    """

    offered: int
    taken: Mapping[str, int]
    refused: Mapping[str, int]
    accepted: int
    written: int
    dropped: Mapping[str, int]
    pending: int
    pending_bytes: int
    retries: int
    last_error: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A captured sample on its way to the store. image_checked: somebody decoded the whole image already."""

    image: StoredImage
    record: CaptureRecord
    image_checked: bool
    accepted_at: float
    size: int


def encode(items: Sequence[Pending]) -> tuple[list[Pending], bytes]:
    """The items whose records fit the schema, and their Parquet file. One odd record must not take a batch with it."""
    from hardloop.core import capture_records  # pyarrow is slow to import: not before something is captured

    try:
        return list(items), capture_records.write([item.record for item in items])
    except Exception as error:  # pyarrow raises many types; each means that a value does not fit its column
        if len(items) <= 1:
            log.error("capture: a record does not fit the schema and is dropped: %s", error)
            return [], b""
    fitting = [item for item in items if encode([item])[0]]
    return fitting, capture_records.write([item.record for item in fitting])


def warm() -> None:
    """Write one record to nowhere, so that pyarrow imports all it ever will.

    It imports on first use (pandas too, where it is installed), and a process that is ending cannot import any more:
    the last batch would be lost. It also keeps half a second of imports from beside the first prediction.
    """
    from hardloop.core import capture_records

    probs_C, embedding_D = np.full(2, 0.5, dtype=np.float32), np.zeros(1, dtype=np.float32)
    capture_records.write(
        [
            CaptureRecord(
                "0", "0", datetime.now(UTC), "warm", "0", ("0", "1"), probs_C, {"take_all": 1.0}, "0", "0",
                member_probs_MC=probs_C[None, :], embedding_D=embedding_D, encoder="0",
            )
        ]
    )  # fmt: skip

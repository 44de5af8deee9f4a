"""Embeddings in the object store: Parquet parts under `embeddings/{loop}/{encoder}/`, one space per encoder."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardloop.core import ids, parquet
from hardloop.core.errors import BadInput, BadShape
from hardloop.core.ports import BlobStore

_SCHEMA = pa.schema([pa.field("sample_id", pa.string(), nullable=False),
                     pa.field("embedding", pa.list_(pa.float32()), nullable=False)])  # fmt: skip


class EmbeddingStore:
    """The embeddings of one loop's samples. Parts are immutable; writing the same samples again replaces one part."""

    def __init__(self, blobs: BlobStore, loop: str) -> None:
        self._blobs = blobs
        self._loop = loop

    def add(self, encoder: str, sample_ids: Sequence[str], embeddings_ND: NDArray[np.float32]) -> None:
        """Store the embeddings of some samples. Raises BadShape unless they are finite, one row per sample."""
        if embeddings_ND.shape[:1] != (len(sample_ids),) or embeddings_ND.ndim != 2:
            raise BadShape(f"{len(sample_ids)} samples but embeddings of shape {embeddings_ND.shape}")
        if not np.isfinite(embeddings_ND).all():
            raise BadShape(f"encoder {encoder!r} gave embeddings that are not finite")
        if not sample_ids:
            return
        table = pa.table([pa.array(sample_ids), pa.array(list(embeddings_ND.astype(np.float32)))], schema=_SCHEMA)
        self._blobs.put(f"{self._prefix(encoder)}{ids.short_digest(sorted(sample_ids))}.parquet", parquet.write(table))

    def load(self, encoder: str) -> tuple[list[str], NDArray[np.float32]]:
        """All samples that have an embedding of this encoder, each once, and their (N, D) float32 embeddings."""
        found: dict[str, NDArray[np.float32]] = {}
        for key in self._blobs.keys(self._prefix(encoder)):
            try:
                table = parquet.read(self._blobs.get(key)).cast(_SCHEMA)
            except parquet.ERRORS as error:
                raise BadInput(
                    f"embedding part {key!r} cannot be read ({error}): delete it to have it made anew"
                ) from None
            flat = table.column("embedding").combine_chunks()
            values_ND = np.asarray(flat.values, dtype=np.float32).reshape(len(table), -1)
            found.update(zip(table.column("sample_id").to_pylist(), values_ND, strict=True))
        if not found:
            return [], np.zeros((0, 0), dtype=np.float32)
        if len({row.shape for row in found.values()}) > 1:
            raise BadShape(f"encoder {encoder!r} has embeddings of different lengths: give each encoder its own name")
        return list(found), np.stack(list(found.values()))

    def _prefix(self, encoder: str) -> str:
        return f"embeddings/{self._loop}/{encoder}/"

"""The ports: what a room needs from outside itself. Adapters are chosen in `hardloop/service/wiring.py` alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import (
    Changes,
    Evaluation,
    Floats,
    ModelVersion,
    Pool,
    Prediction,
    Selection,
    TaskDraft,
    TrainedModel,
    Verdict,
)

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while long work goes on."""


class BlobStore(Protocol):
    """An object store. Keys are '/'-separated without empty segments; no key is another key's folder."""

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Store bytes under a key, replacing what was there, all or nothing."""
        ...

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """Store bytes unless the key is taken. Returns whether it was free; of two racing writers at most one wins."""
        ...

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """The bytes under a key. Raises BlobMissing; BadInput where they are more than max_bytes."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""
        ...

    def keys(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Keys under a prefix, those after `start_after` only; keys of one folder are in ascending byte order.

        Servers differ in how they order keys of different folders (is "a/b" before "a-b"?), so `start_after` is for
        prefixes that name a folder without folders in it, as in `keys("captures/loop/", last)`.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if it is not there."""
        ...

    def uri(self, key: str) -> str:
        """The address others reach the object by, e.g. `s3://bucket/key`."""
        ...


class AnnotationTool(Protocol):
    """Where people answer: one project of one loop. Every call may be repeated without a second effect."""

    @property
    def project_id(self) -> int:
        """The project's number in the tool; created or found by the adapter's constructor."""
        ...

    def send(self, drafts: Sequence[TaskDraft]) -> Mapping[str, int]:
        """Make one task per sample, those that exist already included, predictions attached.

        Returns task ids by sample id for exactly the samples given. A sample that has a task keeps it.
        """
        ...

    def predict(self, predictions: Mapping[int, Prediction]) -> None:
        """Attach predictions by task id, one per (task, model version); older versions' are removed."""
        ...

    def changes(self, cursor: str) -> Changes:
        """Tasks whose answers moved since the cursor ("" for all), each with all its answers as they are now."""
        ...

    def task_ids(self) -> frozenset[int]:
        """Every task the project holds now: what is missing was deleted by somebody."""
        ...

    def task_url(self, task_id: int) -> str:
        """Where a person opens the task in a browser."""
        ...


class Miner(Protocol):
    """Picks the samples worth a person's time."""

    def __call__(self, pool: Pool, budget: int, seed: int) -> Selection:
        """At most `budget` picks; the same pool (in any row order), budget and seed give the same picks."""
        ...


class Encoder(Protocol):
    """Turns images into embeddings without any training, for cold starts and a stable neighbour graph."""

    @property
    def version(self) -> str:
        """Names the embedding space: equal versions are comparable, others are not."""
        ...

    def encode(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Encoded image files to (N, D) float32, unit norm. Raises BadImage naming the position."""
        ...


class Scorer(Protocol):
    """A model version loaded for scoring."""

    @property
    def encoder(self) -> str:
        """Names the space of its embeddings."""
        ...

    def score(self, images: Sequence[bytes]) -> "Scores":
        """Probabilities, members' probabilities and embeddings of encoded image files, row by row."""
        ...


class Scores(Protocol):
    """What a Scorer says of N images: probs_NC sum to 1; member_probs_MNC without a committee has M = 0."""

    @property
    def probs_NC(self) -> Floats: ...
    @property
    def member_probs_MNC(self) -> Floats: ...
    @property
    def embeddings_ND(self) -> Floats: ...


class Trainer(Protocol):
    """Trains a candidate from a dataset version in the store."""

    def __call__(self, dataset_key: str, recipe: str, seed: int, folder: Path, progress: Progress) -> TrainedModel:
        """Train into `folder`, resuming what an interrupted call left there.

        Raises Leakage when held-out samples or their near-duplicates are in the training split, BadData when the
        dataset cannot be trained on (one class, unreadable images), ExportMismatch.
        """
        ...


class Registry(Protocol):
    """Model versions of one loop, their verdicts and the `champion` alias."""

    def register(self, model: TrainedModel, training_key: str, dataset_key: str, dataset_digest: str) -> ModelVersion:
        """Log a training as a run and make it a version with the alias `candidate`. Once per training_key."""
        ...

    def find(self, training_key: str) -> ModelVersion | None:
        """The version a training became, if it was registered."""
        ...

    def champion(self) -> ModelVersion | None:
        """The version that serves, None before the first promotion."""
        ...

    def versions(self) -> Sequence[ModelVersion]:
        """All versions, the oldest first."""
        ...

    def evaluation(self, version: ModelVersion) -> Evaluation:
        """The predictions on held-out samples logged with the version."""
        ...

    def record(self, version: ModelVersion, verdict: Verdict) -> None:
        """Store the gate's verdict with its numbers on the version."""
        ...

    def promote(self, version: ModelVersion, reason: str) -> None:
        """Move `champion` to this version, remembering which one it took over from."""
        ...

    def rollback(self, reason: str) -> ModelVersion:
        """Move `champion` back to the version before it. Raises Conflict where there is none."""
        ...

    def fetch(self, version: ModelVersion, folder: Path) -> Path:
        """Bring the version's model files into a folder, checked against their digests. Raises BadModel."""
        ...

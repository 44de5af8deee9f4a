"""Capture: one call beside a model's prediction decides whether the sample is worth keeping, and keeps it.

    capture = Capture.from_env("shoes", labels=["boot", "sandal"], model_version="3")
    decision = capture.log(image=jpeg_bytes, probabilities=[0.55, 0.45], source="shop-4")

The decision is made on the caller's thread in microseconds; everything slow happens in the writer's threads. Samples
accepted (`decision.taken`) reach the store unless the process is killed first or `close` runs out of time; whatever
does not is counted by reason in `capture.stats`. What is written: `docs/capture-schema.md`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from numpy.typing import ArrayLike

from feedback.capture_batches import CaptureStats, WriterSettings
from feedback.capture_store import store_from_env, store_opener
from feedback.capture_writer import CaptureWriter
from feedback.policies import CapturePolicy, Taken, decide
from feedback.prediction import PredictionFacts, checked_labels, checked_prediction
from feedback.stored_image import StoredImage, check_header, stored
from hardloop.core import ids
from hardloop.core.errors import BadImage, BadInput, BadShape
from hardloop.core.records import CaptureRecord

if TYPE_CHECKING:
    from feedback.stored_image import ImageLike
    from hardloop.core.blobs import S3Settings
    from hardloop.core.ports import BlobStore

__all__ = ["Capture", "CapturePolicy", "CaptureStats", "Decision", "WriterSettings"]

log = logging.getLogger("hardloop.capture")


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one prediction.

    sample_id: the id of the image, "" where it could not be read. policies: those that took it, with the value each
    saw. taken: accepted for writing. dropped: why a sample that policies wanted was not accepted ("queue_full",
    "closed"). refused: why the input was not looked at, where capture is not strict.
    """

    sample_id: str
    policies: Mapping[str, float] = field(default_factory=dict)
    taken: bool = False
    dropped: str | None = None
    refused: str | None = None


class Capture:
    """Captures one loop's predictions in one process. Safe to share between threads; `log` may be called in asyncio.

    store: a blob store, or the settings of a bucket. labels: class names in the order of the probabilities.
    model_version: the default of `log`'s argument. strict: whether bad input raises; without it a model server is never
    disturbed: bad input is counted by reason in `stats.refused` and logged once per reason.
    Raises BadSettings for a loop name or address that cannot be used, BadInput for impossible labels.
    """

    def __init__(
        self,
        store: "BlobStore | S3Settings",
        loop: str,
        labels: Sequence[str],
        policy: CapturePolicy | None = None,
        model_version: str | None = None,
        *,
        strict: bool = False,
        writer: WriterSettings | None = None,
    ) -> None:
        self.loop = ids.loop_name(loop)
        self.labels = checked_labels(labels)
        self.policy = policy or CapturePolicy()
        self.strict = strict
        self._model_version = model_version
        self._writer = CaptureWriter(store_opener(store), self.loop, writer or WriterSettings())

    @classmethod
    def from_env(
        cls,
        loop: str,
        labels: Sequence[str],
        policy: CapturePolicy | None = None,
        model_version: str | None = None,
        *,
        strict: bool = False,
        writer: WriterSettings | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """A capture whose store is named by the environment.

        HARDLOOP_S3_URL is http(s)://host:port, with HARDLOOP_S3_BUCKET, HARDLOOP_S3_ACCESS_KEY,
        HARDLOOP_S3_SECRET_KEY and optionally HARDLOOP_S3_REGION; or file:///folder for a directory-backed store.
        Raises BadSettings naming every variable that is missing.
        """
        return cls(store_from_env(environ), loop, labels, policy, model_version, strict=strict, writer=writer)

    @property
    def stats(self) -> CaptureStats:
        """The counters of this process, as they are now."""
        return self._writer.stats()

    def log(
        self,
        *,
        image: "ImageLike",
        probabilities: ArrayLike,
        member_probabilities: ArrayLike | None = None,
        embedding: ArrayLike | None = None,
        encoder: str | None = None,
        source: str = "default",
        group_id: str | None = None,
        burst_id: str | None = None,
        metadata: Mapping[str, str | int | float | bool] | None = None,
        model_version: str | None = None,
        image_checked: bool = False,
    ) -> Decision:
        """Decide about one prediction and queue it when a policy takes it. Never waits for the store.

        image: the encoded file, or pixels (H, W, 3) uint8, or a PIL image; best the file as it came in.
        probabilities: C numbers that sum to 1, in the order of the labels. member_probabilities: the same of each
        further committee member, (M, C). embedding: D numbers, in the space that `encoder` names.
        group_id: what must never be split between training and test (camera, customer, video); the sample itself where
        not given. burst_id: frames of one moment. metadata: at most 64 short entries.
        image_checked: the caller has decoded the whole image already, so that the writer need not.
        Raises BadImage, BadShape or BadInput when strict, else nothing.
        """
        facts = {"source": source, "group_id": group_id, "burst_id": burst_id, "encoder": encoder,
                 "model_version": self._model_version if model_version is None else model_version}  # fmt: skip
        picture: StoredImage | None = None
        try:
            picture = stored(image)
            prediction = checked_prediction(
                len(self.labels), probabilities, member_probabilities, embedding, metadata, facts
            )
            return self._decide(picture, prediction, image_checked)
        except BadInput as error:
            if self.strict:
                raise
            return self._refused(picture, _reason(error), error)
        except Exception as error:
            if self.strict:
                raise
            # Whatever is wrong here, the prediction beside which this was called must go out.
            return self._refused(picture, "internal_error", error)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all accepted so far is in the store. Returns whether it is, False when time runs out."""
        return self._writer.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Flush and stop. Returns whether everything was written; what was not is in `stats.dropped["closed"]`."""
        return self._writer.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, picture: StoredImage, prediction: PredictionFacts, image_checked: bool) -> Decision:
        group_id = prediction.group_id or picture.sample_id
        taken = decide(
            self.policy, self.loop, picture.sample_id, group_id, prediction.probs_C, prediction.member_probs_MC
        )
        if taken.policies and not image_checked:
            check_header(picture.data)
        self._writer.count(taken.policies)
        if not taken.policies:
            return Decision(picture.sample_id)
        dropped = self._writer.offer(picture, self._record(picture, prediction, group_id, taken), image_checked)
        return Decision(picture.sample_id, dict(taken.policies), dropped is None, dropped)

    def _record(self, picture: StoredImage, prediction: PredictionFacts, group_id: str, taken: Taken) -> CaptureRecord:
        return CaptureRecord(
            sample_id=picture.sample_id,
            image_key=picture.key,
            captured_at=datetime.now(UTC),
            loop=self.loop,
            model_version=prediction.model_version,
            labels=self.labels,
            probs_C=prediction.probs_C,
            policies=taken.policies,
            source=prediction.source,
            group_id=group_id,
            audit=taken.audit,
            propensity=taken.propensity,
            burst_id=prediction.burst_id,
            member_probs_MC=prediction.member_probs_MC,
            embedding_D=prediction.embedding_D,
            encoder=prediction.encoder,
            metadata=prediction.metadata,
        )

    def _refused(self, picture: StoredImage | None, reason: str, error: Exception) -> Decision:
        if self._writer.count_refused(reason):
            fault = reason == "internal_error"
            log.error(
                "capture: input refused as %s (logged once): %s", reason, error, exc_info=error if fault else None
            )
        return Decision("" if picture is None else picture.sample_id, refused=reason)


def _reason(error: BadInput) -> str:
    if isinstance(error, BadImage):
        return "bad_image"
    return "bad_shape" if isinstance(error, BadShape) else "bad_input"

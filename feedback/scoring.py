"""What stands behind the predictor's routes: scoring and capturing on worker threads, and looking for a new model."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from feedback.capture import Capture, Decision
from feedback.champion import Champion, CurrentModel, Loaded
from feedback.requests import Upload
from feedback.stored_image import check_header
from hardloop.core import ids, images
from hardloop.core.errors import HardloopError, Unavailable

log = logging.getLogger("hardloop.serving")


class ServerSettings(BaseModel):
    """Limits and rhythm of the predictor service.

    poll_s: pause between two looks at which version should serve. reload_secret: what `X-Hardloop-Secret` must hold for
    POST /reload; without one that door is closed. workers: requests scored at the same time, each on `model_threads`
    cores. max_waiting: requests accepted and not yet answered before new ones get 503.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    poll_s: Annotated[float, Field(gt=0.0)] = 5.0
    reload_secret: SecretStr | None = None
    max_image_bytes: Annotated[int, Field(ge=1, le=images.MAX_BYTES)] = 16 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1, le=images.MAX_PIXELS)] = 40_000_000
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 64
    max_request_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    model_threads: Annotated[int, Field(ge=1, le=256)] = 1
    model_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    max_waiting: Annotated[int, Field(ge=1)] = 128
    flush_timeout_s: Annotated[float, Field(ge=0.0)] = 10.0


class Answer(BaseModel):
    """What the model says of one image. captured: the policies that took it for the loop, empty when none did."""

    sample_id: str
    model_version: str
    label: str
    probabilities: dict[str, float]
    captured: list[str]


class BatchAnswer(BaseModel):
    """Answers to the images of one request, in their order, all by one version."""

    model_version: str
    predictions: list[Answer]


class ModelInfo(BaseModel):
    """The version that serves."""

    version: str
    labels: list[str]
    recipe: str
    encoder: str
    members: int
    loaded_at: datetime


class Reloaded(BaseModel):
    """The version that serves after a look, and whether the look changed it."""

    version: str | None
    changed: bool


class Service:
    """What the routes share: the champion, the capture, the threads that score and the counters."""

    def __init__(self, provider: CurrentModel, capture: Capture | None, settings: ServerSettings) -> None:
        labels = None if capture is None else capture.labels
        self.settings = settings
        self.capture = capture
        self.champion = Champion(provider, labels, settings.model_threads, settings.model_batch)
        self._scoring = ThreadPoolExecutor(settings.workers, thread_name_prefix="hardloop-score")
        # Loading has a thread of its own: it must not wait behind requests, nor they behind it.
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="hardloop-load")
        self._waiting = 0
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._images: Counter[str] = Counter()
        self._swaps = 0

    async def predict(self, uploads: Sequence[Upload]) -> BatchAnswer:
        """Score and capture on a worker thread. Raises BadImage; Unavailable without a model or with a full line."""
        if self._waiting >= self.settings.max_waiting:
            raise Unavailable(f"{self._waiting} requests are waiting already: come back in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._scoring, self._predict, uploads)
        finally:
            self._waiting -= 1

    async def refresh(self, insist: bool) -> bool:
        """Look for another version on the loading thread. Raises as `Champion.refresh`."""
        changed = await asyncio.get_running_loop().run_in_executor(
            self._loading, lambda: self.champion.refresh(insist=insist)
        )
        self._swaps += changed
        return changed

    async def poll(self) -> None:
        """Refresh for ever."""
        said = None
        while True:
            try:
                await self.refresh(insist=False)
            except HardloopError as error:
                if str(error) != said:
                    log.error("%s", error)
            except Exception:  # a fault of ours must not end the polling, and with it all promotions
                log.exception("a fault while looking for a new model")
            said = self.champion.problem
            await asyncio.sleep(self.settings.poll_s)

    def serving(self) -> Loaded:
        """The version that serves. Raises Unavailable before the first."""
        loaded = self.champion.current
        if loaded is None:
            raise Unavailable(f"no model serves yet: {self.champion.problem or 'none has been promoted'}")
        return loaded

    def stats(self) -> dict[str, Any]:
        """Counters since the start, by model version, and those of the capture."""
        with self._lock:
            requests, counted = dict(self._requests), dict(self._images)
        capture = None if self.capture is None else asdict(self.capture.stats)
        return {"requests": requests, "images": counted, "swaps": self._swaps, "waiting": self._waiting,
                "capture": capture}  # fmt: skip

    def stop(self) -> None:
        """Let running requests end, and bring what was captured to the store."""
        self._scoring.shutdown()
        self._loading.shutdown(wait=False, cancel_futures=True)
        if self.capture is not None:
            self.capture.flush(self.settings.flush_timeout_s)

    def _predict(self, uploads: Sequence[Upload]) -> BatchAnswer:
        loaded = self.serving()  # once: every answer of this request is this version's
        for position, upload in enumerate(uploads):
            check_header(upload.image, self.settings.max_pixels, f"image {position}")
        scores = loaded.predictor.score([upload.image for upload in uploads])
        labels = loaded.predictor.labels
        answers = []
        for row, upload in enumerate(uploads):
            probs_C = scores.probs_NC[row]
            decision = self._captured(
                loaded, upload, probs_C, scores.member_probs_MNC[:, row], scores.embeddings_ND[row]
            )
            answers.append(
                Answer(
                    sample_id=ids.sample_id(upload.image),
                    model_version=loaded.version,
                    label=labels[int(probs_C.argmax())],
                    probabilities=dict(zip(labels, probs_C.tolist(), strict=True)),
                    captured=sorted(decision.policies) if decision and decision.taken else [],
                )
            )
        with self._lock:
            self._requests[loaded.version] += 1
            self._images[loaded.version] += len(uploads)
        return BatchAnswer(model_version=loaded.version, predictions=answers)

    def _captured(
        self, loaded: Loaded, upload: Upload, probs_C: Any, members_MC: Any, embedding_D: Any
    ) -> Decision | None:
        if self.capture is None:
            return None
        return self.capture.log(
            image=upload.image,
            probabilities=probs_C,
            member_probabilities=members_MC,
            embedding=embedding_D,
            encoder=loaded.predictor.encoder,
            source=upload.source,
            group_id=upload.group_id,
            burst_id=upload.burst_id,
            model_version=loaded.version,
            image_checked=True,
        )

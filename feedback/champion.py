"""The model that serves, and its replacement: load beside, check, swap in one step, keep the old one when in doubt."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from feedback.predictor import Predictor
from hardloop.core.errors import BadModel, HardloopError, Unavailable

log = logging.getLogger("hardloop.serving")

CurrentModel = Callable[[], tuple[str, Callable[[Path], Path]] | None]
"""Asks which version should serve: its name and a function that fetches its files into a folder; None for none yet.

May take long and may raise; it is called from one thread at a time, never from a request's.
"""

FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A version in memory, ready to answer. A request keeps the one it started with."""

    version: str
    predictor: Predictor
    loaded_at: datetime


@dataclass(frozen=True, slots=True)
class _Failure:
    """A version that could not be loaded, and when it may be tried again."""

    version: str
    error: HardloopError
    retry_at: float
    pause_s: float


class Champion:
    """Holds what serves now and replaces it. `current` never waits and never changes under a request.

    labels: what every version must answer, in this order; None to take them as they come.
    """

    def __init__(
        self, provider: CurrentModel, labels: tuple[str, ...] | None = None, threads: int = 1, batch: int = 32
    ) -> None:
        self._provider = provider
        self._labels = labels
        self._threads = threads
        self._batch = batch
        self._loaded: Loaded | None = None
        self._failure: _Failure | None = None
        self._problem: str | None = None
        self._one_at_a_time = threading.Lock()

    @property
    def current(self) -> Loaded | None:
        """What serves now."""
        return self._loaded

    @property
    def problem(self) -> str | None:
        """Why the version asked for is not the one that serves; None when it is."""
        return self._problem

    def refresh(self, *, insist: bool = False) -> bool:
        """Look which version should serve and load it when it is another one. Returns whether the model was swapped.

        A version that could not be loaded is left alone for a growing while, unless `insist`.
        Raises BadModel or Unavailable when the version asked for cannot serve; the old one serves on.
        """
        with self._one_at_a_time:
            try:
                swapped = self._refresh(insist)
            except HardloopError as error:
                self._problem = str(error)
                raise
            self._problem = None
            return swapped

    def _refresh(self, insist: bool) -> bool:
        wanted = self._ask()
        if wanted is None:
            if self._loaded is not None:
                raise Unavailable(f"no model is the champion any more: version {self._loaded.version} serves on")
            return False
        version, fetch = wanted
        if self._loaded is not None and self._loaded.version == version:
            return False
        failure = self._failure if self._failure and self._failure.version == version else None
        if failure and not insist and time.monotonic() < failure.retry_at:
            raise failure.error.with_traceback(None)  # each raise adds to the traceback that the error keeps
        try:
            loaded = self._load(version, fetch)
        except HardloopError as error:
            pause_s = FIRST_PAUSE_S if failure is None else min(2 * failure.pause_s, LAST_PAUSE_S)
            self._failure = _Failure(version, error, time.monotonic() + pause_s, pause_s)
            raise
        before, self._loaded, self._failure = self._loaded, loaded, None
        log.info("serving version %s after %s", version, "none" if before is None else before.version)
        return True

    def _ask(self) -> tuple[str, Callable[[Path], Path]] | None:
        try:
            return self._provider()
        except HardloopError:
            raise
        except Exception as error:  # the provider's library has its own errors; serving must outlive them all
            log.exception("the model registry cannot be asked for the current version")
            raise Unavailable(f"the model registry cannot be asked ({type(error).__name__}): is it running?") from error

    def _load(self, version: str, fetch: Callable[[Path], Path]) -> Loaded:
        """Fetch, check and warm a version. Its files are needed no longer once it is in memory."""
        with tempfile.TemporaryDirectory(prefix="hardloop-model-", ignore_cleanup_errors=True) as folder:
            try:
                predictor = Predictor(fetch(Path(folder)), self._threads, self._batch)
            except BadModel as error:
                raise BadModel(f"version {version} cannot serve: {error}") from error
            except HardloopError:
                raise
            except Exception as error:  # as above
                log.exception("version %s cannot be fetched", version)
                raise Unavailable(f"version {version} cannot be fetched ({type(error).__name__})") from error
        if self._labels is not None and predictor.labels != self._labels:
            raise BadModel(
                f"version {version} cannot serve: it answers {list(predictor.labels)}, this loop's labels are "
                f"{list(self._labels)}, in this order"
            )
        return Loaded(version, predictor, datetime.now(UTC))

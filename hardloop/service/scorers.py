"""Models as mining and the gate ask them: each fetched and loaded once, by one thread at a time."""

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from feedback.predictor import Predictor
from hardloop.core.ports import Registry
from hardloop.core.records import ModelVersion

_KEPT = 2  # the champion and the one before it


def scorers(registry: Registry, folder: Path) -> Callable[[ModelVersion], Predictor]:
    """The model of a version, its files below `folder`. Raises as `Registry.fetch` and `Predictor` do.

    A loop's two lanes ask for a new champion in the same moment. Were both to fetch it, one would replace the files
    that the other is loading.
    """
    mutex = threading.Lock()

    @lru_cache(maxsize=_KEPT)
    def load(version: ModelVersion) -> Predictor:
        return Predictor(registry.fetch(version, folder / version.version))

    def scorer(version: ModelVersion) -> Predictor:
        with mutex:
            return load(version)

    return scorer

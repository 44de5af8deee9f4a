"""A blob store that fails on purpose: a number of times, while told to be away, or after having done the work."""

import threading
from collections.abc import Iterator

from hardloop.core.errors import Unavailable
from hardloop.core.ports import BlobStore


class FaultyBlobs:
    """Wraps a real store. `away` fails all; `fail_next` fails that many calls; `lose_answers` does the put, then fails.

    `only` limits `fail_next` to keys that start so. `writes` names every key that a put or put_new was asked for, in
    order, failed ones included.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.away = False
        self.fail_next = 0
        self.only = ""
        self.lose_answers = 0
        self.writes: list[str] = []

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        self._record(key)
        self._maybe_fail(key)
        self._store.put(key, data, content_type)
        self._maybe_lose(key)

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        self._record(key)
        self._maybe_fail(key)
        return self._store.put_new(key, data, content_type)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        self._maybe_fail(key)
        return self._store.get(key, max_bytes)

    def exists(self, key: str) -> bool:
        self._maybe_fail(key)
        return self._store.exists(key)

    def keys(self, prefix: str, start_after: str = "") -> Iterator[str]:
        self._maybe_fail(prefix)
        return self._store.keys(prefix, start_after)

    def delete(self, key: str) -> None:
        self._maybe_fail(key)
        self._store.delete(key)

    def uri(self, key: str) -> str:
        return self._store.uri(key)

    def _record(self, key: str) -> None:
        with self._lock:
            self.writes.append(key)

    def _maybe_fail(self, key: str) -> None:
        with self._lock:
            if self.away:
                raise Unavailable("the store is away")
            if self.fail_next and key.startswith(self.only):
                self.fail_next -= 1
                raise Unavailable("the store failed once more")

    def _maybe_lose(self, key: str) -> None:
        with self._lock:
            if self.lose_answers:
                self.lose_answers -= 1
                raise Unavailable(f"the answer to the put of {key} was lost")

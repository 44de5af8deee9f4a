"""The other side of capture: a bounded queue, and daemon threads that write batches to the blob store.

A batch is written images first, then one Parquet file of records, so that a record never names an image that is not
there. Whatever the store answers (away, full, wrong credentials), the batch is tried again with growing pauses while
the queue behind it fills; when that is full, new samples are dropped and counted. Nothing accepted is given up before
`close` runs out of time.
"""

import atexit
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from multiprocessing.util import Finalize, register_after_fork
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from feedback.capture_batches import CaptureStats, Pending, WriterSettings, encode, warm
from feedback.capture_files import NAME_TTL_S, FileNames
from feedback.stored_image import StoredImage
from hardloop.core import images
from hardloop.core.errors import BadImage
from hardloop.core.records import CaptureRecord

if TYPE_CHECKING:
    from hardloop.core.ports import BlobStore

log = logging.getLogger("hardloop.capture")
T = TypeVar("T")
_PARQUET = "application/vnd.apache.parquet"


class _GivenUp(Exception):
    """`close` ran out of time while a batch was being tried again, and has counted it as dropped."""


class CaptureWriter:
    """Takes samples without blocking and brings them to the store. Safe between threads and across a fork.

    open_store: called in the writing process before its first write; after a fork the child opens its own store, starts
    its own threads and counts from zero, while the parent keeps what was pending.
    """

    def __init__(
        self,
        open_store: "Callable[[], BlobStore]",
        loop: str,
        settings: WriterSettings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings = settings
        self._open_store = open_store
        self._loop = loop
        self._clock = clock
        warm()
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        """Start empty. Also called in the child of a fork, where another thread may have held the old lock."""
        self._changed = threading.Condition()
        self._queue: deque[Pending] = deque()
        self._queue_bytes = 0
        self._first_waiting = 0  # number of the queue's head: samples are numbered from 0 as they are accepted
        self._in_flight: dict[int, list[Pending]] = {}  # batches being written, by their first sample's number
        self._flush_to = 0
        self._hurry = 0
        self._closed = self._abandon = False
        self._threads: list[threading.Thread] = []
        self._store: BlobStore | None = None
        self._names = FileNames(self._loop)
        self._offered = self._accepted = self._settled = self._written = self._retries = self._bytes = 0
        self._taken: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._last_error: str | None = None

    # ------------------------------------------------------------ the caller's side

    def count(self, policies: Iterable[str]) -> None:
        """Count one offered sample and the policies that took it."""
        with self._changed:
            self._offered += 1
            self._taken.update(tuple(policies))  # a mapping would add its values up

    def count_refused(self, reason: str) -> bool:
        """Count one offered sample as bad input. Returns whether the reason is new."""
        with self._changed:
            self._offered += 1
            self._refused[reason] += 1
            return self._refused[reason] == 1

    def offer(self, image: StoredImage, record: CaptureRecord, image_checked: bool) -> str | None:
        """Queue a sample; never waits for the store. Returns None, or why it was dropped."""
        embedding = 0 if record.embedding_D is None else record.embedding_D.nbytes
        item = Pending(image, record, image_checked, time.monotonic(), len(image.data) + embedding + 1024)
        with self._changed:
            reason = self._no_room(item)
            if reason is not None:
                self._dropped[reason] += 1
                return reason
            self._queue.append(item)
            self._queue_bytes += item.size
            self._bytes += item.size
            self._accepted += 1
            self._start_threads()
            # Waking a thread for every sample would make the caller share the interpreter with it each time.
            if len(self._queue) == 1 or self._batch_is_full():
                self._changed.notify()
        return None

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything accepted before this call is settled. Returns False when time runs out."""
        with self._changed:
            target = self._accepted
            self._flush_to = max(self._flush_to, target)
            self._hurry += 1
            self._start_threads()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._oldest() >= target, timeout=timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Refuse new samples, flush, and count what is left when time runs out as dropped. May be called again.

        A batch that hangs in the store's hands then may still arrive; it stays counted as dropped.
        """
        with self._changed:
            self._closed = True
        self.flush(timeout_s)
        with self._changed:
            self._abandon = True
            left = self._drop_unsettled()
            self._changed.notify_all()
        if left:
            log.error(
                "capture: closed before %d of %d accepted samples were written; dropped so far: %s",
                left, self._accepted, dict(self._dropped),
            )  # fmt: skip
        return not left

    def stats(self) -> CaptureStats:
        """A consistent copy of the counters."""
        with self._changed:
            return CaptureStats(
                offered=self._offered,
                taken=dict(self._taken),
                refused=dict(self._refused),
                accepted=self._accepted,
                written=self._written,
                dropped=dict(self._dropped),
                pending=self._accepted - self._settled,
                pending_bytes=self._bytes,
                retries=self._retries,
                last_error=self._last_error,
            )

    def _no_room(self, item: Pending) -> str | None:
        if self._closed:
            return "closed"
        full = self._accepted - self._settled >= self.settings.max_pending
        return "queue_full" if full or self._bytes + item.size > self.settings.max_pending_bytes else None

    def _batch_is_full(self) -> bool:
        return len(self._queue) >= self.settings.batch_records or self._queue_bytes >= self.settings.batch_bytes

    def _oldest(self) -> int:
        """The number of the oldest sample that is not settled; that of the next one when there is none."""
        return min(self._in_flight, default=self._first_waiting)

    def _start_threads(self) -> None:
        wanted = self.settings.threads if self._batch_is_full() else min(1, len(self._queue))
        while len(self._threads) < wanted:
            thread = threading.Thread(target=self._run, name=f"hardloop-capture-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # none to be had now: the samples wait, the next offer or flush tries again
                if self._remember(error):
                    log.warning("capture: cannot start a thread that writes, trying again: %s", error)
                return
            self._threads.append(thread)

    def _remember(self, error: Exception) -> bool:
        """Keep why something is tried again. Returns whether it is another reason than the last one."""
        before, self._last_error = self._last_error, f"{type(error).__name__}: {error}"
        return self._last_error != before

    def _drop_unsettled(self) -> int:
        """Settle all that waits or is being written as dropped. Returns how many samples that are."""
        self._queue_bytes = 0
        self._first_waiting += len(self._queue)
        unsettled = [*self._queue, *(item for batch in self._in_flight.values() for item in batch)]
        self._queue.clear()
        self._in_flight.clear()
        self._settle(unsettled, Counter({"closed": len(unsettled)} if unsettled else {}))
        return len(unsettled)

    def _settle(self, items: Sequence[Pending], dropped: Counter[str]) -> None:
        """Count samples, once, as dropped or else as written."""
        self._dropped.update(dropped)
        self._written += len(items) - dropped.total()
        self._settled += len(items)
        self._bytes -= sum(item.size for item in items)

    # ------------------------------------------------------------ the writing side

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            first, batch = taken
            dropped: Counter[str] = Counter()
            try:
                self._write(batch, dropped)
            except _GivenUp:
                return
            except Exception:  # a fault of ours must not end the thread, and with it all capturing
                log.exception("capture: a batch of %d samples is lost to a fault in Hardloop", len(batch))
                dropped = Counter({"internal_error": len(batch)})
            with self._changed:
                if self._in_flight.pop(first, None) is not None:  # else `close` has counted it
                    self._settle(batch, dropped)
                self._changed.notify_all()

    def _take(self) -> tuple[int, list[Pending]] | None:
        """The next batch and its first sample's number, once it is due; None when closed and empty."""
        with self._changed:
            while True:
                if not self._queue:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                wait_s = self._queue[0].accepted_at + self.settings.flush_interval_s - time.monotonic()
                if wait_s <= 0 or self._closed or self._batch_is_full() or self._first_waiting < self._flush_to:
                    break
                self._changed.wait(wait_s)
            first, size = self._first_waiting, 0
            batch: list[Pending] = []
            while self._queue and len(batch) < self.settings.batch_records and size < self.settings.batch_bytes:
                item = self._queue.popleft()
                batch.append(item)
                size += item.size
            self._queue_bytes -= size
            self._first_waiting += len(batch)
            self._in_flight[first] = batch
            return first, batch

    def _write(self, batch: Sequence[Pending], dropped: Counter[str]) -> None:
        whole = [item for item in batch if self._is_whole(item)]
        dropped["bad_image"] += len(batch) - len(whole)
        fitting, data = encode(whole)
        dropped["unwritable"] += len(whole) - len(fitting)
        for image in {item.image.key: item.image for item in fitting}.values():
            self._put_image(image)
        if fitting:
            self._put_records(data)
        for reason in [reason for reason, number in dropped.items() if not number]:
            del dropped[reason]

    def _is_whole(self, item: Pending) -> bool:
        if item.image_checked:
            return True
        try:
            images.check(item.image.data, item.image.sample_id)
        except BadImage as error:
            log.error("capture: sample dropped: %s", error)
            return False
        return True

    def _put_image(self, image: StoredImage) -> None:
        content_type = images.CONTENT_TYPES[image.suffix]
        self._keep_trying(lambda store: store.put_new(image.key, image.data, content_type))

    def _put_records(self, data: bytes) -> None:
        name, named_at = "", 0.0

        def put(store: "BlobStore") -> None:
            nonlocal name, named_at
            if not name or time.monotonic() - named_at > NAME_TTL_S:
                if name and store.exists(name):
                    return  # an earlier try arrived and only its answer was lost
                name, named_at = self._names.new(self._clock()), time.monotonic()
            store.put(name, data, _PARQUET)

        self._keep_trying(put)

    def _keep_trying(self, action: "Callable[[BlobStore], T]") -> T:
        """Do it until the store takes it. Raises _GivenUp once `close` ran out of time."""
        delay_s, failed = self.settings.first_retry_s, False
        while True:
            try:
                result = action(self._opened())
            except Exception as error:  # a person mends the network, the credentials or the disk; until then, wait
                if not failed:
                    log.warning("capture: cannot write, trying again: %s", error)
                failed = True
                delay_s = self._pause(error, delay_s)
            else:
                if failed:
                    log.warning("capture: the store takes writes again")
                return result

    def _pause(self, error: Exception, delay_s: float) -> float:
        """Wait before the next try; a flush or close cuts it short. Returns the next pause."""
        with self._changed:
            self._retries += 1
            self._remember(error)
            hurry = self._hurry
            # Jitter keeps a fleet of servers from coming back all in one moment.
            jittered_s = delay_s * random.uniform(0.5, 1.0)  # noqa: S311
            hurried = self._changed.wait_for(lambda: self._abandon or self._hurry != hurry, timeout=jittered_s)
            if self._abandon:
                raise _GivenUp
            return self.settings.first_retry_s if hurried else min(2 * delay_s, self.settings.last_retry_s)

    def _opened(self) -> "BlobStore":
        with self._changed:
            if self._store is None:
                self._store = self._open_store()
            return self._store


_writers: "WeakSet[CaptureWriter]" = WeakSet()


def _flush_at_exit() -> None:
    for writer in list(_writers):
        writer.close(writer.settings.exit_flush_s)


def _finalize(flush: Callable[[], None]) -> None:
    """Have multiprocessing flush where this process is a child of its own: those leave by os._exit, past atexit."""
    Finalize(None, flush, exitpriority=100)


def _reset_after_fork() -> None:
    for writer in list(_writers):
        writer._reset()
    _finalize(_flush_at_exit)  # the parent's does nothing here


atexit.register(_flush_at_exit)
_finalize(_flush_at_exit)
register_after_fork(_flush_at_exit, _finalize)  # multiprocessing's children begin by forgetting all finalizers
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)

"""Names of capture files, and from where a reader lists them so that it misses none.

A name starts with the time at which its write was begun. Writers do not wait for one another, so a file may appear
after one with a later name: its put took longer, its server's clock runs behind, or it was retried. A reader that only
listed past the newest name it knows would miss it for ever. The rules that close the gap:

- The writer names a file at the moment of writing, not of capturing, and its own names never go backwards.
- A retry keeps the name for at most `NAME_TTL_S`; then the writer looks whether the old name arrived after all, and
  takes a new one if not.
- The reader lists from `relist_from(...)`, `OVERLAP_S` before the newest name it knows, and skips names it has read.

So a file is missed only by a put that hangs, or a clock that runs behind, for longer than `OVERLAP_S - NAME_TTL_S`. The
service lists everything once at its start and once a day, which finds even those. A put whose answer was lost can
leave the same records under two names: rows are told apart by (sample_id, model_version, captured_at).
"""

import threading
from datetime import UTC, datetime, timedelta

from hardloop.core import ids
from hardloop.core.errors import BadInput

NAME_TTL_S = 60.0
OVERLAP_S = 600.0  # one name's life, one put with all its time-outs (80 s), and minutes for clocks that disagree

_STAMP = "%Y%m%dT%H%M%S%fZ"
_TICK = timedelta(microseconds=1)


class FileNames:
    """Makes names for one writing process. Never goes backwards, even when the clock does. Safe between threads."""

    def __init__(self, loop: str) -> None:
        self._prefix = _folder(loop)
        self._last = datetime.min.replace(tzinfo=UTC)
        self._lock = threading.Lock()

    def new(self, now: datetime) -> str:
        """A key that nobody else has, stamped with `now` or just after the last one made here."""
        with self._lock:
            self._last = max(now.astimezone(UTC), self._last + _TICK)
            return f"{self._prefix}{ids.time_ordered_key(self._last)}.parquet"


def written_at(key: str) -> datetime:
    """When the write of a capture file was begun, from its name. Raises BadInput for other keys."""
    stamp = key.rsplit("/", 1)[-1].split("-", 1)[0]
    try:
        return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError:
        raise BadInput(f"key {key!r} is not a capture file: its name does not start with a time") from None


def is_capture_file(key: str) -> bool:
    """Whether the key's name starts with a time, as every capture file's does."""
    try:
        written_at(key)
    except BadInput:
        return False
    return True


def relist_from(loop: str, newest: str | None, now: datetime, overlap_s: float = OVERLAP_S) -> str:
    """Where to list a loop's capture files from (`start_after`), given the newest key read so far; "" for all.

    A name from the future, by a clock that runs ahead, does not carry the start past `now`: others still write there.
    """
    if newest is None:
        return ""
    start = min(written_at(newest), now.astimezone(UTC)) - timedelta(seconds=overlap_s)
    return f"{_folder(loop)}{start:{_STAMP}}"


def _folder(loop: str) -> str:
    from hardloop.core import capture_records  # pyarrow is slow to import: not when `Capture` is, only when it is used

    return capture_records.prefix(loop)

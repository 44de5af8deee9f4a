"""Starts children again when they crash, later each time, and says how they are."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hardloop.core.errors import HardloopError, Unavailable
from hardloop.service.children import Child

log = logging.getLogger("hardloop.supervisor")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_STEADY_S = 120.0  # a child that ran this long had no trouble starting: the next crash counts as the first


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """How a child is. restarts: since it was first started. trouble: the last crash or failed restart, in words."""

    alive: bool
    pid: int | None
    restarts: int
    trouble: str


class _Watched:
    def __init__(self, child: Child) -> None:
        self.child = child
        self.restarts = 0
        self.trouble = ""
        self.wait_s = _FIRST_WAIT_S
        self.not_before = 0.0
        self.up_since = time.monotonic()


class Supervisor:
    """One thread that looks after some children. `changed` is called after every crash and restart."""

    def __init__(self, changed: Callable[[], None] = lambda: None, first_wait_s: float = _FIRST_WAIT_S) -> None:
        self._changed = changed
        self._first_wait_s = first_wait_s
        self._watched: dict[str, _Watched] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reviving: Child | None = None
        self._mutex = threading.Lock()

    def watch(self, children: Mapping[str, Child]) -> None:
        """Look after these running children, by name, until `stop`."""
        self._watched = {name: _Watched(child) for name, child in children.items()}
        for one in self._watched.values():
            one.wait_s = self._first_wait_s
        self._stop.clear()
        self._thread = threading.Thread(target=self._look_after, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look after nobody any more. Running children are left as they are; one just being restarted is ended."""
        with self._mutex:
            self._stop.set()
            reviving = self._reviving
        if reviving is not None:
            reviving.stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def status(self, name: str, child: Child) -> ChildStatus:
        """How the child of that name is, with what is known of its past."""
        one = self._watched.get(name)
        return ChildStatus(child.alive, child.pid, one.restarts if one else 0, one.trouble if one else "")

    def _look_after(self) -> None:
        # Nothing may end this thread: nothing that crashes would be started again.
        while not self._stop.wait(0.25):
            for name, one in self._watched.items():
                try:
                    if one.child.alive:
                        one.child.trim_log()
                    elif not self._stop.is_set():
                        self._revive(name, one)
                except Exception as error:
                    trouble = f"{name} cannot be looked after: {type(error).__name__}: {error}"
                    if trouble != one.trouble:
                        log.warning(trouble, exc_info=True)
                    one.trouble = trouble

    def _revive(self, name: str, one: _Watched) -> None:
        now = time.monotonic()
        if one.not_before == 0.0:  # the crash is new
            one.wait_s = self._first_wait_s if now - one.up_since >= _STEADY_S else one.wait_s
            one.not_before = now + one.wait_s
            one.trouble = f"{name} ended with status {one.child.exit_status}; see {one.child.command.log}"
            one.child.stop()  # its workers, if any are left
            self._tell()
        if now < one.not_before:
            return
        one.wait_s = min(one.wait_s * 2, _LONGEST_WAIT_S)
        with self._mutex:
            if self._stop.is_set():
                return
            self._reviving = one.child
        try:
            one.child.start(self._unless_stopped)
        except Exception as error:
            foreseen = isinstance(error, HardloopError)
            one.trouble = str(error) if foreseen else f"{name} cannot be started: {type(error).__name__}: {error}"
            if not foreseen:
                log.warning(one.trouble, exc_info=True)
            one.not_before = time.monotonic() + one.wait_s
        else:
            one.restarts += 1
            one.not_before = 0.0
            one.up_since = time.monotonic()
        finally:
            self._reviving = None
        self._tell()

    def _tell(self) -> None:
        try:
            self._changed()
        except Exception as error:  # a state file that is out of date is better than a child that stays down
            log.warning("what is known of the children could not be told: %s", error)

    def _unless_stopped(self, _: float) -> None:
        if self._stop.is_set():
            raise Unavailable("the restart was called off")

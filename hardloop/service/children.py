"""Children: commands that run beside us, with a clean environment and a log, and that never outlive us.

Each command runs under a `watchdog.py` of its own, which ends it when this process is gone, even by kill -9. Nothing
is forked: a watchdog is a fresh interpreter, so threads here are no danger to it.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hardloop.core.errors import Unavailable

_WATCHDOG = Path(__file__).with_name("watchdog.py")
_LOG_BYTES = 16 * 1024 * 1024  # a log larger than this starts anew; one older log is kept
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE")

Check = Callable[["Child"], bool]
"""Says whether a child answers as it should. Must return within seconds.

Raising PortTaken ends the start at once; whatever else it raises counts as 'not yet'.
"""


class PortTaken(Unavailable):
    """Somebody else listens on the port that a child was told to use."""


def clean_environment(**variables: str) -> dict[str, str]:
    """What a program needs to run at all, and the given variables. Our own settings and secrets stay out."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | variables


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `grace_s` is what it gets between SIGTERM and SIGKILL; `start_s` what it gets to become healthy.

    healthy: see `Check`. locks: open file descriptors that the watchdog keeps until the child is gone.
    """

    name: str
    argv: Sequence[str]
    log: Path
    healthy: Check
    environment: Mapping[str, str] = field(default_factory=clean_environment)
    folder: Path | None = None
    start_s: float = 60.0
    grace_s: float = 5.0
    locks: tuple[int, ...] = ()


class Child:
    """One running command. `start` returns once it is healthy; `stop` may be called any number of times."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.pid: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._mutex = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the command runs now."""
        watchdog = self._watchdog
        return watchdog is not None and watchdog.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The command's exit status (128 + n for signal n), None while it runs or before it started."""
        return None if self._watchdog is None else self._watchdog.poll()

    def start(self, waiting: Callable[[float], None] = lambda _: None) -> None:
        """Run the command and wait until it is healthy; `waiting` hears the seconds gone, about once a second.

        Raises Unavailable, with the log's last lines, when the command ends or does not become healthy in time. It
        does not run any more then.
        """
        with self._mutex:
            try:
                self._spawn()
            except OSError as error:  # no memory, no processes, no descriptors or no disk left: later there may be
                raise Unavailable(f"{self.command.name} cannot be started: {error.strerror or error}") from error
        try:
            self._wait(waiting)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGTERM to the command and all its workers, SIGKILL after the grace. Returns when none of them is left."""
        with self._mutex:
            if self._watchdog is None:
                return
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()  # end of file is the watchdog's order to end
            try:
                self._watchdog.wait(self.command.grace_s + 10.0)
            except subprocess.TimeoutExpired:
                self._watchdog.kill()
                self._watchdog.wait()
            self._sweep()

    def said(self, limit: int = 65_536) -> str:
        """What the command has written to its log since it was started, the last `limit` bytes of it."""
        try:
            with self.command.log.open("rb") as file:
                file.seek(max(self._log_start, self.command.log.stat().st_size - limit))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def trim_log(self) -> None:
        """Start the log anew where it has grown too large, also while the command runs."""
        log = self.command.log
        try:
            if log.stat().st_size <= _LOG_BYTES:
                return
            with suppress(OSError):  # on a full disk, room matters more than the older log
                older = log.with_suffix(".1.log")
                older.touch(mode=0o600)
                shutil.copyfile(log, older)
            # The command holds the file open and appends: emptied, it is gone on with from its beginning. A few lines
            # that come between the copy and this are lost.
            os.truncate(log, 0)
            self._log_start = 0
        except FileNotFoundError:
            return  # never written, or deleted by somebody

    def _last_lines(self) -> str:
        return "\n".join(self.said().splitlines()[-15:])

    def _spawn(self) -> None:
        command = self.command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        self.trim_log()
        command.log.touch(mode=0o600)
        self._log_start = command.log.stat().st_size
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCHDOG), str(command.grace_s), str(command.log), *command.argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(command.environment),
            cwd=command.folder,
            pass_fds=command.locks,
            start_new_session=True,  # Ctrl-C in the terminal is ours to handle, not the children's
        )
        assert self._watchdog.stdout is not None
        with self._watchdog.stdout as line:
            told = line.readline()
        self.pid = int(told) if told.strip() else None

    def _wait(self, waiting: Callable[[float], None]) -> None:
        began = time.monotonic()
        told = 0.0
        while (gone := time.monotonic() - began) < self.command.start_s:
            if not self.alive:
                raise Unavailable(
                    f"{self.command.name} ended with status {self.exit_status} while starting; its log "
                    f"{self.command.log} ends with:\n{self._last_lines()}"
                )
            if self._is_healthy() and self.alive:
                return
            if gone - told >= 1.0:
                told = gone
                waiting(gone)
            time.sleep(0.1)
        raise Unavailable(
            f"{self.command.name} did not become healthy in {self.command.start_s:.0f} s; its log "
            f"{self.command.log} ends with:\n{self._last_lines()}"
        )

    def _is_healthy(self) -> bool:
        try:
            return self.command.healthy(self)
        except PortTaken:
            raise
        except Exception:  # a check fails in as many ways as there are half-started servers
            return False

    def _sweep(self) -> None:
        """End the command's group where its watchdog was killed before it could."""
        # A watchdog that ended by itself has seen to it; the group's number may be somebody else's by now.
        if self.pid is not None and self._watchdog is not None and self._watchdog.returncode < 0:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.pid = None

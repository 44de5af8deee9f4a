"""Progress for people: one line that moves in a terminal, few plain lines elsewhere."""

import sys
import threading
import time


class Lines:
    """A `Progress` that prints. In a terminal the last line is rewritten; in a log, a line every few seconds."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s = every_s
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._said_at: dict[str, float] = {}
        self._mutex = threading.Lock()
        self._open = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done; the last one is always shown."""
        text = f"[{time.monotonic() - self._began:6.1f} s] {what}" + (f" {done}/{total}" if total > 1 else "")
        with self._mutex:
            if self._terminal:
                sys.stderr.write("\r\x1b[2K" + text[:118] + ("\n" if done >= total else ""))
                self._open = done < total
            elif done >= total or time.monotonic() - self._said_at.get(what, float("-inf")) >= self._every_s:
                self._said_at[what] = time.monotonic()
                sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        self(text, 1, 1)

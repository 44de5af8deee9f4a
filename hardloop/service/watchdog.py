"""Runs one command and sees to it that it does not outlive the process that asked for it.

Started by `children.py` as `python -I -S watchdog.py GRACE_S LOG COMMAND...` with the read end of a pipe from the
parent as standard input. The parent never writes: end of file means that it is gone, whatever killed it. Then, or on
SIGTERM, the command's process group gets SIGTERM and, after the grace, SIGKILL. The first line of output is the
command's process id, which is its group's as well; the exit status is the command's own (128 + n for signal n). LOG is
the file that the command's output is appended to; "-" sends it after that first line. Standard library only, so that
it starts in milliseconds and has no import that could fail.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time


def main(grace_s: float, log: str, command: list[str]) -> int:
    """Run the command until it ends, the parent goes away, or SIGTERM arrives. Returns the command's exit status."""
    # A signal must wake the selector below: Python writes its number into this pipe.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    with open(1 if log == "-" else log, "ab", buffering=0, closefd=log != "-") as output:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            output.write(f"cannot start {command[0]}: {error}\n".encode())
            return 127
    with contextlib.suppress(BrokenPipeError):  # the parent is gone already: end of file says so below
        os.write(1, f"{child.pid}\n".encode())
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ, "parent")
        selector.register(wake_read, selectors.EVENT_READ, "signals")
        while child.poll() is None:
            for key, _ in selector.select():
                received = os.read(key.fd, 64)
                if (key.data == "parent" and not received) or (
                    key.data == "signals" and any(number != signal.SIGCHLD for number in received)
                ):
                    _end_group(child, grace_s)
                    break
    _end_group(child, 0.0)  # workers that the command left behind go with it
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_group(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """SIGTERM to everyone in the command's group, SIGKILL to who is left after the grace."""
    _signal(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        child.poll()  # an ended child counts as a member until it is reaped
        if not _signal(child.pid, 0):
            break
        time.sleep(0.02)
    _signal(child.pid, signal.SIGKILL)
    child.wait()


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group. Returns whether anyone is there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers the latter for a group of zombies
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2], sys.argv[3:]))

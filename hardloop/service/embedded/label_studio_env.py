"""Label Studio's own virtual environment: pinned, made once per machine, shared by all data folders.

Runs with nothing but Python, so that `make` can install it beside the main environment:

    python3 -I hardloop/service/embedded/label_studio_env.py

In the cache folder (`HARDLOOP_CACHE`, else the user's cache folder for "hardloop") lies one folder per interpreter
version and set of pins:

    label-studio-1.23.2-py3.11-5f0c…/  venv/            the environment
                                       template/        a migrated data folder without any user, copied for each start
                                       install.log
                                       complete.json    written last: without it the folder is made anew
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

VERSION = "1.23.2"
PINS = Path(__file__).with_name("label-studio-constraints.txt")
DATABASE = "label_studio.sqlite3"

Progress = Callable[[str, int, int], None]
Line = Callable[[str], None]
_WATCHDOG = Path(__file__).parent.with_name("watchdog.py")


class InstallFailed(Exception):
    """Label Studio could not be installed; the message says why and where the log is."""


def cache_folder() -> Path:
    """Where what can be made again is kept: `HARDLOOP_CACHE`, else what platformdirs calls the user's cache folder."""
    if chosen := os.environ.get("HARDLOOP_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hardloop"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.strip() else Path.home() / ".cache") / "hardloop"


def home(cache: Path | None = None) -> Path:
    """The folder that belongs to this interpreter version and this set of pins."""
    key = hashlib.sha256(PINS.read_bytes() + platform.machine().encode()).hexdigest()[:10]
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return (cache or cache_folder()) / f"label-studio-{VERSION}-{python}-{key}"


def executable(folder: Path) -> Path:
    """The program in a home folder."""
    return folder / "venv" / "bin" / "label-studio"


def template(folder: Path) -> Path:
    """The migrated data folder in a home folder."""
    return folder / "template"


def is_complete(folder: Path) -> bool:
    """Whether the folder was finished, and the interpreter it was made with is still there."""
    return (folder / "complete.json").is_file() and (folder / "venv" / "bin" / "python").exists()


def ensure_label_studio_env(progress: Progress = lambda *_: None, cache: Path | None = None) -> Path:
    """The path of a ready `label-studio`, installed now unless it is there.

    Two processes at once: the second waits for the first. Killed half-way: the next call starts over.
    Raises InstallFailed. progress: see `hardloop.core.ports.Progress`.
    """
    folder = home(cache)
    if is_complete(folder):
        return executable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock"), progress):
        if not is_complete(folder):
            _install(folder, progress)
    return executable(folder)


def environment(data: Path, **more: str) -> dict[str, str]:
    """The clean environment Label Studio runs in.

    It reads any setting X from a bare variable X as well (DEBUG, HOST, SECRET_KEY, ...), so that nothing of ours may
    reach it. Nothing is reported to anybody; addresses on this machine are allowed, for it runs on loopback alone.
    """
    kept = {k: os.environ[k] for k in ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE") if k in os.environ}
    return kept | {
        "HOME": str(data),  # it looks for configuration and caches in the home folder
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_AZURE_MOUNT_FIX": "1",  # its name for SQLite's write-ahead log
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_FEATURE_FLAGS_OFFLINE": "true",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",
        **more,
    }


def _install(folder: Path, progress: Progress) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "install.log"
    python = str(folder / "venv" / "bin" / "python")
    lines = _Lines(progress, sum("==" in line for line in PINS.read_text(encoding="utf-8").splitlines()))
    try:
        lines.say("making its environment")
        _run([_interpreter(), "-m", "venv", str(folder / "venv")], log, lines)
        # Bytecode is made on first import, for the part of the packages that is used.
        pip = [python, "-m", "pip", "install", "--no-compile", "--no-input", "--progress-bar=off"]
        _run([*pip, "-c", str(PINS), f"label-studio=={VERSION}"], log, lines)
        lines.say("preparing its database")
        # Any command applies the 396 migrations; this one makes no user, so the template holds no credentials.
        _run([str(executable(folder)), "version"], log, lines, environment(template(folder)))
    except subprocess.CalledProcessError as error:
        raise InstallFailed(
            f"installing Label Studio {VERSION} failed ({Path(error.cmd[0]).name} ended with {error.returncode}); "
            f"{log} ends with:\n{_tail(log)}"
        ) from None
    for secret in (".env", "media", "export"):  # the secret key in .env is each data folder's own
        path = template(folder) / secret
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not (template(folder) / DATABASE).is_file():
        raise InstallFailed(f"Label Studio {VERSION} made no database in {template(folder)}; see {log}")
    finished = folder / ".complete.json"
    finished.write_text(json.dumps({"version": VERSION, "python": platform.python_version()}) + "\n")
    finished.replace(folder / "complete.json")
    lines.say("ready")


class _Lines:
    """Turns pip's lines into progress: one step per package collected; silence repeats what was said last."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done, self._what = progress, total, 0, ""

    def __call__(self, text: str) -> None:
        if text.startswith("Collecting "):
            self._done = min(self._done + 1, self._total)
            self.say("collecting packages")
        elif text.startswith("Installing collected"):
            self._done = self._total
            self.say("installing packages")
        elif not text:
            self.say(self._what)

    def say(self, what: str) -> None:
        self._what = what
        self._progress(f"Label Studio: {what}", self._done, self._total)


def _run(command: list[str], log: Path, line: Line, variables: dict[str, str] | None = None) -> None:
    """Run to the end, output into the log and line by line to `line`, which hears "" in every silent second.

    The command ends with this process and when `line` raises. Raises CalledProcessError.
    """
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCHDOG), "5", "-", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = _lines(process.stdout.fileno())
            next((text for text in lines if text), None)  # the command's process id, which the watchdog tells first
            for text in lines:
                out.write(text)
                line(text)
        finally:
            process.stdin.close()  # ends the command if it still runs
            process.stdout.close()
            status = process.wait()
    if status:
        raise subprocess.CalledProcessError(status, command)


def _lines(descriptor: int) -> Iterator[str]:
    """The lines that arrive at a descriptor until its other end is closed, and "" after each silent second."""
    rest = b""
    while True:
        if not select.select([descriptor], [], [], 1.0)[0]:
            yield ""
            continue
        received = os.read(descriptor, 65_536)
        *whole, rest = (rest + received).split(b"\n")
        yield from (f"{text.decode(errors='replace')}\n" for text in whole)
        if not received:
            return


def _interpreter() -> str:
    """The interpreter this one's environment was made from: an environment made from another breaks with it."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the file's lock, which the system lets go of when its holder ends, however that happens."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("Label Studio: another process is installing it, waiting", 0, 1)
                time.sleep(1.0)
        yield


class _Printer:
    """Progress as lines on standard output: what is new at once, the rest every five seconds."""

    def __init__(self) -> None:
        self._began, self._last_at, self._last = time.monotonic(), 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._last or now - self._last_at >= 5.0:
            self._last_at, self._last = now, what
            print(f"[{now - self._began:5.0f} s] {what} ({done} of {total})", flush=True)


if __name__ == "__main__":
    try:
        ready = ensure_label_studio_env(_Printer())
    except InstallFailed as error:
        sys.exit(str(error))
    print(f"Label Studio {VERSION}: {ready}")

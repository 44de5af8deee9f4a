"""Makes the two environments that `make demo` and `make test` need, side by side, with nothing but Python.

    python3 -I tools/install.py

`.venv` gets everything `constraints.txt` pins; Label Studio gets an environment of its own in the user's cache folder.
A stamp in `.venv` names the pins it was made from, so that a second call costs nothing. TORCH_INDEX, where set, is the
package index torch comes from (for the build with or without CUDA one wants). The whole output of pip is in
`.venv/install.log`.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
TORCH = "torch==2.13.0"
_EVERY_S = 5.0

Say = Callable[[str], None]


def main() -> int:
    """Bring both environments up to date; returns the exit status."""
    label_studio = _label_studio_module()
    jobs: list[Callable[[], None]] = []
    if not _is_current():
        jobs.append(lambda: _install_main(_Speaker("hardloop").say))
    if not label_studio.is_complete(label_studio.home()):
        speaker = _Speaker("label studio")
        jobs.append(
            lambda: label_studio.ensure_label_studio_env(
                lambda what, done, total: speaker.say(f"{what.removeprefix('Label Studio: ')} ({done} of {total})")
            )
        )
    if not jobs:
        return 0
    print("Installing; the first time this takes a few minutes.", flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        errors = [error for future in [pool.submit(job) for job in jobs] if (error := future.exception())]
    for error in errors:
        if isinstance(error, (RuntimeError, label_studio.InstallFailed)):
            print(f"\n{error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
    return 1 if errors else 0


def _install_main(say: Say) -> None:
    python = VENV / "bin" / "python"
    if not _works(python):
        say("making .venv")
        try:
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(VENV)
        except subprocess.CalledProcessError:
            raise RuntimeError(
                f"{sys.executable} cannot make a virtual environment with pip: install what it lacks "
                "(on Debian and Ubuntu `apt-get install python3-venv`)"
            ) from None
    LOG.unlink(missing_ok=True)
    pip = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar=off", "--no-compile"]
    index = os.environ.get("TORCH_INDEX", "")
    if not index and not _has_gpu() and brings_cuda(_report(pip)):
        say(
            f"the package index's {TORCH} brings several gigabytes for GPUs, and there is none here: for the build "
            "without, end this and run it again with TORCH_INDEX set to the index of torch's CPU builds"
        )
    for command in commands(pip, index):
        _run(command, say)
    for old in VENV.glob(".pins-*"):
        old.unlink()
    _stamp().touch()
    say("ready")


def commands(pip: list[str], torch_index: str) -> list[list[str]]:
    """The calls of pip that fill `.venv`, in order."""
    pinned = [*pip, "-c", str(ROOT / "constraints.txt")]
    return [
        # Alone: an index of torch builds need not have what torch depends on in the versions we pin.
        *([[*pinned, "--index-url", torch_index, "--no-deps", TORCH]] if torch_index else []),
        # Our own build then uses the pinned setuptools instead of fetching the newest one.
        [*pinned, "setuptools"],
        [*pinned, "--no-build-isolation", TORCH, "-e", f"{ROOT}[dev]"],
    ]


def brings_cuda(report: dict[str, Any]) -> bool:
    """Whether pip's installation report of torch names CUDA's packages among its dependencies."""
    found = report.get("install") or [{}]
    required = found[0].get("metadata", {}).get("requires_dist") or []
    return any(name.startswith(("nvidia-", "cuda-")) for name in required)


def _report(pip: list[str]) -> dict[str, Any]:
    """What pip would install for torch, from its metadata alone; empty where pip cannot say."""
    asked = [*pip, "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", TORCH]
    answer = subprocess.run(asked, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    try:
        return dict(json.loads(answer.stdout))
    except ValueError:
        return {}


def _has_gpu() -> bool:
    return sys.platform != "linux" or Path("/proc/driver/nvidia").exists() or Path("/dev/kfd").exists()


def _run(command: list[str], say: Say) -> None:
    """Run pip to the end, its lines into the log. Raises RuntimeError with the end of the log."""
    collected, last = 0, "starting pip"
    with LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_EVERY_S):
                say(last)

        threading.Thread(target=repeat, daemon=True).start()
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if line.startswith("Collecting "):
                collected += 1
                last = f"collecting packages ({collected})"
            elif line.startswith("Installing collected"):
                last = f"installing {line.count(',') + 1} packages"
                say(last)
        ended.set()
    if process.wait():
        tail = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RuntimeError(f"pip ended with status {process.returncode}; {LOG} ends with:\n{tail}")


def _stamp() -> Path:
    """The file that says `.venv` holds what is pinned now, for this interpreter and torch index."""
    digest = hashlib.sha256(sys.version.encode() + os.environ.get("TORCH_INDEX", "").encode())
    for name in ("constraints.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return VENV / f".pins-{digest.hexdigest()[:16]}"


def _is_current() -> bool:
    return _stamp().exists() and _works(VENV / "bin" / "python")


def _works(python: Path) -> bool:
    """Whether the environment's interpreter runs and is of our version: it breaks when the one beneath it goes away."""
    version = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-I", "-S", "-c", version], capture_output=True, text=True, timeout=30)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.split() == [str(part) for part in sys.version_info[:2]]


class _Speaker:
    """Prints what is new at once and what is not every few seconds."""

    def __init__(self, name: str) -> None:
        self._name, self._began, self._said_at, self._said = name, time.monotonic(), 0.0, ""

    def say(self, what: str) -> None:
        """Print a line; called from one environment's threads."""
        now, kind = time.monotonic(), what.partition(" (")[0]
        if kind != self._said or now - self._said_at >= _EVERY_S - 0.1:
            self._said_at, self._said = now, kind
            print(f"[{now - self._began:4.0f} s] {self._name}: {what}", flush=True)


def _label_studio_module() -> ModuleType:
    """`hardloop.service.embedded.label_studio_env`, loaded by its path: the package has no environment yet."""
    path = ROOT / "hardloop" / "service" / "embedded" / "label_studio_env.py"
    spec = importlib.util.spec_from_file_location("label_studio_env", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())

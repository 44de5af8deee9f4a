"""Label Studio's environment: pinned, made by one process at a time, and never taken for finished when it is not."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import platformdirs
import psutil
import pytest

from hardloop.service.embedded import label_studio_env as env

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(env.__file__)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose package index has nothing."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_the_cache_is_where_platformdirs_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARDLOOP_CACHE", raising=False)
    for chosen in ("", str(tmp_path)):
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert env.cache_folder() == Path(platformdirs.user_cache_dir("hardloop"))
    monkeypatch.setenv("HARDLOOP_CACHE", str(tmp_path / "mine"))
    assert env.cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("path", [env.PINS, REPOSITORY / "constraints.txt"], ids=["label studio", "hardloop"])
def test_pins_are_bare_and_name_no_host(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert sorted(set(names)) == sorted(names)


def test_label_studio_itself_is_pinned_to_the_version_we_name() -> None:
    assert f"label-studio=={env.VERSION}" in env.PINS.read_text(encoding="utf-8").splitlines()


def test_other_pins_make_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = env.home(tmp_path)
    changed = tmp_path / "pins.txt"
    changed.write_text(env.PINS.read_text().replace("Django==", "Django==5.2.0 # was "))
    monkeypatch.setattr(env, "PINS", changed)
    assert env.home(tmp_path) != before
    assert env.home(tmp_path).parent == before.parent


def test_a_half_finished_install_is_made_anew_and_a_failed_one_says_why(no_index: None, tmp_path: Path) -> None:
    folder = env.home(tmp_path)
    (folder / "template").mkdir(parents=True)
    (folder / "template" / "half-written").write_text("by a process that was killed")
    said: list[str] = []
    with pytest.raises(env.InstallFailed, match=r"install\.log ends with:(.|\n)*ERROR: (Cannot|No)"):
        env.ensure_label_studio_env(lambda what, done, total: said.append(what), tmp_path)
    assert "Label Studio: making its environment" in said
    assert not (folder / "template").exists()
    assert not env.is_complete(folder)


def test_an_environment_whose_interpreter_went_away_is_not_complete(tmp_path: Path) -> None:
    folder = env.home(tmp_path)
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({"version": env.VERSION}))
    python = folder / "venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    assert env.is_complete(folder)
    python.unlink()
    python.symlink_to(tmp_path / "removed" / "python3")
    assert not env.is_complete(folder)


def test_the_second_process_waits_and_takes_what_the_first_has_made(tmp_path: Path) -> None:
    folder = env.home(tmp_path)
    said: list[str] = []
    waiting = threading.Event()

    def progress(what: str, done: int, total: int) -> None:
        said.append(what)
        waiting.set()

    found: list[Path] = []
    with (tmp_path / f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(env.ensure_label_studio_env(progress, tmp_path)))
        second.start()
        assert waiting.wait(10)
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "venv" / "bin" / "python").symlink_to(sys.executable)
        (folder / "complete.json").write_text("{}")
    second.join(10)
    assert found == [env.executable(folder)]
    assert set(said) == {"Label Studio: another process is installing it, waiting"}


def test_a_killed_install_leaves_no_pip_behind(tmp_path: Path) -> None:
    """The package index of this test takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        variables |= {"PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull, "HARDLOOP_CACHE": str(tmp_path)}
        install = subprocess.Popen([sys.executable, "-I", str(SCRIPT)], stdout=subprocess.DEVNULL, env=variables)
        try:
            deadline = time.monotonic() + 60
            while not _pips(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert _pips(tmp_path)
        finally:
            install.kill()
            install.wait()
        deadline = time.monotonic() + 10
        while _pips(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _pips(tmp_path) == []


def _pips(cache: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if "pip" in line and "install" in line and any(str(cache) in part for part in line):
            found.append(process.pid)
    return found


def test_the_installer_needs_nothing_but_the_standard_library() -> None:
    """`make` runs it before any package is installed."""
    command = [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='imported')"]
    subprocess.run(command, check=True, timeout=30)

"""`hardloop demo` as a person runs it: a process of its own, real servers, and nothing left behind."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import httpx
import psutil
import pytest

from hardloop.service import connections as known
from hardloop.service.demo import report
from hardloop.service.demo.annotator import sign_up
from hardloop.service.demo.turn import annotator_password

COMMAND = [sys.executable, "-c", "from hardloop.service.cli import main; main()", "demo"]

STARTING = ("reading images", "label-studio", "service: ")


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The demo in a folder of its own, which is also where its data goes."""
    import os

    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(folder: Path) -> list[str]:
    """Processes that work in the folder or speak of it."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
        if str(folder) in words:
            found.append(f"{process.info['pid']}: {words[:200]}")
    return found


def read_beside(stream: IO[str] | None) -> list[str]:
    """The lines of a stream, read on a thread of their own so that its pipe never fills up."""
    assert stream is not None
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(stream), daemon=True).start()
    return lines


def lines_until(stream: IO[str] | None, word: str) -> Iterator[str]:
    """The lines of a stream up to the first that holds a word."""
    assert stream is not None
    for line in stream:
        yield line
        if word in line:
            return


def until(found: Callable[[], object], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_demo_closes_the_loop_three_times_keeps_running_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = run(
        tmp_path, "--budget", "20", "--annotator-error", "0.05", "--seed", "3", "--report", "out/report.json", "--keep"
    )
    progress = read_beside(process.stderr)
    said = "".join(lines_until(process.stdout, "everything keeps running"))
    assert "everything keeps running" in said, said + "".join(progress)[-4000:]
    for name in ("service", "predictor"):
        (address,) = re.findall(rf"^{name} +(http\S+)", said, re.MULTILINE)
        assert httpx.get(f"{address}/healthz", timeout=10.0, trust_env=False).status_code == 200
    (studio,) = re.findall(r"^Label Studio +(http\S+)", said, re.MULTILINE)
    (email,) = re.findall(r"^the stand-in annotator's login: (\S+), password in", said, re.MULTILINE)
    (data,) = tmp_path.glob("hardloop-demo-*/data")
    token = known.read(data).label_studio_key.get_secret_value()
    assert sign_up(studio, token, email, annotator_password(data)), "the login that was named lets nobody in"
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert process.returncode == 0, said + "".join(progress)[-4000:]
    found = report.read(tmp_path / "out" / "report.json")
    assert report.problems(found) == []
    assert {link.name for link in found.links if link.happened} == set(report.LINKS)
    assert [r.number for r in found.rounds] == [1, 2, 3]
    assert [r.tasks_pushed for r in found.rounds] == [20, 20, 20]
    assert [r.labels_used for r in found.rounds] == [40, 60, 80]
    assert (found.totals.duplicates, found.totals.lost) == (0, 0)
    assert found.totals.annotations_collected == 60
    assert found.totals.webhooks_received + found.totals.webhooks_missed == 60
    assert found.totals.wrong_answers == sum(r.wrong_answers for r in found.rounds)
    assert found.rounds[-1].accuracy.value > found.first_model.accuracy.value
    assert all(r.random_accuracy is not None and r.labels_saved is not None for r in found.rounds)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The loop closed on digits" in page
    assert "mined labels against random ones" in said
    assert left_behind(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the demo's data folder is still there"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *((moment, number) for moment in STARTING for number in (signal.SIGINT, signal.SIGTERM)),
        ("answering tasks", signal.SIGINT),
        ("random picking", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    process = run(tmp_path, "--budget", "10", "--rounds", "1")
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            break
    process.send_signal(number)
    _, progress = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "Traceback" not in progress
    until(lambda: not left_behind(tmp_path), f"the end of {left_behind(tmp_path)}", 15)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.slow
def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    process = run(tmp_path, "--budget", "20")
    assert process.stderr is not None
    for line in process.stderr:
        if "service: " in line:
            break
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not left_behind(tmp_path), f"the end of {left_behind(tmp_path)}", 40)


@pytest.mark.parametrize(
    ("make", "arguments", "expected"),
    [
        (lambda f: None, ["--data", "nowhere"], "nowhere"),
        (lambda f: (f / "boots").mkdir(), ["--data", "."], "holdsnoimage"),
        (lambda f: (f / "pictures.zip").write_bytes(b"no zip"), ["--data", "pictures.zip"], "pictures.zip"),
        (lambda f: None, ["--rounds", "30", "--budget", "200"], "6020"),
        (lambda f: None, ["--recipe", "resnet"], "resnet"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_before_anything_starts(
    tmp_path: Path, make: Callable[[Path], object], arguments: list[str], expected: str
) -> None:
    make(tmp_path)
    process = run(tmp_path, *arguments)
    said, progress = process.communicate(timeout=60)
    assert process.returncode == 2, said + progress
    assert expected in progress.replace(",", "").replace(" ", "")
    assert "Traceback" not in progress
    assert "seaweedfs" not in progress

"""However capture ends, what it promised is written or counted: other processes, no threads, puts that hang."""

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from feedback.capture import Capture, CapturePolicy, WriterSettings
from hardloop.core import capture_records
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.records import CaptureRecord


def pixels(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, dtype=np.uint8)


def written(store: DirectoryBlobs) -> list[CaptureRecord]:
    keys = list(store.keys(capture_records.prefix("shoes")))
    return [record for key in keys for record in capture_records.read(store.get(key), key)]


def capture_to(store: DirectoryBlobs, **settings) -> Capture:
    writer = WriterSettings(**{"flush_interval_s": 0.01} | settings)
    return Capture(store, "shoes", ["a", "b"], CapturePolicy(take_all=True), "1", strict=True, writer=writer)


def log(capture: Capture, *values: int) -> None:
    for value in values:
        assert capture.log(image=pixels(value), probabilities=[0.5, 0.5]).taken


@pytest.fixture
def store(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "store")


# ------------------------------------------------------------ multiprocessing

WITH_CHILDREN = """
import multiprocessing, os, sys
import numpy as np
from hardloop import Capture, CapturePolicy

capture = Capture.from_env("shoes", ["a", "b"], CapturePolicy(take_all=True), "1", strict=True)

def log(source, number):
    for value in range(number):
        image = np.full((2, 2, 3), value, dtype=np.uint8)
        assert capture.log(image=image, probabilities=[0.5, 0.5], source=source).taken

log("import", 1)

def child():
    log("child", 20)
    if os.fork() == 0:
        log("grandchild", 3)
        sys.exit(0)
    assert os.wait()[1] == 0

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
"""


IMPORTED_LATE = """
import multiprocessing, sys

def child():
    import numpy as np
    from hardloop import Capture, CapturePolicy

    capture = Capture.from_env("shoes", ["a", "b"], CapturePolicy(take_all=True), "1", strict=True)
    assert capture.log(image=np.zeros((2, 2, 3), dtype=np.uint8), probabilities=[0.5, 0.5], source="child").taken

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
"""


def run_script(folder: Path, code: str, method: str) -> None:
    script = folder / "serve.py"
    script.write_text(code)
    environ = {"PYTHONPATH": str(Path(__file__).parents[2]), "HARDLOOP_S3_URL": (folder / "store").as_uri()}
    subprocess.run([sys.executable, script, method], env=os.environ | environ, timeout=120, check=True)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_of_multiprocessing_that_ends_has_written_what_it_promised_once(tmp_path, store, method):
    run_script(tmp_path, WITH_CHILDREN, method)
    imports = 1 if method == "fork" else 2  # the other methods' children import the script again
    sources = Counter(record.source for record in written(store))
    assert sources == {"import": imports, "child": 20, "grandchild": 3}


def test_a_child_of_multiprocessing_that_imports_capture_itself_writes_what_it_promised(tmp_path, store):
    run_script(tmp_path, IMPORTED_LATE, "fork")
    assert [record.source for record in written(store)] == ["child"]


# ------------------------------------------------------------ no thread to be had


@pytest.fixture
def refuse_threads(monkeypatch):
    """A list; as many threads as it has items cannot be started."""
    refusals: list[None] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return refusals


def test_a_thread_that_cannot_start_is_asked_for_again_at_the_next_sample(store, refuse_threads):
    refuse_threads.append(None)
    with capture_to(store) as capture:
        log(capture, 0)
        assert capture.stats.last_error == "RuntimeError: can't start new thread"
        assert (capture.stats.accepted, capture.stats.pending) == (1, 1)
        log(capture, 1, 2)
    assert len(written(store)) == len(list(store.keys("images/"))) == 3
    assert (capture.stats.offered, capture.stats.written, dict(capture.stats.dropped)) == (3, 3, {})


def test_a_thread_that_cannot_start_is_asked_for_again_by_a_flush(store, refuse_threads):
    refuse_threads.append(None)
    capture = capture_to(store)
    log(capture, 0)
    assert capture.flush(timeout_s=30.0)
    assert len(written(store)) == capture.stats.written == 1
    capture.close()


def test_without_any_thread_the_samples_are_counted_when_capture_closes(store, refuse_threads, caplog):
    refuse_threads += [None] * 100
    capture = capture_to(store)
    log(capture, 0, 1, 2)
    assert not capture.close(timeout_s=0.1)
    assert (capture.stats.accepted, capture.stats.pending, dict(capture.stats.dropped)) == (3, 0, {"closed": 3})
    assert len([record for record in caplog.records if "can't start new thread" in record.message]) == 1


# ------------------------------------------------------------ close runs out of time


class HangingBlobs(DirectoryBlobs):
    """Puts of new objects hang until `answer` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked, self.answer = threading.Event(), threading.Event()

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        self.asked.set()
        assert self.answer.wait(60)
        return super().put_new(key, data, content_type)


def test_a_batch_that_hangs_when_close_runs_out_of_time_is_counted_once_and_for_all(tmp_path, caplog):
    store = HangingBlobs(tmp_path / "store")
    before = set(threading.enumerate())
    capture = capture_to(store, batch_records=3, threads=1, flush_interval_s=60.0)
    log(capture, 0, 1, 2)
    assert store.asked.wait(30)
    (writing,) = set(threading.enumerate()) - before
    log(capture, 3, 4)
    assert not capture.close(timeout_s=0.2)
    (message,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "5 of 5" in message
    counted = capture.stats
    assert (counted.accepted, counted.written, dict(counted.dropped)) == (5, 0, {"closed": 5})
    assert (counted.pending, counted.pending_bytes) == (0, 0)
    store.answer.set()
    writing.join(timeout=30)
    assert len(written(store)) == 3  # late, and counted already
    assert capture.stats == counted
    assert capture.close()

"""A real S3 server that goes away and comes back, seen through a wire that can be cut."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from feedback.capture import Capture, CapturePolicy, WriterSettings
from hardloop.core import capture_records, images
from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.core.records import CaptureRecord

pytestmark = pytest.mark.real


class Wire:
    """Passes bytes between a port of its own and a server until it is cut; then nothing gets through or stays open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.is_cut = False
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.is_cut:
                    self.refused += 1
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                with self._lock:
                    self._open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(s3: S3Settings):
    wire = Wire(s3.url)
    yield wire
    wire.close()


def picture(number: int) -> bytes:
    return images.encode_png(np.full((4, 4, 3), (number % 256, number // 256, 7), dtype=np.uint8))


def written(blobs: S3Blobs) -> list[CaptureRecord]:
    keys = list(blobs.keys(capture_records.prefix("shoes")))
    return [record for key in keys for record in capture_records.read(blobs.get(key), key)]


def test_a_server_cut_off_again_and_again_while_writing_ends_with_every_promised_sample(s3, wire):
    settings = WriterSettings(flush_interval_s=0.01, batch_records=5, first_retry_s=0.02, last_retry_s=0.1)
    capture = Capture(
        replace(s3, url=wire.url), "shoes", ["a", "b"], CapturePolicy(take_all=True), "1", strict=True, writer=settings
    )
    promised = set()
    for number in range(120):
        promised.add(capture.log(image=picture(number), probabilities=[0.5, 0.5]).sample_id)
        if number % 20 == 10:
            wire.cut()
        elif number % 20 == 15:
            wire.mend()
        time.sleep(0.01)
    wire.mend()
    assert capture.close(timeout_s=60.0)
    assert capture.stats.dropped == {}
    assert wire.refused > 0
    records = written(S3Blobs(s3))
    assert {record.sample_id for record in records} == promised
    # A put whose answer was cut off may have been repeated under its own name, never under a second one.
    assert len(records) == len(promised)
    blobs = S3Blobs(s3)
    assert all(blobs.exists(record.image_key) for record in records)


PROMISING = """
import sys, numpy as np
from hardloop import Capture, CapturePolicy
capture = Capture.from_env("shoes", ["a", "b"], CapturePolicy(take_all=True), "1", strict=True)
for number in range(1000):
    pixels = np.full((4, 4, 3), (number % 256, number // 256, 9), dtype=np.uint8)
    sample = capture.log(image=pixels, probabilities=[0.5, 0.5]).sample_id
    if number % 100 == 99:
        assert capture.flush(60)
        print("flushed", number + 1, flush=True)
"""


def test_kill_9_loses_nothing_that_was_flushed_and_leaves_no_file_half_written(s3):
    environ = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HARDLOOP_S3_URL": s3.url,
        "HARDLOOP_S3_BUCKET": s3.bucket,
        "HARDLOOP_S3_ACCESS_KEY": s3.access_key,
        "HARDLOOP_S3_SECRET_KEY": s3.secret_key,
    }
    child = subprocess.Popen([sys.executable, "-c", PROMISING], env=environ, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    flushed = 0
    for line in child.stdout:
        flushed = int(line.split()[1])
        if flushed >= 300:
            break
    child.send_signal(signal.SIGKILL)
    flushed = max([flushed, *(int(line.split()[1]) for line in child.stdout)])
    child.wait(timeout=30)
    records = written(S3Blobs(s3))  # reads every file: a torn one would raise
    assert len({record.sample_id for record in records}) >= flushed >= 300

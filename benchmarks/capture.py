"""What `Capture.log` costs the caller, and how fast what it takes reaches the store.

    python -m benchmarks.capture [--store folder|s3] [--out benchmarks/results/capture.json]

Decision: one thread calls `log` at a steady 1,000 predictions/s and then as fast as it can, with 10 classes, a member,
a 128-dimensional embedding and a 20 kB JPEG (a fifth of them taken), and with 224 x 224 pixel arrays. Persisting: 2,000
different images, all taken, against the same number of plain puts into the same store in the same run.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from feedback.capture import Capture, CapturePolicy, WriterSettings
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.ports import BlobStore

LABELS = [f"class-{n}" for n in range(10)]
PERSISTED = 2_000


def jpegs(number: int, size: int, rng: np.random.Generator) -> list[bytes]:
    """Photograph-like JPEG files: noise enlarged eightfold, so that they compress to about a tenth of their pixels."""
    files = []
    for _ in range(number):
        small = rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((size, size), Image.Resampling.BILINEAR).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def timed_calls(
    capture: Capture, pictures: list[Any], per_s: float | None, seconds: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Call `log` for a while; a fifth of the answers are unsure. Returns microseconds per call at several quantiles.

    Wall time is what a caller waits; on a machine with other work most of its tail is that work. CPU time is the
    caller's thread alone.
    """
    sure, unsure = np.full(10, 0.01, dtype=np.float32), np.full(10, 0.1, dtype=np.float32)
    sure[3] = 0.91
    embedding = rng.normal(size=128).astype(np.float32)
    took: list[float] = []
    worked: list[float] = []
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        if per_s is not None and (wait := start + len(took) / per_s - now) > 0:
            time.sleep(wait)
        probs = unsure if len(took) % 5 == 0 else sure
        begun, begun_cpu = time.perf_counter_ns(), time.thread_time_ns()
        capture.log(
            image=pictures[len(took) % len(pictures)],
            probabilities=probs,
            member_probabilities=probs[None, :],
            embedding=embedding,
            encoder="benchmark",
        )
        worked.append((time.thread_time_ns() - begun_cpu) / 1000)
        took.append((time.perf_counter_ns() - begun) / 1000)
    elapsed = time.perf_counter() - start
    quantiles, cpu = statistics.quantiles(took, n=1000), statistics.quantiles(worked, n=1000)
    return {
        "calls": len(took),
        "calls_per_s": round(len(took) / elapsed),
        "p50_us": round(quantiles[499], 1),
        "p99_us": round(quantiles[989], 1),
        "p999_us": round(quantiles[998], 1),
        "cpu_p50_us": round(cpu[499], 1),
        "cpu_p99_us": round(cpu[989], 1),
        "taken": capture.stats.accepted,
        "dropped": dict(capture.stats.dropped),
    }


def decisions(store: BlobStore, seconds: float, rng: np.random.Generator) -> dict[str, Any]:
    """Every combination of picture and pace, each with a capture of its own."""
    pictures = {
        "jpeg": jpegs(64, 224, rng),
        "array": list(rng.integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)),
    }
    results = {}
    for kind, given in pictures.items():
        for pace in (1000.0, None):
            policy = CapturePolicy(audit_share=0.0, exploration_share=0.0)
            with Capture(store, "bench", LABELS, policy, model_version="1", strict=True) as capture:
                name = f"{kind} at {'full speed' if pace is None else '1,000/s'}"
                results[name] = timed_calls(capture, given, pace, seconds, rng)
    return results


def persisting(store: BlobStore, rng: np.random.Generator) -> dict[str, Any]:
    """Images per second through capture, and through plain puts of the same bytes by one thread."""
    files = jpegs(PERSISTED, 96, rng)
    begun = time.perf_counter()
    for number, data in enumerate(files):
        store.put(f"raw/{number:06d}", data)
    raw_s = time.perf_counter() - begun
    settings = WriterSettings(max_pending=PERSISTED)
    with Capture(store, "bench", LABELS, CapturePolicy(take_all=True), "1", strict=True, writer=settings) as capture:
        begun = time.perf_counter()
        for data in files:
            capture.log(image=data, probabilities=np.full(10, 0.1))
        assert capture.flush(600.0)
        captured_s = time.perf_counter() - begun
        assert capture.stats.written == PERSISTED
    return {
        "images": PERSISTED,
        "mean_bytes": round(statistics.mean(map(len, files))),
        "raw_puts_per_s": round(PERSISTED / raw_s),
        "captured_per_s": round(PERSISTED / captured_s),
        "share_of_raw": round(raw_s / captured_s, 2),
    }


def open_store(kind: str, stack: ExitStack) -> BlobStore:
    """A folder, or a bucket at HARDLOOP_S3_URL and its companions."""
    if kind == "folder":
        return DirectoryBlobs(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    from feedback.capture_store import store_from_env
    from hardloop.core.blobs import S3Blobs, S3Settings

    settings = store_from_env(os.environ)
    if not isinstance(settings, S3Settings):
        raise SystemExit("HARDLOOP_S3_URL does not name a server: use --store folder")
    blobs = S3Blobs(settings)
    blobs.ensure_bucket()
    return blobs


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["folder", "s3"], default="folder", help="s3: at HARDLOOP_S3_URL")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each decision run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    with ExitStack() as stack:
        store = open_store(given.store, stack)
        result = {
            "measured_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "store": given.store,
            "seed": given.seed,
            "decision": decisions(store, given.seconds, np.random.default_rng(given.seed)),
            "persisting": persisting(store, np.random.default_rng(given.seed)),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

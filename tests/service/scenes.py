"""What people and production do to a loop in memory, in one line each."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from hardloop.core import capture_records, ids
from hardloop.core.ports import BlobStore
from hardloop.core.records import CaptureRecord
from hardloop.service import steps
from hardloop.service.intake import GivenImage
from tests.fakes.loops import LABELS, FakeLoop, picture

AT = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


def give(world: FakeLoop, role: str, per_class: int, rng: np.random.Generator, clear: float = 0.8) -> dict[str, int]:
    """Hand in so many images of each class; labelled with the truth unless they go to the pool."""
    given = []
    for label in LABELS:
        for number in range(per_class):
            image = picture(label, rng, clear)
            world.truth[ids.sample_id(image)] = label
            known = None if role == "pool" else label
            given.append(GivenImage(f"{role}-{label}-{number}", image, "archive", role, known))
    return steps.add_images(world.loop, given)


def first_model(world: FakeLoop, rng: np.random.Generator) -> str:
    """A champion from six labels, judged on sixty."""
    give(world, "seed", 2, rng)
    give(world, "legacy", 20, rng)
    version = steps.train(world.loop, manual=True)
    assert version is not None
    assert steps.promote(world.loop) == version
    return version


def produce(world: FakeLoop, count: int, rng: np.random.Generator, model_version: str = "1") -> list[str]:
    """So many predictions from production, captured; the sample ids."""
    made = []
    for _ in range(count):
        label = LABELS[rng.integers(3)]
        image = picture(label, rng, clear=0.35)
        probabilities = rng.dirichlet([2.0, 2.0, 2.0])
        decision = world.capture.log(
            image=image, probabilities=probabilities, model_version=model_version, source="line-1"
        )
        world.truth[decision.sample_id] = label
        made.append(decision.sample_id)
    assert world.capture.flush(20)
    return made


def round_of_labels(world: FakeLoop, selection_id: str, budget: int) -> list[str]:
    """Mine, approve, send, answer and collect; the picked sample ids."""
    steps.mine(world.loop, selection_id, budget)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    world.answer_all()
    steps.collect(world.loop)
    return [item["sample_id"] for item in world.loop.work.queue(selection_id=selection_id)]


def record_of(image: bytes, loop: str = "colours", **changed: object) -> CaptureRecord:
    """A capture record as a well-behaved writer leaves it, but for what is changed."""
    sample = ids.sample_id(image)
    fields: dict[str, object] = {
        "sample_id": sample,
        "image_key": ids.image_key(sample, "png"),
        "captured_at": AT,
        "loop": loop,
        "model_version": "1",
        "labels": LABELS,
        "probs_C": np.array([0.5, 0.3, 0.2], dtype=np.float32),
        "policies": {"low_confidence": 0.5},
        "source": "line-1",
        "group_id": sample,
        "audit": ids.reserved(sample, loop, 0.1),  # as a capture with the loop's own share draws it
    }
    return CaptureRecord(**{**fields, **changed})  # type: ignore[arg-type]


def put_capture_file(
    blobs: BlobStore, records: Sequence[CaptureRecord], at: datetime = AT, loop: str = "colours"
) -> str:
    """Write a capture file as of a moment; its key."""
    key = f"{capture_records.prefix(loop)}{ids.time_ordered_key(at)}.parquet"
    blobs.put(key, capture_records.write(records))
    return key


def put_image(blobs: BlobStore, image: bytes) -> bytes:
    """Store an image where capture would; the image."""
    blobs.put(ids.image_key(ids.sample_id(image), "png"), image, "image/png")
    return image


def count_of(world: FakeLoop) -> int:
    """Samples of every role."""
    return sum(world.loop.samples.count().values())

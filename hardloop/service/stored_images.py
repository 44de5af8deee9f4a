"""The stored images of a loop's samples, read and checked; those that are gone are passed over: the loop goes on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hardloop.core import ids, images
from hardloop.core.errors import BadInput, BadSettings, BlobMissing, Unavailable
from hardloop.core.ports import BlobStore
from hardloop.service.samples import Sample, Samples
from hardloop.service.work import VANISHED, Work

T = TypeVar("T")

_BATCH = 64  # images in memory at a time: photos of 5 MB are 320 MB
_READERS = 8


def read(samples: Samples, blobs: BlobStore, wanted: Sequence[Sample]) -> Iterator[tuple[list[Sample], list[bytes]]]:
    """The samples with their stored images, in batches that keep memory bounded.

    A sample whose image is gone, or is not the one it was, is passed over, and the reason remembered: one deleted
    object must not hold up everything else, and once it is restored the sample is back. Raises Unavailable where the
    store is away, or holds none of many images: that is another store, not somebody deleting.
    """
    found = 0
    for part, looked in _each(wanted, lambda sample: _look(blobs, sample)):
        lost = [("sample", s.sample_id, data) for s, data in zip(part, looked, strict=True) if isinstance(data, str)]
        samples.refuse(lost)
        here = [(s, data) for s, data in zip(part, looked, strict=True) if not isinstance(data, str)]
        found += len(here)
        if here:
            yield [s for s, _ in here], [data for _, data in here]
    _check_store(found, wanted)


def missing(blobs: BlobStore, wanted: Sequence[Sample]) -> set[str]:
    """Ids of the samples whose image is gone, without reading any. Raises Unavailable as `read` does."""
    gone: set[str] = set()
    for part, there in _each(wanted, lambda sample: blobs.exists(sample.image_key)):
        gone.update(s.sample_id for s, found in zip(part, there, strict=True) if not found)
    _check_store(len(wanted) - len(gone), wanted)
    return gone


def withdraw(samples: Samples, work: Work, reasons: Mapping[str, str], actor: str) -> int:
    """Take samples out of a loop for good: never mined, sent, trained on or measured on again. Returns how many left.

    reasons: by sample id. What was answered about them stays in the history.
    """
    work.drop(reasons, actor)
    new = samples.withdraw(reasons)
    if new:
        work.event(actor, "withdrawn", {"samples": new, "why": sorted(set(reasons.values()))[:3]})
    return new


def _look(blobs: BlobStore, sample: Sample) -> bytes | str:
    """The image, or what is wrong with it."""
    try:
        data = blobs.get(sample.image_key, images.MAX_BYTES)
    except BlobMissing:
        return f"its image {sample.image_key!r} is gone from the store"
    except BadSettings:
        raise  # refused credentials say nothing about the image
    except BadInput as error:
        return f"its image {sample.image_key!r} is not the one it was: {error}"
    # What has the hash it had was decoded at the door; anything else may hold whatever it likes.
    if ids.sample_id(data) != sample.sample_id:
        return f"its image {sample.image_key!r} is not the one it was: other bytes lie there now"
    return data


def _each(wanted: Sequence[Sample], look: Callable[[Sample], T]) -> Iterator[tuple[Sequence[Sample], list[T]]]:
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            yield part, list(readers.map(look, part))


def _check_store(found: int, wanted: Sequence[Sample]) -> None:
    if not found and len(wanted) >= VANISHED:
        raise Unavailable(
            f"the store holds none of {len(wanted)} images that were asked for, {wanted[0].image_key!r} for one: is it "
            "the bucket or folder the loop began with? Bring it back, or withdraw the samples whose images are gone"
        )

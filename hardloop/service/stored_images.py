"""The stored images of a loop's samples, and what becomes of a sample without one: it leaves, and the loop goes on."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from hardloop.core import ids, images
from hardloop.core.errors import BadInput, BlobMissing
from hardloop.core.ports import BlobStore
from hardloop.service.samples import Sample, Samples
from hardloop.service.work import Work

_BATCH = 64  # images in memory at a time: photos of 5 MB are 320 MB
_READERS = 8


def read(
    samples: Samples, work: Work, blobs: BlobStore, wanted: Sequence[Sample]
) -> Iterator[tuple[list[Sample], list[bytes]]]:
    """The samples with their stored images, in batches that keep memory bounded.

    A sample whose image is gone, or is not the one it was, is withdrawn and left out: one deleted object must not
    hold up everything else for ever. Raises Unavailable where the store is away.
    """
    for part, found in _looked_at(blobs, wanted):
        lost = {s.sample_id: data for s, data in zip(part, found, strict=True) if isinstance(data, str)}
        withdraw(samples, work, lost, "service")
        here = [(s, data) for s, data in zip(part, found, strict=True) if not isinstance(data, str)]
        if here:
            yield [s for s, _ in here], [data for _, data in here]


def withdraw_unreadable(samples: Samples, work: Work, blobs: BlobStore, wanted: Sequence[Sample]) -> int:
    """Withdraw those of the samples whose image is gone or altered. Returns how many."""
    return len(wanted) - sum(len(part) for part, _ in read(samples, work, blobs, wanted))


def withdraw(samples: Samples, work: Work, reasons: Mapping[str, str], actor: str) -> int:
    """Take samples out of a loop for good: never mined, sent, trained on or measured on again. Returns how many left.

    reasons: by sample id. What was answered about them stays in the history.
    """
    work.drop(reasons, actor)
    new = samples.withdraw(reasons)
    if new:
        work.event(actor, "withdrawn", {"samples": new, "why": sorted(set(reasons.values()))[:3]})
    return new


def _looked_at(blobs: BlobStore, wanted: Sequence[Sample]) -> Iterator[tuple[Sequence[Sample], list[bytes | str]]]:
    """Batches of samples, each with its image or with what is wrong with it."""

    def look(sample: Sample) -> bytes | str:
        try:
            data = blobs.get(sample.image_key, images.MAX_BYTES)
        except BlobMissing:
            return f"its image {sample.image_key!r} is gone from the store"
        except BadInput as error:
            return f"its image {sample.image_key!r} is not the one it was: {error}"
        # What has the hash it had was decoded at the door; anything else may hold whatever it likes.
        if ids.sample_id(data) != sample.sample_id:
            return f"its image {sample.image_key!r} is not the one it was: other bytes lie there now"
        return data

    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            yield part, list(readers.map(look, part))

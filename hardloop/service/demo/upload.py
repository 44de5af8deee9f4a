"""Bringing the labelled images to the service, in requests of a size that it takes."""

import json
from collections.abc import Iterator, Sequence

from hardloop.core.errors import BadSettings
from hardloop.core.ports import Progress
from hardloop.service.client import Client
from hardloop.service.demo.items import DemoItem

_IMAGES = 100  # in one request, so that progress shows
_BYTES = 64 * 1024**2  # likewise: a sixteenth of the largest form the service takes; two images at least fit


def batches(items: Sequence[DemoItem], most: int = _IMAGES, most_bytes: int = _BYTES) -> Iterator[list[DemoItem]]:
    """The items in order, at most `most` and `most_bytes` of images together; an image larger than that goes alone."""
    batch: list[DemoItem] = []
    size = 0
    for item in items:
        if batch and (len(batch) == most or size + len(item.image) > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.image)
    if batch:
        yield batch


def upload(client: Client, loop: str, items: Sequence[DemoItem], role: str, progress: Progress) -> None:
    """Bring images with their labels, as `seed` or `legacy`. Raises BadSettings with the reason of a refusal."""
    done = 0
    for batch in batches(items):
        taken = client.post(
            f"/loops/{loop}/images",
            files=[("files", (item.name, item.image)) for item in batch],
            data={"role": role, "source": "demo", "labels": json.dumps([item.label for item in batch])},
        )
        if taken["refused"]:
            refusals = client.get(f"/loops/{loop}/refusals")
            raise BadSettings(f"an image was refused by the service: {refusals[-1]['reason']}")
        done += len(batch)
        progress(f"uploading {role} images", done, len(items))

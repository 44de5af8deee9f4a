"""Images from the store, as recipe inputs: fetched and decoded by threads, a chunk at a time, and kept by sample id.

A sample's id is the hash of its bytes, so a cached row never goes stale, and a training that was killed while it
fetched continues where it stopped.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardloop.core import images
from hardloop.core.errors import BadImage, BlobMissing
from hardloop.core.ports import BlobStore, Progress
from hardloop.core.records import DatasetRow, Split
from training.recipe import Inputs, Recipe, apply_front
from training.recipes import choose_size

CHUNK = 256  # images decoded at a time: 3 MB of pixels at 64 x 64
_CACHE_FORMAT = 1  # raise it when decoding, resizing or a front changes what it makes of an image
_THREADS = 8  # the store answers slower than one thread decodes
_SIZE_SAMPLE = 64  # images looked at to choose the input size: each is read and decoded at every training
_NAMED = 5  # unreadable images named in one error


class InputCache:
    """Prepared inputs by sample id in one SQLite file, safe to share between processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with closing(self._connect()) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS inputs (id TEXT PRIMARY KEY, row BLOB NOT NULL)")

    def missing(self, samples: Sequence[str]) -> list[str]:
        """Those of the samples that are not kept yet, in their order."""
        with closing(self._connect()) as connection:
            known = {name for (name,) in connection.execute("SELECT id FROM inputs")}
        return [sample for sample in samples if sample not in known]

    def add(self, samples: Sequence[str], inputs: Inputs) -> None:
        """Keep a chunk, all or nothing."""
        rows = [(sample, row.tobytes()) for sample, row in zip(samples, inputs, strict=True)]
        with closing(self._connect()) as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO inputs VALUES (?, ?)", rows)

    def read(self, samples: Sequence[str], like: Inputs) -> Inputs:
        """(N, ...) inputs of kept samples in their order, in the shape and type of a row of `like`."""
        out: Inputs = np.empty((len(samples), *like.shape[1:]), dtype=like.dtype)
        with closing(self._connect()) as connection:
            for i, sample in enumerate(samples):
                (row,) = connection.execute("SELECT row FROM inputs WHERE id = ?", (sample,)).fetchone()
                out[i] = np.frombuffer(row, dtype=like.dtype).reshape(like.shape[1:])
        return out

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection


class InputReader:
    """The inputs of one recipe for the images of one dataset version.

    size: side of the square input; taken from the recipe, else chosen from the training images.
    """

    def __init__(self, blobs: BlobStore, recipe: Recipe, rows: Sequence[DatasetRow], cache: Path) -> None:
        self._blobs = blobs
        self._rows = {row.sample_id: row for row in rows}
        self.size = recipe.size or self._choose_size([row for row in rows if row.split is Split.TRAIN])
        self._front = recipe.front(self.size)
        self._like = apply_front(self._front, np.zeros((1, self.size, self.size, 3), dtype=np.uint8))
        self._cache = InputCache(cache / f"{recipe.space(self.size)}-{_CACHE_FORMAT}.sqlite")

    def fetch(self, progress: Progress) -> None:
        """Bring every row's inputs into the cache.

        Raises BadImage naming the samples whose image is missing, unreadable or too large.
        """
        wanted = self._cache.missing(list(self._rows))
        refused: list[str] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(wanted), CHUNK):
                progress("reading images", start, len(wanted))
                samples = wanted[start : start + CHUNK]
                results = list(pool.map(self._pixels, samples))
                refused += [result for result in results if isinstance(result, str)]
                good = [(s, r) for s, r in zip(samples, results, strict=True) if not isinstance(r, str)]
                if good:
                    inputs = apply_front(self._front, np.stack([pixels for _, pixels in good]))
                    self._cache.add([sample for sample, _ in good], inputs)
        progress("reading images", len(wanted), len(wanted))
        if refused:
            named = "; ".join(refused[:_NAMED]) + (f", and {len(refused) - _NAMED} more" if refused[_NAMED:] else "")
            raise BadImage(
                f"{len(refused)} of {len(self._rows)} images cannot be trained on: {named}. "
                "Leave these samples out of the dataset version, or restore their images"
            )

    def read(self, samples: Sequence[str]) -> Inputs:
        """(N, ...) inputs of samples that `fetch` has brought, in their order."""
        return self._cache.read(samples, self._like)

    def chunks(self, samples: Sequence[str], size: int = 2048) -> Iterator[Inputs]:
        """The same, a part at a time, so that large test sets need not fit into memory."""
        for start in range(0, len(samples), size):
            yield self.read(samples[start : start + size])

    def pixels(self, samples: Sequence[str]) -> NDArray[np.uint8]:
        """uint8 (N, size, size, 3) RGB of samples, straight from the store: for the check after export.

        Raises BadImage where an image that was there has gone.
        """
        found = [self._pixels(sample) for sample in samples]
        for result in found:
            if isinstance(result, str):
                raise BadImage(f"{result} any more: restore it and train again")
        return np.stack([pixels for pixels in found if not isinstance(pixels, str)])

    def _pixels(self, sample: str) -> NDArray[np.uint8] | str:
        """The decoded image at input size, or why there is none."""
        row = self._rows[sample]
        name = f"sample {sample} ({row.image_key})"
        try:
            data = self._blobs.get(row.image_key, max_bytes=images.MAX_BYTES)
            return images.to_array(images.decode(data, name), self.size, self.size)
        except BadImage as error:
            return str(error)
        except BlobMissing:
            return f"{name} is not in the store"

    def _choose_size(self, rows: Sequence[DatasetRow]) -> int:
        """The size for the images that were labelled first, given labels before all.

        Where sizes are mixed, a choice by other images could turn with any new label, and all embeddings with it.
        """
        ordered = sorted(rows, key=lambda row: (min(row.annotation_ids, default=0), row.sample_id))
        sides = []
        for row in ordered[:_SIZE_SAMPLE]:
            try:
                data = self._blobs.get(row.image_key, max_bytes=images.MAX_BYTES)
                facts = images.check(data)
            except (BadImage, BlobMissing):
                continue  # named later, by fetch
            sides.append(min(facts.width, facts.height))
        return choose_size(sides)

"""Real digits in a directory-backed store, and dataset versions made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hardloop.core import ids, images
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.fingerprint import fingerprint
from hardloop.core.ports import BlobStore
from hardloop.core.records import DatasetRow, Split
from training import datasets
from training.leakage import assemble

LABELS = tuple("0123456789")


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits as PNG files, in a fixed random order."""

    files: tuple[bytes, ...]
    labels: tuple[str, ...]

    def row(self, i: int, split: Split = Split.TRAIN, group: str = "") -> DatasetRow:
        """The i-th digit as a labelled sample."""
        sample = ids.sample_id(self.files[i])
        return DatasetRow(
            sample_id=sample,
            image_key=ids.image_key(sample, "png"),
            label=self.labels[i],
            split=split,
            fold=-1,
            group_id=group or sample,
            source="scanner",
            fingerprint=fingerprint(images.decode(self.files[i])),
            origin="seed",
        )


@pytest.fixture(scope="session")
def digits() -> Digits:
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(7).permutation(len(pixels))
    return Digits(tuple(images.encode_png(pixels[i]) for i in order), tuple(LABELS[found.target[i]] for i in order))


@pytest.fixture
def folder_blobs(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "bucket")


@pytest.fixture
def stored(digits: Digits, folder_blobs: DirectoryBlobs) -> Callable[..., str]:
    """Puts digits into the store and returns the key of a dataset version: train, audit and legacy by position."""

    def store(
        train: Sequence[int],
        audit: Sequence[int] = (),
        legacy: Sequence[int] = (),
        labels: tuple[str, ...] = LABELS,
        blobs: BlobStore = folder_blobs,
    ) -> str:
        rows = []
        for split, chosen in ((Split.TRAIN, train), (Split.HOLDOUT, audit), (Split.LEGACY, legacy)):
            for i in chosen:
                row = digits.row(i, split)
                blobs.put(row.image_key, digits.files[i], "image/png")
                rows.append(row)
        kept, excluded = assemble(rows)
        assert not excluded
        return datasets.store(blobs, datasets.build("digits", labels, kept))

    return store

"""The input size: chosen by the training images that were labelled first, and not moved by later labels."""

from pathlib import Path

import numpy as np

from hardloop.core import ids, images
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.records import DatasetRow, Split
from training import recipes
from training.inputs import InputReader


def square(blobs: DirectoryBlobs, side: int, number: int, split: Split = Split.TRAIN) -> DatasetRow:
    """A grey square in the store, labelled by the annotation of that number."""
    data = images.encode_png(np.full((side, side), number, dtype=np.uint8))
    sample = ids.sample_id(data)
    blobs.put(ids.image_key(sample, "png"), data)
    return DatasetRow(
        sample, ids.image_key(sample, "png"), "x", split, 0, sample, "door", "00" * 96, "coverage", None, (number,)
    )


def size(blobs: DirectoryBlobs, rows: list[DatasetRow], folder: Path) -> int:
    return InputReader(blobs, recipes.named("linear-probe"), rows, folder / "cache").size


def test_labels_that_come_later_do_not_move_the_input_size(folder_blobs, tmp_path):
    """Of the 64 images labelled first 33 are small; all that follow are larger."""
    first = [square(folder_blobs, 30 if i < 33 else 60, i) for i in range(64)]
    later = [square(folder_blobs, 60, i) for i in range(64, 200)]
    assert [size(folder_blobs, later[:n] + first, tmp_path) for n in (0, 1, 5, 20, 136)] == [32] * 5


def test_held_out_images_have_no_say_in_the_input_size(folder_blobs, tmp_path):
    held = [square(folder_blobs, 8, i, split) for i, split in enumerate((Split.LEGACY, Split.HOLDOUT, Split.LEGACY))]
    assert size(folder_blobs, [*held, square(folder_blobs, 60, 100)], tmp_path) == 48

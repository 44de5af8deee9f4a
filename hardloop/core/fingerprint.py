"""Perceptual fingerprints: which images are near-duplicates, whatever their size or compression.

A fingerprint is a difference hash of 16 x 16 bits (each bit: is this cell brighter than its right neighbour by more
than DEAD_BAND) and an 8 x 8 thumbnail of 8-bit luma. Two images are near-duplicates when both agree: the hash alone
takes flat images for equal, the thumbnail alone takes two views of one dark scene for equal. Source: dHash, N. Krawetz
2013, widened, with a dead band so that compression noise in flat areas flips no bits.

Measured (`tests/core/test_fingerprint.py` holds it): of 600 clothing10 photos 98 to 100 % are found again after JPEG at
quality 50, half or double size, or noise. Among images that are not copies, 0 of 1,797 digits, 49 of 10,000
Fashion-MNIST images (70 pairs, all of one label, mostly trousers alike to the eye) and, of 3,781 clothing10 photos,
the one pair its manifest calls near-identical are taken for near-duplicates. Images of 8 x 8 pixels are found again
after resizing by whole factors without smoothing, not after smoothing or strong compression, which change them visibly.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BYTES = 32
THUMB_BYTES = 64
SIZE = HASH_BYTES + THUMB_BYTES

DEAD_BAND = 4  # luma levels; 0 loses every second JPEG copy of an image with a flat background
MAX_HASH_BITS = 20  # of 256; with fewer, copies at half the size are missed; more finds no further copies
MAX_THUMB_DIFFERENCE = 3.0  # mean absolute luma difference, of 255; 4 takes three times as many look-alikes for copies


def fingerprint(image: Image.Image) -> str:
    """The fingerprint of a decoded image, in hexadecimal (2 * SIZE digits)."""
    luma = image.convert("L")
    cells = np.asarray(luma.resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(cells[:, :-1] > cells[:, 1:] + DEAD_BAND)
    thumb = np.asarray(luma.resize((8, 8), Image.Resampling.BOX), dtype=np.uint8)
    return bits.tobytes().hex() + thumb.tobytes().hex()


def unpack(fingerprints: Sequence[str]) -> NDArray[np.uint8]:
    """(N, SIZE) uint8 from fingerprints in hexadecimal."""
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), dtype=np.uint8).reshape(-1, SIZE)


def first_matches(left: Sequence[str], right: Sequence[str]) -> dict[int, int]:
    """The first j for which left[i] and right[j] are near-duplicates, for each i that has one, in ascending order of i.

    Each different fingerprint of `right` is compared with those of `left` that have no match yet and are as bright.
    """
    different, number_N = _different(left)
    unmatched = _Untaken(unpack(different))
    match_M = np.full(len(different), -1)
    asked: set[str] = set()
    for j, fingerprint in enumerate(right):
        if fingerprint not in asked:
            match_M[unmatched.take(unpack([fingerprint])[0])] = j
            asked.add(fingerprint)
    return {i: j for i, j in enumerate(match_M[number_N].tolist()) if j >= 0}


def components(fingerprints: Sequence[str]) -> NDArray[np.int64]:
    """(N,) for each row the first one that a chain of near-duplicates ties it to: itself where there is none before.

    Each different fingerprint is compared once with those that no chain has reached yet and are about as bright.
    """
    different, number_N = _different(fingerprints)
    bytes_MB = unpack(different)
    unreached = _Untaken(bytes_MB)
    first_M = np.full(len(different), -1)
    for first in range(len(different)):
        ends = [first] if first_M[first] < 0 else []
        while ends:
            end = ends.pop()
            found = unreached.take(bytes_MB[end])
            first_M[found] = first
            ends += found[found != end].tolist()
    _, row_M = np.unique(number_N, return_index=True)
    row_N: NDArray[np.int64] = row_M[first_M[number_N]]
    return row_N


class _Untaken:
    """Fingerprints in order of brightness, each there until a near-duplicate takes it."""

    def __init__(self, bytes_NB: NDArray[np.uint8]) -> None:
        brightness_N = bytes_NB[:, HASH_BYTES:].sum(axis=1, dtype=np.int64)
        self._row_N = np.argsort(brightness_N)
        self._brightness_N = brightness_N[self._row_N]
        self._hash_4N = np.ascontiguousarray(bytes_NB[self._row_N, :HASH_BYTES]).view(np.uint64).T.copy()
        self._thumb_NB = bytes_NB[self._row_N, HASH_BYTES:]
        self._left_N: NDArray[np.bool_] = np.ones(len(bytes_NB), dtype=np.bool_)

    def take(self, one_B: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The rows, in no order, that are left and near-duplicates of the one; they are gone afterwards."""
        hash_41 = one_B[:HASH_BYTES].copy().view(np.uint64)[:, None]
        thumb_B = one_B[HASH_BYTES:].astype(np.int16)
        # Thumbnails that differ by no more than this in all cannot differ by more in their sums.
        furthest = MAX_THUMB_DIFFERENCE * THUMB_BYTES
        low = np.searchsorted(self._brightness_N, thumb_B.sum() - furthest, "left")
        high = np.searchsorted(self._brightness_N, thumb_B.sum() + furthest, "right")
        bits = np.bitwise_count(self._hash_4N[:, low:high] ^ hash_41).sum(axis=0, dtype=np.uint16)
        near = low + np.flatnonzero((bits <= MAX_HASH_BITS) & self._left_N[low:high])
        near = near[np.abs(self._thumb_NB[near] - thumb_B).sum(axis=1) <= furthest]
        found: NDArray[np.int64] = self._row_N[near]
        self._left_N[near] = False
        if 2 * np.count_nonzero(self._left_N) < len(self._left_N):
            self._forget_taken()
        return found

    def _forget_taken(self) -> None:
        kept = self._left_N
        self._row_N, self._brightness_N = self._row_N[kept], self._brightness_N[kept]
        self._hash_4N, self._thumb_NB = self._hash_4N[:, kept], self._thumb_NB[kept]
        self._left_N = self._left_N[kept]


def _different(fingerprints: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different fingerprints in order of their first rows, and each row's position among them."""
    position: dict[str, int] = {}
    position_N = [position.setdefault(fingerprint, len(position)) for fingerprint in fingerprints]
    return list(position), np.array(position_N, dtype=np.int64)

"""What a near-duplicate is, bit by bit, for tests that do not trust the fast way."""

from hardloop.core import fingerprint


def alike(a: str, b: str) -> bool:
    """Whether two fingerprints are near-duplicates."""
    one, other = bytes.fromhex(a), bytes.fromhex(b)
    bits = sum((x ^ y).bit_count() for x, y in zip(one[:32], other[:32], strict=True))
    levels = sum(abs(x - y) for x, y in zip(one[32:], other[32:], strict=True)) / 64
    return bits <= fingerprint.MAX_HASH_BITS and levels <= fingerprint.MAX_THUMB_DIFFERENCE

"""Ids that tie samples together, as numbers: the bursts of which one sample is asked about."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Pool

Rows = NDArray[np.int64]


def number(names: Sequence[str]) -> tuple[Rows, dict[str, int]]:
    """A number per distinct name, in order of first appearance: (number of each entry, number by name)."""
    numbers: dict[str, int] = {}
    of_N = np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), dtype=np.int64, count=len(names))
    return of_N, numbers


def number_bursts(pool: Pool, one_per_burst: bool) -> Rows:
    """A number per (source, burst), -1 where a sample belongs to none or bursts do not matter."""
    n = len(pool.ids)
    if pool.bursts is None or not one_per_burst:
        return np.full(n, -1, dtype=np.int64)
    sources = pool.sources if pool.sources is not None else ("",) * n
    numbers_N, _ = number([f"{source}\x1f{burst}" for source, burst in zip(sources, pool.bursts, strict=True)])
    return np.where(np.array([burst != "" for burst in pool.bursts], dtype=np.bool_), numbers_N, -1)

"""The report's statistics: intervals of accuracies and of gains, and what a gain is worth in labels."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardloop.core.errors import BadInput, BadShape
from hardloop.core.records import Interval

_Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
_BLOCK = 500  # resamples drawn at once: 500 x 2,000 counts are 8 MB


class Saved(NamedTuple):
    """`value` labels fewer than random picking needs for the same accuracy (negative: more).

    at_least: random never came that far on the measured curve, so the true number is larger.
    """

    value: int
    at_least: bool


def wilson(right: int, n: int) -> Interval:
    """The accuracy `right / n` with its 95 % interval, all in [0, 1].

    Holds its level at accuracies near 1, where the textbook interval would end above 100 %. Raises BadInput unless
    0 <= right <= n and n >= 1. Source: E. B. Wilson 1927, score interval.
    """
    if n < 1 or not 0 <= right <= n:
        raise BadInput(f"{right} right answers of {n}: expected 0 <= right <= n and at least one answer")
    share = right / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # Rounding may put an end on the wrong side of the estimate when every answer is right or wrong.
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def mean(values: Sequence[float]) -> Interval:
    """The mean of independent repetitions in [0, 1] with its 95 % Student-t interval; of one value, that value alone.

    The interval is about the mean over seeds, not about the test set. Raises BadInput without values.
    """
    if not values:
        raise BadInput("the mean of no repetitions was asked for: run at least one")
    centre = float(np.mean(values))
    if len(values) == 1:
        return Interval(centre, centre, centre)
    from scipy.stats import t  # 0.5 s: only a finished demo needs it

    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(centre, max(0.0, centre - half), min(1.0, centre + half))


def paired_gain(
    ours_RN: NDArray[np.bool_], random_SRN: NDArray[np.bool_], seed: int, resamples: int = 10_000
) -> Interval:
    """Mean gain of our picks over random ones, in percentage points, with a paired 95 % bootstrap interval.

    ours_RN: whether the model of round R is right on test image N. random_SRN: the same for S random baselines with the
    same numbers of labels. Both test images and baselines are resampled; that our own run could have been drawn
    differently is not in the interval. Raises BadShape where the axes do not agree or one is empty.
    """
    if ours_RN.ndim != 2 or random_SRN.ndim != 3 or random_SRN.shape[1:] != ours_RN.shape or 0 in random_SRN.shape:
        raise BadShape(
            f"right answers of ours have shape {ours_RN.shape} and of random {random_SRN.shape}: "
            "expected (rounds, images) and (baselines, rounds, images), none empty"
        )
    gains_SN = (ours_RN[None].astype(np.float64) - random_SRN).mean(axis=1)
    n_seeds, n_images = gains_SN.shape
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        images_BN, seeds_BS = _counts(rng, size, n_images), _counts(rng, size, n_seeds)
        means.append(((images_BN @ gains_SN.T / n_images) * seeds_BS).sum(axis=1) / n_seeds)
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    value = gains_SN.mean()
    # Rounding may put an end on the wrong side where all resamples agree.
    return Interval(100 * float(value), 100 * float(min(low, value)), 100 * float(max(high, value)))


def _counts(rng: np.random.Generator, size: int, n: int) -> NDArray[np.float64]:
    """(size, n): how often each of n things comes up in n draws with replacement; ten times faster than multinomial."""
    drawn = rng.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def labels_saved(accuracy: float, labels: int, curve: Sequence[tuple[int, float]]) -> Saved:
    """How many more labels random picking needs to be as accurate as we are with `labels`.

    curve: (labels, mean accuracy) of random picking, in ascending order of labels; straight lines between. The first
    crossing counts, so that a lucky bump of the curve counts for random. Where its first point is that good already,
    that point's labels are taken: fewer were not measured. Rounded down. Raises BadInput for an unordered or empty
    curve.
    """
    if not curve or any(a[0] >= b[0] for a, b in pairwise(curve)):
        raise BadInput("the random curve must hold at least one point, with labels strictly ascending")
    if accuracy <= curve[0][1]:
        return Saved(curve[0][0] - labels, at_least=False)
    for (left, low), (right, high) in pairwise(curve):
        if low < accuracy <= high:
            crossing = left + (right - left) * (accuracy - low) / (high - low)
            return Saved(math.floor(crossing - labels + 1e-9), at_least=False)
    return Saved(curve[-1][0] - labels, at_least=True)

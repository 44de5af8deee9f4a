"""Intervals for accuracies and for paired differences between two models on the same samples. Pure."""

from statistics import NormalDist

import numpy as np

from hardloop.core.errors import BadShape
from hardloop.core.records import Interval


def wilson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """A proportion with its two-sided score interval, in [0, 1]; n = 0 gives the whole range around 0.5.

    Holds its confidence at small n and near 0 and 1, where value ± 1.96 standard errors does not.
    Source: Wilson 1927.
    """
    if not 0 <= hits <= n:
        raise BadShape(f"{hits} hits of {n}: expected 0 <= hits <= n")
    if n == 0:
        return Interval(0.5, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At 0 and n hits the interval reaches the end of the range exactly; rounding must not say otherwise.
    return Interval(share, 0.0 if hits == 0 else max(0.0, centre - half), 1.0 if hits == n else min(1.0, centre + half))


def paired_difference(wins: int, losses: int, n: int, confidence: float, resamples: int, seed: int) -> Interval:
    """The difference of two accuracies on the same n samples, with a smoothed paired bootstrap interval, in [-1, 1].

    wins: samples only the first model has right. losses: those only the second has right. On all others they tie.

    Resampling n samples with replacement and taking the mean of the differences is, exactly, a multinomial draw of the
    three counts, so `resamples` resamples cost the same at a million samples as at ten. One win and one loss are added
    before drawing: the plain percentile interval is too narrow where few samples differ (it calls 4 wins of 50 proof,
    and two models that never differed equal beyond doubt); with them the error stays under its nominal level, see
    `docs/gate.md`. Source of the added counts: Bonett and Price 2012, for the same difference.

    Exchanging the models gives exactly the mirrored interval.
    """
    if min(wins, losses) < 0 or wins + losses > n or n < 1:
        raise BadShape(f"{wins} wins and {losses} losses of {n}: counts must not be negative nor exceed n >= 1")
    if wins < losses:
        mirrored = paired_difference(losses, wins, n, confidence, resamples, seed)
        return Interval(-mirrored.value, -mirrored.high, -mirrored.low)
    rng = np.random.default_rng(seed)
    size = n + 2
    shares = np.array([wins + 1, losses + 1, n - wins - losses]) / size
    draws = rng.multinomial(size, shares, size=resamples)
    differences = (draws[:, 0] - draws[:, 1]) / size
    if wins == losses:  # the distribution is symmetric then: so are the draws, or exchanging models would show
        half = differences[: (resamples + 1) // 2]
        differences = np.concatenate([half, -half])
    tail = (1 - confidence) / 2
    # Outward on both sides: the bound is a drawn value with at least `tail` of the draws at it or beyond.
    low = float(np.quantile(differences, tail, method="inverted_cdf"))
    high = -float(np.quantile(-differences, tail, method="inverted_cdf"))
    value = (wins - losses) / n
    return Interval(value, min(low, value), max(high, value))

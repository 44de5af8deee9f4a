"""What the audit holdout teaches: how overconfident the model is, and whether its uncertainty finds its mistakes."""

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Floats
from miner.uncertainty import tempered

_TINY = 1e-12
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_LOG_RANGE = np.log(20.0)  # temperatures outside [1/20, 20] mean a broken model or a handful of labels, not calibration


def negative_log_likelihood(probs_NC: Floats, truth_N: NDArray[np.int64]) -> float:
    """Mean of -log(probability of the true class), in nats."""
    return float(-np.log(np.maximum(probs_NC[np.arange(len(truth_N)), truth_N], _TINY)).mean())


def fit_temperature(probs_NC: Floats, truth_N: NDArray[np.int64], min_labels: int) -> float:
    """The temperature in [1/20, 20] that minimises the audit's negative log-likelihood; 1 with under `min_labels`.

    The loss is convex in 1/temperature and so has one valley in its logarithm; golden-section search finds it to six
    digits. Source: Guo, Pleiss, Sun, Weinberger 2017, temperature scaling.
    """
    if len(truth_N) < min_labels:
        return 1.0

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(tempered(probs_NC, float(np.exp(log_temperature))), truth_N)

    low, high = -_LOG_RANGE, _LOG_RANGE
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > 1e-7:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - _GOLDEN * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + _GOLDEN * (high - low)
            loss_right = loss(right)
    return float(np.exp((low + high) / 2.0))


def auroc(score_N: Floats, positive_N: NDArray[np.bool_]) -> float:
    """The chance that a positive scores higher than a negative, ties counting half. NaN where one kind is missing."""
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, level_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    midrank = np.cumsum(count) - (count - 1) / 2.0
    rank_sum = float(midrank[level_N[positive_N]].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def lam_from_auroc(value: float) -> float:
    """How far to trust uncertainty: 0 where it finds mistakes no better than chance (0.5), 1 from an AUROC of 0.75."""
    return float(np.clip((value - 0.5) / 0.25, 0.0, 1.0))

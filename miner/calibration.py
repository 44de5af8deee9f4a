"""What the audit holdout teaches: how overconfident the model is, and whether its uncertainty finds its mistakes."""

import numpy as np
from numpy.typing import NDArray

from hardloop.core import temperature
from hardloop.core.records import Floats

_TINY = 1e-12  # as in `uncertainty.tempered`: a probability of 0 then has a logarithm


def fit_temperature(probs_NC: Floats, truth_N: NDArray[np.int64], min_labels: int) -> float:
    """What is left to correct, fitted on the audit as `core.temperature` says; 1 with under `min_labels`."""
    if len(truth_N) < min_labels:
        return 1.0
    return temperature.fit_temperature(np.log(np.maximum(probs_NC.astype(np.float64), _TINY)), truth_N)


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

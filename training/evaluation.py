"""How good a model is on samples it did not see."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Evaluation, Floats

_BINS = 10  # of confidence, for the expected calibration error


def metrics(evaluation: Evaluation, labels: Sequence[str]) -> dict[str, float]:
    """Numbers per slice, named `slice/metric`: n, accuracy, nll, ece, and per class recall, precision and support.

    recall/CLASS and precision/CLASS are left out where nothing was of, or called, that class.
    """
    found: dict[str, float] = {}
    slices_N = np.asarray(evaluation.slices)
    for name in sorted(set(evaluation.slices)):
        rows = slices_N == name
        truth_N, probs_NC = evaluation.truth_N[rows], evaluation.probs_NC[rows]
        found[f"{name}/n"] = float(len(truth_N))
        found[f"{name}/accuracy"] = float((probs_NC.argmax(axis=1) == truth_N).mean())
        found[f"{name}/nll"] = float(-np.log(np.maximum(probs_NC[np.arange(len(truth_N)), truth_N], 1e-12)).mean())
        found[f"{name}/ece"] = calibration_error(probs_NC, truth_N)
        found.update({f"{name}/{key}": value for key, value in _per_class(probs_NC, truth_N, labels).items()})
    return found


def calibration_error(probs_NC: Floats, truth_N: NDArray[np.int64]) -> float:
    """Expected calibration error in [0, 1]: mean gap of confidence and accuracy over ten equal bins of confidence."""
    confidence_N = probs_NC.max(axis=1)
    right_N = probs_NC.argmax(axis=1) == truth_N
    bins_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins_N, weights=confidence_N - right_N, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(truth_N))


def _per_class(probs_NC: Floats, truth_N: NDArray[np.int64], labels: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    called_N = probs_NC.argmax(axis=1)
    for index, label in enumerate(labels):
        right = float(((called_N == index) & (truth_N == index)).sum())
        support, calls = float((truth_N == index).sum()), float((called_N == index).sum())
        found[f"support/{label}"] = support
        if support:
            found[f"recall/{label}"] = right / support
        if calls:
            found[f"precision/{label}"] = right / calls
    return found

"""Temperature scaling: one number that makes a model's probabilities honest, fitted on few labels or many.

A fit to the labels alone is at the mercy of a handful: 20 that are all right are explained best by a model that is
never in doubt. So the model's own answers count as PRIOR_ROWS further labels, spread over the classes as it believes.
They say that it is calibrated as it is; a label weighs as much as one of them, and many labels outvote them. Source:
Guo, Pleiss, Sun, Weinberger 2017, temperature scaling; the prior is ours.

Measured: docs/recipes.md, "The temperature".
"""

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Floats

PRIOR_ROWS = 50  # of 5, 10, 20, 50, 100: the least or nearly the least loss with 20, 50 and 200 labels of digits
_COLDEST, _HOTTEST = 0.05, 20.0  # outside, a model is broken, not badly calibrated


def softmax(logits_NC: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """(N, C) probabilities of logits divided by the temperature; rows sum to 1."""
    scaled_NC = logits_NC.astype(np.float64) / temperature
    powers_NC = np.exp(scaled_NC - scaled_NC.max(axis=1, keepdims=True))
    probs_NC: NDArray[np.float64] = powers_NC / powers_NC.sum(axis=1, keepdims=True)
    return probs_NC


def fit_temperature(logits_NC: Floats, truth_N: NDArray[np.int64], prior: float = 1.0) -> float:
    """The temperature in [0.05, 20] with the least log loss on N labels and on PRIOR_ROWS that the model gives itself.

    prior: the temperature at which it gives them; the answer where there is no row, or none that any temperature moves.
    The loss is convex in 1 / T, so its slope is followed to zero by bisection.
    """
    values_NC = logits_NC.astype(np.float64)
    values_NC -= values_NC.max(axis=1, keepdims=True)
    if not values_NC.any():
        return prior
    n = len(truth_N)
    believed = float((softmax(values_NC, prior) * values_NC).sum() / n)
    labelled = float(values_NC[np.arange(n), truth_N].mean())
    wanted = (PRIOR_ROWS * believed + n * labelled) / (PRIOR_ROWS + n)
    low, high = 1.0 / _HOTTEST, 1.0 / _COLDEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = float((softmax(values_NC, 1.0 / middle) * values_NC).sum() / n) - wanted
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(1.0 / (low * high) ** 0.5)

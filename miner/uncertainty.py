"""How unsure a model is, and how far a committee disagrees. Higher is always more worth labelling.

Axes: M committee members, N samples, C classes.
"""

import numpy as np

from hardloop.core.errors import BadShape
from hardloop.core.records import Floats

_TINY = 1e-12  # under float32's resolution near 1: a probability of 0 then costs 27.6 nats, finite


def margin(probs_NC: Floats) -> Floats:
    """Closeness of the two likeliest classes.

    probs_NC: N samples by C >= 2 classes; rows sum to 1. A row of NaN gives NaN.
    Returns (N,) in [0, 1]; 1 is a perfect tie.
    Raises BadShape if not two-dimensional or C < 2.
    Source: Scheffer, Decomain, Wrobel 2001, margin sampling; we return 1 - margin.
    """
    if probs_NC.ndim != 2 or probs_NC.shape[1] < 2:
        raise BadShape(f"probabilities have shape {probs_NC.shape}: expected (samples, classes) with 2 classes or more")
    top_N2 = np.partition(probs_NC.astype(np.float64), -2, axis=1)[:, -2:]
    return np.clip(1.0 - (top_N2[:, 1] - top_N2[:, 0]), 0.0, 1.0)


def disagreement(probs_MNC: Floats) -> Floats:
    """Jensen-Shannon divergence of a committee: the entropy of the mean minus the mean of the entropies.

    probs_MNC: M members; rows sum to 1.
    Returns (N,) in [0, 1], divided by its largest possible value log(min(M, C)): 0 when all agree, 1 when every
    member is certain of another class. One member never disagrees.
    Raises BadShape if not three-dimensional or C < 2.
    Source: Lin 1991; as query-by-committee, McCallum and Nigam 1998.
    """
    if probs_MNC.ndim != 3 or probs_MNC.shape[2] < 2:
        raise BadShape(
            f"committee has shape {probs_MNC.shape}: expected (members, samples, classes), 2 classes or more"
        )
    members, samples, classes = probs_MNC.shape
    if members < 2:
        return np.zeros(samples)
    p_MNC = probs_MNC.astype(np.float64)
    nats_N: Floats = _entropy(p_MNC.mean(axis=0)) - _entropy(p_MNC).mean(axis=0)
    return np.asarray(np.clip(nats_N / np.log(min(members, classes)), 0.0, 1.0))


def combine(margin_N: Floats, disagreement_N: Floats) -> Floats:
    """One uncertainty from two reasons to doubt: 1 - (1 - margin)(1 - disagreement).

    Either alone suffices, both together count more, and the result stays in [0, 1].
    """
    return 1.0 - (1.0 - margin_N) * (1.0 - disagreement_N)


def tempered(probs_NC: Floats, temperature: float) -> Floats:
    """Probabilities with their logits divided by `temperature` > 0; 1 changes nothing, above 1 is less sure."""
    if temperature == 1.0:
        return probs_NC.astype(np.float64)
    logits_NC = np.log(np.maximum(probs_NC.astype(np.float64), _TINY)) / temperature
    logits_NC -= logits_NC.max(axis=1, keepdims=True)
    scores_NC = np.exp(logits_NC)
    return np.asarray(scores_NC / scores_NC.sum(axis=1, keepdims=True))


def _entropy(probs: Floats) -> Floats:
    """Entropy in nats over the last axis; 0 log 0 is 0."""
    return np.asarray(-np.sum(probs * np.log(np.where(probs > 0.0, probs, 1.0)), axis=-1))

"""What the models say about each sample of the pool, calibrated on the audit holdout."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Floats, Ints, Pool, PoolState
from miner.calibration import auroc, fit_temperature, lam_from_auroc
from miner.policy import MiningPolicy
from miner.uncertainty import combine, disagreement, margin, tempered

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """Per sample, in the pool's order.

    uncertainty_N: in [0, 1], disagreement included; samples without a prediction get the mean of the eligible others:
    nothing is known, so they are neither pushed to the front nor starved. Zero throughout where nothing was predicted.
    known_N: whether there was a prediction. predicted_N: likeliest class, -1 without one. confidence_N: its chance.
    lam: how much uncertainty counts against plain coverage. warm: whether there are labels enough to listen to it.
    terms: the numbers behind lam and temperature, for the selection's record.
    """

    uncertainty_N: Floats
    disagreement_N: Floats
    known_N: Flags
    predicted_N: Ints
    confidence_N: Floats
    temperature: float
    lam: float
    warm: bool
    terms: Mapping[str, float]


def read_signals(pool: Pool, policy: MiningPolicy) -> Signals:
    """The signals of a checked pool whose rows are in ascending order of id."""
    n = len(pool.ids)
    labels = int(((pool.state_N == PoolState.LABELLED) & (pool.labels_N >= 0)).sum())
    warm = labels >= policy.warm_labels_per_class * pool.n_classes
    if pool.probs_NC is None or not np.isfinite(pool.probs_NC).all(axis=1).any():
        nothing_N = np.zeros(n)
        return Signals(
            nothing_N,
            nothing_N,
            np.zeros(n, dtype=np.bool_),
            np.full(n, -1),
            nothing_N,
            1.0,
            0.0,
            warm,
            {"labels": labels},
        )
    known_N: Flags = np.asarray(np.isfinite(pool.probs_NC).all(axis=1))
    mean_KC, disagreement_K = _committee(pool, known_N)
    audit_K = (pool.state_N[known_N] == PoolState.AUDIT) & (pool.labels_N[known_N] >= 0)
    truth_A = pool.labels_N[known_N][audit_K]
    temperature = fit_temperature(mean_KC[audit_K], truth_A, policy.min_audit_labels)
    calibrated_KC = tempered(mean_KC, temperature)
    uncertainty_K = combine(margin(calibrated_KC), disagreement_K)
    wrong_A = mean_KC[audit_K].argmax(axis=1) != truth_A
    lam, terms = _lam(uncertainty_K[audit_K], wrong_A, warm, policy)

    eligible_K = pool.state_N[known_N] == PoolState.ELIGIBLE
    neutral = float(uncertainty_K[eligible_K].mean()) if eligible_K.any() else float(uncertainty_K.mean())
    serving_KC = pool.probs_NC[known_N]
    uncertainty_N = np.full(n, neutral)
    uncertainty_N[known_N] = uncertainty_K
    disagreement_N, confidence_N = np.zeros(n), np.zeros(n)
    disagreement_N[known_N] = disagreement_K
    confidence_N[known_N] = serving_KC.max(axis=1)
    predicted_N = np.full(n, -1)
    predicted_N[known_N] = serving_KC.argmax(axis=1)
    return Signals(
        uncertainty_N,
        disagreement_N,
        known_N,
        predicted_N,
        confidence_N,
        temperature,
        lam,
        warm,
        {"labels": labels, **terms},
    )


def _committee(pool: Pool, known_N: Flags) -> tuple[Floats, Floats]:
    """The committee's mean probabilities and disagreement on the rows the serving model has predicted.

    A member that has not predicted a row is taken to agree with the serving model there.
    """
    assert pool.probs_NC is not None
    serving_KC = pool.probs_NC[known_N].astype(np.float64)
    if pool.member_probs_MNC is None or not len(pool.member_probs_MNC):
        return serving_KC, np.zeros(len(serving_KC))
    members_MKC = pool.member_probs_MNC[:, known_N].astype(np.float64)
    members_MKC = np.where(np.isfinite(members_MKC), members_MKC, serving_KC[None])
    all_MKC = np.concatenate([serving_KC[None], members_MKC])
    return all_MKC.mean(axis=0), disagreement(all_MKC)


def _lam(uncertainty_A: Floats, wrong_A: Flags, warm: bool, policy: MiningPolicy) -> tuple[float, dict[str, float]]:
    errors = int(wrong_A.sum())
    rights = len(wrong_A) - errors
    terms: dict[str, float] = {"audit_labels": len(wrong_A), "audit_errors": errors}
    if errors and rights:
        terms["auroc"] = auroc(uncertainty_A, wrong_A)
    if policy.method == "coverage":
        return 0.0, terms
    if policy.method == "margin":
        return 1.0, terms
    if policy.lam is not None:
        return policy.lam, terms
    if not warm:
        return 0.0, terms
    if min(errors, rights) < policy.min_audit_errors:
        return policy.lam_without_audit, terms
    return lam_from_auroc(terms["auroc"]), terms

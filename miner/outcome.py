"""The last step of a selection: the arms' picks in one order, a receipt for each, and the numbers behind them all."""

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Arm, Pick, Pool, PoolState, Receipt, Selection
from miner.budget import Arms, interleave
from miner.neighbours import nearest_among, nearest_earlier, to_grid
from miner.policy import MiningPolicy
from miner.receipts import reasons
from miner.serve import Served
from miner.signals import Signals

Rows = NDArray[np.int64]


def conclude(pool: Pool, arms: Arms, signals: Signals, served: Served, policy: MiningPolicy) -> Selection:
    """The selection: arms interleaved so that every prefix holds about their shares, receipts attached."""
    covered = served.space.row_G[served.taken.rows] if served.space is not None else np.zeros(0, dtype=np.int64)
    rows_of = (covered, arms.exploration, arms.audit)
    order = interleave([len(rows) for rows in rows_of])
    rows = np.array([rows_of[arm][place] for arm, place in order], dtype=np.int64)
    is_audit = np.array([arm == 2 for arm, _ in order], dtype=np.bool_)
    nearest = _nearest(pool, arms, served, rows, is_audit)
    picks = tuple(
        Pick(pool.ids[row], _receipt(arm, place, rank, int(row), nearest[rank], arms, signals, served, policy))
        for rank, ((arm, place), row) in enumerate(zip(order, rows, strict=True))
    )
    return Selection(
        picks=picks,
        budget=arms.budget,
        seed=arms.seed,
        method=policy.method,
        policy_digest=policy.digest,
        objective=served.objective,
        terms=_terms(arms, signals, served, policy, len(covered), int((pool.state_N == PoolState.AUDIT).sum())),
        shortfall=served.shortfall,
    )


def _receipt(
    arm: int, place: int, rank: int, row: int, nearest: tuple[str, float] | None,
    arms: Arms, signals: Signals, served: Served, policy: MiningPolicy,
) -> Receipt:  # fmt: skip
    gain, weight, covers, duplicates, priority, balance, damping = 0.0, 0.0, 0, 1, 1.0, 1.0, 1.0
    propensity: float | None = None
    kind = (Arm.COVERAGE, Arm.EXPLORATION, Arm.AUDIT)[arm]
    if kind is Arm.COVERAGE:
        assert served.space is not None
        assert served.demand is not None
        group = served.taken.rows[place]
        gain, covers = served.taken.gains[place], served.taken.covers[place]
        weight, duplicates = float(served.demand.weight_G[group]), int(served.space.count_G[group])
        priority, damping = float(served.demand.priority_G[group]), float(served.demand.damping_G[group])
        balance = float(served.demand.balance_G[group])
    else:
        explored = kind is Arm.EXPLORATION
        propensity = float(arms.exploration_propensities[place]) if explored else arms.audit_propensity
    uncertainty, disagreement = float(signals.uncertainty_N[row]), float(signals.disagreement_N[row])
    nearest_id, similarity = nearest if nearest is not None else (None, None)
    return Receipt(
        arm=kind,
        rank=rank,
        gain=gain,
        weight=weight,
        uncertainty=uncertainty,
        disagreement=disagreement,
        damping=damping,
        lam=signals.lam,
        sigma=served.demand.sigma if served.demand is not None else policy.cold_sigma,
        temperature=signals.temperature,
        covers=covers,
        nearest_picked=nearest_id,
        nearest_similarity=similarity,
        propensity=propensity,
        predicted=int(signals.predicted_N[row]),
        confidence=float(signals.confidence_N[row]) if signals.known_N[row] else None,
        seed=arms.seed,
        policy_digest=policy.digest,
        reasons=reasons(
            kind, policy.method, uncertainty=uncertainty, lam=signals.lam if signals.known_N[row] else 0.0,
            disagreement=disagreement, covers=covers, duplicates=duplicates, damping=damping, priority=priority,
            balance=balance,
            nearest_similarity=similarity, propensity=propensity,
        ),
        priority=priority,
        balance=balance,
        duplicates=duplicates,
    )  # fmt: skip


def _nearest(
    pool: Pool, arms: Arms, served: Served, rows: Rows, is_audit: NDArray[np.bool_]
) -> list[tuple[str, float] | None]:
    """For each pick the sample most like it among those asked before and the picks ranked before it.

    Audit picks are not compared with: nobody trains on them, so being like one makes no sample less worth asking.
    """
    found: list[tuple[str, float] | None] = [None] * len(rows)
    if served.space is None or not len(rows):
        return found
    picks = to_grid(pool.embeddings_ND[rows], served.space.center_D)
    best = np.full(len(rows), np.iinfo(np.int64).max)
    names: list[str | None] = [None] * len(rows)
    units, earlier = nearest_earlier(picks, ~is_audit)
    for rank in np.flatnonzero(earlier >= 0):
        best[rank], names[rank] = units[rank], pool.ids[rows[earlier[rank]]]
    if len(arms.earlier):
        units, before = nearest_among(picks, to_grid(pool.embeddings_ND[arms.earlier], served.space.center_D))
        for rank in np.flatnonzero(units <= best):
            best[rank], names[rank] = units[rank], pool.ids[arms.earlier[before[rank]]]
    for rank, name in enumerate(names):
        if name is not None:
            found[rank] = (name, float(picks.similarity(best[rank : rank + 1])[0]))
    return found


def _terms(
    arms: Arms, signals: Signals, served: Served, policy: MiningPolicy, covered: int, holdout: int
) -> dict[str, float]:
    """The selection-wide numbers; `auroc` is there only where the audit holds both mistakes and right answers."""
    terms: dict[str, float] = {
        "lam": signals.lam,
        "temperature": signals.temperature,
        "sigma": served.demand.sigma if served.demand is not None else policy.cold_sigma,
        "gamma": policy.duplicates_exponent,
        "neighbours": policy.neighbours,
        "warm": float(signals.warm),
        "eligible": len(arms.eligible) + len(arms.exploration),
        "covered_before": len(arms.earlier),
        "audit_holdout": holdout,
        "coverage_picks": covered,
        "exploration_picks": len(arms.exploration),
        "audit_picks": len(arms.audit),
    }
    return {name: float(value) for name, value in (terms | dict(signals.terms)).items()}

"""How a budget is split, and the uniform draws: the audit slice, the exploration slice, and the breaking of ties."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Pool, PoolState
from miner.bursts import number_bursts
from miner.policy import MiningPolicy

_AUDIT_PHASE, _EXPLORATION_PHASE = 0.5, 0.0  # half a step apart: small rounds take one or the other, not both at once


@dataclass(frozen=True, slots=True)
class Split:
    """How many picks each arm pays for; they sum to the budget."""

    audit: int
    exploration: int
    coverage: int


def split_budget(
    budget: int, asked_before: int, audit_share: float, exploration_share: float, audit_open: int, eligible: int
) -> Split:
    """The budget over the three arms.

    asked_before: how many samples the loop has asked for so far, whatever became of them.
    audit_open, eligible: samples the uniform arms can draw from; what they cannot take goes to coverage.

    A share of a small budget is rarely a whole number, and rounding each round alone would make 5 % of 10 nothing for
    ever. So each arm gets the difference of rounded running totals, floor(share * asked + phase) after the round less
    the same before it: over any number of rounds, of any sizes, an arm is within one pick of its share.
    """
    audit = _step(audit_share, asked_before, budget, _AUDIT_PHASE)
    exploration = _step(exploration_share, asked_before, budget, _EXPLORATION_PHASE)
    audit = min(audit, audit_open, budget)
    exploration = min(exploration, eligible, budget - audit)
    return Split(audit, exploration, budget - audit - exploration)


def _step(share: float, before: int, budget: int, phase: float) -> int:
    # 0.05 * 20 is a hair above 1 in floating point, 0.29 * 100 a hair below 29: count what is meant.
    return int(np.floor(share * (before + budget) + phase + 1e-9) - np.floor(share * before + phase + 1e-9))


def tie_numbers(ids: Sequence[str], seed: int, purpose: str) -> NDArray[np.int64]:
    """A distinct number per id, 0 to N - 1, in an order drawn by hashing (purpose, seed, id).

    ids: ascending. The order depends on the ids alone: not on rows, processes or Python's own hash.
    """
    prefix = hashlib.blake2b(f"{purpose}\x1f{seed}\x1f".encode(), digest_size=8)

    def drawn(sample_id: str) -> int:
        state = prefix.copy()
        state.update(sample_id.encode())
        return int.from_bytes(state.digest(), "big") >> 1

    values_N = np.fromiter((drawn(i) for i in ids), dtype=np.int64, count=len(ids))
    numbers_N = np.empty(len(ids), dtype=np.int64)
    numbers_N[np.argsort(values_N, kind="stable")] = np.arange(len(ids))
    return numbers_N


def draw(rows: NDArray[np.int64], ties_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the rows, uniformly without replacement: those whose tie numbers are smallest, in that order."""
    return rows[np.argsort(ties_N[rows], kind="stable")[:count]]


@dataclass(frozen=True, slots=True, eq=False)
class Arms:
    """A budget, split, with the uniform arms drawn. All are rows of a pool in ascending order of id.

    eligible: what coverage may pick from, exploration's draw taken out. asked: labelled, queued, and exploration's
    draw: coverage goes around it. earlier: the same without that draw. labelled: samples with a label to learn
    from.
    audit_propensity: the chance with which each sample of the holdout could be drawn. exploration_propensities: the
    same of each sample that exploration drew, in its order: less for one of a burst, of which only one could be.
    ties_N: breaks ties.
    """

    budget: int
    seed: int
    split: Split
    eligible: NDArray[np.int64]
    asked: NDArray[np.int64]
    earlier: NDArray[np.int64]
    labelled: NDArray[np.int64]
    audit: NDArray[np.int64]
    audit_propensity: float
    exploration: NDArray[np.int64]
    exploration_propensities: NDArray[np.float64]
    ties_N: NDArray[np.int64]


def draw_arms(pool: Pool, budget: int, policy: MiningPolicy, seed: int) -> Arms:
    """Split the budget and draw the uniform arms. The pool's rows must be in ascending order of id."""
    state_N = pool.state_N
    audit_N = state_N == PoolState.AUDIT
    done_N = audit_N & (pool.labels_N >= 0)
    if pool.audit_asked_N is not None:
        done_N |= audit_N & pool.audit_asked_N
    asked = np.flatnonzero((state_N == PoolState.LABELLED) | (state_N == PoolState.QUEUED))
    eligible = np.flatnonzero(state_N == PoolState.ELIGIBLE)
    audit_open = np.flatnonzero(audit_N & ~done_N)
    budget_split = split_budget(
        budget, pool.asked_before, policy.audit_share, policy.exploration_share, len(audit_open), len(eligible)
    )
    audit = draw(audit_open, tie_numbers(pool.ids, seed, "audit"), budget_split.audit)
    open_, sizes = _one_per_burst(
        eligible, number_bursts(pool, policy.one_per_burst), asked, tie_numbers(pool.ids, seed, "burst")
    )
    exploration = draw(open_, tie_numbers(pool.ids, seed, "exploration"), budget_split.exploration)
    return Arms(
        budget=budget,
        seed=seed,
        split=budget_split,
        eligible=np.setdiff1d(eligible, exploration),
        asked=np.sort(np.concatenate([asked, exploration])),
        earlier=asked,
        labelled=np.flatnonzero((state_N == PoolState.LABELLED) & (pool.labels_N >= 0)),
        audit=audit,
        audit_propensity=len(audit) / max(1, len(audit_open)),
        exploration=exploration,
        exploration_propensities=len(exploration)
        / max(1, len(open_))
        / sizes[np.searchsorted(open_, exploration)].astype(np.float64),
        ties_N=tie_numbers(pool.ids, seed, "tie"),
    )


def _one_per_burst(
    eligible: NDArray[np.int64], bursts_N: NDArray[np.int64], asked: NDArray[np.int64], ties_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows a uniform draw may take, ascending: every eligible one outside bursts, and of each burst that nothing
    was asked of the one with the smallest tie; with how many eligible rows each stands for.
    """
    alone = eligible[bursts_N[eligible] < 0]
    inside = eligible[(bursts_N[eligible] >= 0) & ~np.isin(bursts_N[eligible], bursts_N[asked])]
    inside = inside[np.lexsort((ties_N[inside], bursts_N[inside]))]
    _, first, sizes = np.unique(bursts_N[inside], return_index=True, return_counts=True)
    rows = np.concatenate([alone, inside[first]])
    order = np.argsort(rows)
    return rows[order], np.concatenate([np.ones(len(alone), dtype=np.int64), sizes])[order]


def interleave(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """An order over arms that keeps their proportions in every prefix: (arm, position within the arm).

    Annotators work from the front and may stop early; were the uniform arms at the end, an unfinished round would
    leave them empty and every estimate made from them biased.
    """
    slots = [((place + 0.5) / size, arm, place) for arm, size in enumerate(sizes) for place in range(size)]
    return [(arm, place) for _, arm, place in sorted(slots)]

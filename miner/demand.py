"""From a pool to a coverage problem: which samples stand for which, and how much each is worth covering."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Floats, Ints, Pool
from miner.bursts import number
from miner.coverage import Problem
from miner.neighbours import (
    Graph,
    GridVectors,
    distinct,
    empty_graph,
    leaders,
    nearest_among,
    neighbour_graph,
    to_grid,
)
from miner.policy import MiningPolicy
from miner.signals import Signals

Rows = NDArray[np.int64]

_OUTLIERS_FROM = 100  # nodes; in smaller pools a 2 % quantile is one or two samples and says nothing of garbage
_LEAST_WARM_SIGMA = (
    0.1  # when the labelled are near-copies of each other; a narrower kernel reaches no neighbour at all
)


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Where the pool's eligible and asked-for samples lie, near-duplicates taken together.

    row_G: the pool row that stands for each of G groups. count_G: eligible samples it stands for. asked_G: groups of
    which a sample was asked for already. near_units: the squared distance of near-duplicates, -1 where that is off.
    vectors, graph: of the groups, in their order. asked: the vectors of all samples asked for, equal ones
    once. center_D: what was subtracted from every embedding, None for nothing.
    """

    row_G: Rows
    count_G: Rows
    asked_G: NDArray[np.bool_]
    vectors: GridVectors
    graph: Graph
    near_units: int
    asked: GridVectors
    center_D: Floats | None


def lay_out(pool: Pool, eligible: Rows, asked: Rows, last_choice_N: NDArray[np.bool_], ties_N: Rows,
            policy: MiningPolicy) -> Space:  # fmt: skip
    """The space of a pool in ascending order of id.

    last_choice_N: rows that should stand for a group only if no other can (their burst was asked for).
    Who leads a group does not depend on what was asked for, so asking for more never moves the graph.
    """
    nodes = np.sort(np.concatenate([eligible, asked]))
    was_asked = np.isin(nodes, asked)
    grouping = policy.near_duplicate_similarity is not None
    first, class_of = distinct(pool.embeddings_ND[nodes]) if grouping else (np.arange(len(nodes)),) * 2
    distinct_MD = pool.embeddings_ND[nodes[first]]
    center_D = distinct_MD.mean(axis=0, dtype=np.float64) if policy.center else None
    vectors = to_grid(distinct_MD, center_D)
    near_units = vectors.units(policy.near_duplicate_similarity) if policy.near_duplicate_similarity else -1
    use_graph = policy.method in ("uncertainty-coverage", "coverage")
    graph = neighbour_graph(vectors, policy.neighbours) if use_graph else empty_graph(len(vectors))

    class_ties = np.full(len(first), len(pool.ids), dtype=np.int64)
    np.minimum.at(class_ties, class_of, ties_N[nodes])
    leader_of = leaders(graph, near_units, class_ties)
    heads, group_of_class = np.unique(leader_of, return_inverse=True)
    if len(heads) < len(first) and use_graph:
        graph = neighbour_graph(vectors.rows(heads), policy.neighbours)
    elif len(heads) < len(first):
        graph = empty_graph(len(heads))
    group_of = group_of_class[class_of]
    count_G = np.bincount(group_of[~was_asked], minlength=len(heads))
    asked_G = np.zeros(len(heads), dtype=np.bool_)
    asked_G[group_of[was_asked]] = True
    return Space(
        _representatives(nodes, group_of, was_asked, last_choice_N, ties_N, len(heads)),
        count_G, asked_G, vectors.rows(heads), graph, near_units,
        vectors.rows(np.unique(class_of[was_asked])), center_D,
    )  # fmt: skip


def _representatives(nodes: Rows, group_of: Rows, was_asked: NDArray[np.bool_], last_choice_N: NDArray[np.bool_],
                     ties_N: Rows, groups: int) -> Rows:  # fmt: skip
    """Per group the row to ask for: an eligible one, of a burst not asked for where there is one, by smallest tie."""
    order = np.lexsort((ties_N[nodes], last_choice_N[nodes], was_asked, group_of))
    _, first = np.unique(group_of[order], return_index=True)
    assert len(first) == groups
    return np.asarray(nodes[order][first])


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """The terms of every group's weight, multiplied in weight_G; sigma is the kernel's width."""

    weight_G: Floats
    priority_G: Floats
    balance_G: Floats
    damping_G: Floats
    sigma: float


def weigh(pool: Pool, space: Space, signals: Signals, policy: MiningPolicy, labelled: Rows) -> Demand:
    """w = priority * balance * count^gamma * damping * ((1 - lam) + lam * uncertainty), 0 for groups asked for already.

    The method "margin" weighs by uncertainty alone, "random" by nothing.
    """
    rows = space.row_G
    damping_G = _damping(pool, space, policy)
    priority_G = np.array([policy.class_priorities.get(int(c), 1.0) for c in signals.predicted_N[rows]])
    if pool.sources is not None and policy.source_priorities:
        priority_G = priority_G * np.array([policy.source_priorities.get(pool.sources[row], 1.0) for row in rows])
    uncertainty_G = signals.uncertainty_N[rows]
    open_G = ~space.asked_G
    if policy.method == "random":
        plain_G = np.ones(len(rows))
        return Demand(np.zeros(len(rows)), plain_G, plain_G, plain_G, policy.cold_sigma)
    if policy.method == "margin":
        plain_G = np.ones(len(rows))
        return Demand(np.where(open_G, uncertainty_G, 0.0), plain_G, plain_G, plain_G, policy.cold_sigma)
    count_G = np.maximum(space.count_G, 1).astype(np.float64) ** policy.duplicates_exponent
    listened_G = (1.0 - signals.lam) + signals.lam * uncertainty_G
    balance_G = _balance(pool, signals.predicted_N[rows], policy, labelled)
    weight_G = np.where(open_G, priority_G * balance_G * count_G * damping_G * listened_G, 0.0)
    return Demand(weight_G, priority_G, balance_G, damping_G, _sigma(pool, space, signals, policy, labelled))


def _damping(pool: Pool, space: Space, policy: MiningPolicy) -> Floats:
    """outlier_damping for what is likely garbage, else 1."""
    garbage_G = np.zeros(len(space.row_G), dtype=np.bool_)
    far_G = space.graph.farthest_N
    if len(far_G) >= _OUTLIERS_FROM and (far_G >= 0).all():
        garbage_G |= far_G > np.quantile(far_G, 1.0 - policy.outlier_quantile)
    if pool.quality_N is not None:
        garbage_G |= pool.quality_N[space.row_G] < policy.quality_floor
    return np.where(garbage_G, policy.outlier_damping, 1.0)


def _balance(pool: Pool, predicted_G: Ints, policy: MiningPolicy, labelled: Rows) -> Floats:
    """More for what looks like a class with few labels, less for one with many; 1 where nothing is predicted.

    What a stream is full of is learnt from its first labels; without this the rare classes wait until it is. Counting
    each class one higher keeps the factor of a class without labels finite.
    """
    counts_C = np.bincount(pool.labels_N[labelled], minlength=pool.n_classes) + 1.0
    factors_C = (counts_C.mean() / counts_C) ** policy.class_balance
    return np.where(predicted_G < 0, 1.0, factors_C[predicted_G])


def _sigma(pool: Pool, space: Space, signals: Signals, policy: MiningPolicy, labelled: Rows) -> float:
    """The kernel's width: fixed while cold; once warm, how close the labelled lie to each other."""
    if not signals.warm or len(labelled) < 2:
        return policy.cold_sigma
    vectors = to_grid(pool.embeddings_ND[labelled], space.center_D)
    units_L, _ = nearest_among(vectors, vectors, same=True)
    distance_L = np.sqrt(units_L) / vectors.scale
    return max(float(np.quantile(distance_L, policy.warm_sigma_quantile)), _LEAST_WARM_SIGMA)


def pose(pool: Pool, space: Space, demand: Demand, signals: Signals, policy: MiningPolicy, ties_N: Rows,
         bursts_N: Rows, used_bursts: Rows) -> Problem:  # fmt: skip
    """The coverage problem of a space: what may be picked, what is covered, and every limit."""
    rows = space.row_G
    burst_G = bursts_N[rows]
    sources_N, _ = number(pool.sources if pool.sources is not None else ("",) * len(pool.ids))
    caps = [policy.class_cap, policy.source_cap]
    return Problem(
        graph=space.graph,
        sigma=demand.sigma,
        weight_N=demand.weight_G,
        pickable_N=~space.asked_G & ~np.isin(burst_G, used_bursts),
        covered=np.flatnonzero(space.asked_G),
        asked=space.asked,
        ties_N=ties_N[rows],
        count_N=np.maximum(space.count_G, 1),
        vectors=space.vectors,
        near_units=space.near_units,
        bursts_N=burst_G,
        strata_SN=np.stack([signals.predicted_N[rows], sources_N[rows]]).astype(np.int64),
        caps_S=np.array([-1 if cap is None else cap for cap in caps], dtype=np.int64),
    )


def in_order(pool: Pool) -> Pool:
    """The pool with its rows in ascending order of id, so that no result can depend on the order they came in."""
    order = np.array(sorted(range(len(pool.ids)), key=pool.ids.__getitem__), dtype=np.int64)

    def strings(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values[row] for row in order)

    return replace(
        pool,
        ids=tuple(pool.ids[row] for row in order),
        embeddings_ND=pool.embeddings_ND[order],
        state_N=pool.state_N[order],
        labels_N=pool.labels_N[order],
        probs_NC=None if pool.probs_NC is None else pool.probs_NC[order],
        member_probs_MNC=None if pool.member_probs_MNC is None else pool.member_probs_MNC[:, order],
        groups=strings(pool.groups),
        bursts=strings(pool.bursts),
        sources=strings(pool.sources),
        audit_asked_N=None if pool.audit_asked_N is None else pool.audit_asked_N[order],
        quality_N=None if pool.quality_N is None else pool.quality_N[order],
    )

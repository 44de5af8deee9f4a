"""The objective and its lazy greedy maximiser, in fixed point, compiled.

F(S) = sum_i w_i * max over j in S and R of k(i, j), on a graph: k(i, i) = 1 and k is 0 where there is no edge. Weights
and kernel values are multiples of 2^-20 held as integers, so that every gain is an exact integer: no order of rows,
edges or threads can move it. Sums stay under 2^63 for pools of up to eight million.

Source: MaxHerding and Uncertainty Herding (Bae, Oliveira, Sutherland, ECCV 2024 and ICLR 2025); lazy greedy after
Minoux 1978.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Floats
from miner.neighbours import Graph, GridVectors

ONE = 1 << 20  # 1.0 in fixed point: a millionth of a weight decides no pick that a person would notice

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Why a row can no longer be picked.
FREE, TAKEN, NEAR_DUPLICATE, SAME_BURST, OVER_CAP = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One coverage problem over n graph nodes.

    weight_N: demand, >= 0; 0 where nothing needs covering. pickable_N: what may be picked.
    covered: rows of R, which cover from the start. asked: the vectors of all samples asked for before, R's and those
    they stand for; a pick must not be a near-duplicate of any.
    ties_N: distinct integers; of equal gains the smaller tie wins. count_N: pool samples each node stands for.
    vectors, near_units: the grid vectors and the squared distance within which two rows are near-duplicates; -1: never.
    bursts_N: burst of each row, -1 for none; one pick per burst.
    strata_SN: per stratification the stratum of each row, -1 for none; caps_S: most picks per stratum, -1 for no cap.
    """

    graph: Graph
    sigma: float
    weight_N: Floats
    pickable_N: Flags
    covered: Rows
    asked: GridVectors
    ties_N: Rows
    count_N: Rows
    vectors: GridVectors
    near_units: int
    bursts_N: Rows
    strata_SN: NDArray[np.int64]
    caps_S: Rows


@dataclass(slots=True, eq=False)
class Taken:
    """What greedy took, in its order. gains in units of the weights; covers: samples that came closer by each."""

    rows: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    covers: list[int] = field(default_factory=list)

    def extend(self, more: "Taken") -> None:
        """Append what a later call took."""
        self.rows += more.rows
        self.gains += more.gains
        self.covers += more.covers


def kernel(units: NDArray[np.int64], scale: int, sigma: float) -> NDArray[np.int64]:
    """exp(-distance^2 / sigma^2) in fixed point, from squared distances in grid units."""
    return np.asarray(np.rint(np.exp(-units / (scale**2 * sigma**2)) * ONE), dtype=np.int64)


class Greedy:
    """A run of greedy over one problem. `take` may be called again: it goes on from what was taken before."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        n = len(problem.graph)
        self._kernel = kernel(problem.graph.units, problem.vectors.scale, problem.sigma)
        self._largest = float(problem.weight_N.max(initial=0.0)) or 1.0
        self._weight_N = np.rint(problem.weight_N / self._largest * ONE).astype(np.int64)
        self._cover_N = np.zeros(n, dtype=np.int64)
        self._state_N = np.where(problem.pickable_N, FREE, TAKEN).astype(np.int8)
        self._picked: list[int] = []
        strata = int(problem.strata_SN.max(initial=-1)) + 1
        self._room = np.where(problem.caps_S[:, None] < 0, n + 1, problem.caps_S[:, None]) + np.zeros(
            (1, max(1, strata)), dtype=np.int64
        )
        self._burst_used = np.zeros(int(problem.bursts_N.max(initial=-1)) + 1, dtype=np.bool_)
        for row in problem.covered:
            self._cover(int(row))

    def take(self, budget: int, among: Flags | None = None) -> Taken:
        """Pick up to `budget` more rows, the largest gain first; fewer when nothing that may be picked is left.

        among: restricts the picks, not the demand.
        """
        problem = self._problem
        may_N = (self._state_N == FREE) if among is None else (self._state_N == FREE) & among
        if budget < 1 or not may_N.any():
            return Taken()
        before = problem.vectors.rows(np.array(self._picked, dtype=np.int64))
        budget = min(budget, int(may_N.sum()))
        asked_AD = np.concatenate(
            [problem.asked.values_ND, before.values_ND, np.zeros((budget, before.width), np.float32)]
        )
        asked_norms_A = np.concatenate([problem.asked.norms_N, before.norms_N, np.zeros(budget, dtype=np.int64)])
        rows, gains, covers = _compiled()(
            problem.graph.starts, problem.graph.indices, self._kernel, self._weight_N, self._cover_N, self._state_N,
            np.flatnonzero(may_N), problem.ties_N, problem.count_N, budget, problem.vectors.values_ND,
            problem.vectors.norms_N, problem.near_units, asked_AD, asked_norms_A, problem.bursts_N, self._burst_used,
            problem.strata_SN, self._room,
        )  # fmt: skip
        self._picked += rows.tolist()
        scale = self._largest / float(ONE) ** 2
        return Taken(rows.tolist(), (gains * scale).tolist(), covers.tolist())

    def objective(self) -> float:
        """F of what was taken so far together with R, in units of the weights."""
        return float(int(self._weight_N @ self._cover_N)) * self._largest / float(ONE) ** 2

    def left_out(self, reason: int) -> int:
        """How many rows were refused for a reason (NEAR_DUPLICATE, SAME_BURST, OVER_CAP) so far."""
        return int((self._state_N == reason).sum())

    def _cover(self, row: int) -> None:
        graph = self._problem.graph
        span = slice(int(graph.starts[row]), int(graph.starts[row + 1]))
        near = graph.indices[span]
        self._cover_N[near] = np.maximum(self._cover_N[near], self._kernel[span])
        self._cover_N[row] = ONE


@cache
def _compiled() -> Callable[..., Any]:
    """The loop below through numba, compiled once per machine: the result is kept beside this file or in the user's
    cache, and where neither can be written, for this process only."""
    import numba  # a second to import

    # Products on the grid are exact in any order, so the compiler may reorder their sums and use vector instructions.
    options = {"nogil": True, "fastmath": {"reassoc", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(_take)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(**options)(_take)  # type: ignore[no-any-return]


def _take(
    starts: Any, indices: Any, kernel_E: Any, weight_N: Any, cover_N: Any, state_N: Any,
    candidates: Any, ties_N: Any, count_N: Any, budget: int, values_ND: Any,
    norms_N: Any, near_units: int, asked_AD: Any, asked_norms_A: Any, bursts_N: Any, burst_used: Any,
    strata_SN: Any, room: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Greedy with lazily refreshed gains: gains only ever fall, so a fresh gain on top of the heap is the largest.

    One plain function in the subset that numba compiles. Changes cover_N, state_N, burst_used, room and
    the last `budget` rows of asked_AD, which are there for the picks to come.
    """
    gain_of = np.zeros(len(weight_N), dtype=np.int64)
    fresh = np.full(len(weight_N), -1, dtype=np.int64)
    heap = [(np.int64(0), np.int64(0), np.int64(0)) for _ in range(len(candidates))]
    for position in range(len(candidates)):
        j = candidates[position]
        gain = weight_N[j] * (ONE - cover_N[j])
        for e in range(starts[j], starts[j + 1]):
            i = indices[e]
            if kernel_E[e] > cover_N[i]:
                gain += weight_N[i] * (kernel_E[e] - cover_N[i])
        gain_of[j] = gain
        fresh[j] = 0
        heap[position] = (-gain, ties_N[j], np.int64(j))
    heapq.heapify(heap)

    rows = np.zeros(budget, dtype=np.int64)
    gains = np.zeros(budget, dtype=np.int64)
    covers = np.zeros(budget, dtype=np.int64)
    taken = 0
    while taken < budget and len(heap) > 0:
        _, tie, j = heapq.heappop(heap)
        if fresh[j] != taken:
            gain = weight_N[j] * (ONE - cover_N[j])
            for e in range(starts[j], starts[j + 1]):
                i = indices[e]
                if kernel_E[e] > cover_N[i]:
                    gain += weight_N[i] * (kernel_E[e] - cover_N[i])
            fresh[j] = taken
            if gain != gain_of[j]:
                gain_of[j] = gain
                heapq.heappush(heap, (-gain, tie, j))
                continue
        burst = bursts_N[j]
        if burst >= 0 and burst_used[burst]:
            state_N[j] = SAME_BURST
            continue
        full = False
        for s in range(strata_SN.shape[0]):
            if strata_SN[s, j] >= 0 and room[s, strata_SN[s, j]] < 1:
                full = True
        if full:
            state_N[j] = OVER_CAP
            continue
        near = False
        if near_units >= 0:
            for a in range(len(asked_norms_A) - budget + taken):
                product = np.float32(0.0)
                for d in range(values_ND.shape[1]):
                    product += values_ND[j, d] * asked_AD[a, d]
                if norms_N[j] + asked_norms_A[a] - 2 * np.int64(product) <= near_units:
                    near = True
                    break
        if near:
            state_N[j] = NEAR_DUPLICATE
            continue
        rows[taken], gains[taken] = j, gain_of[j]
        closer = count_N[j] if cover_N[j] < ONE and weight_N[j] > 0 else 0
        cover_N[j] = ONE
        for e in range(starts[j], starts[j + 1]):
            i = indices[e]
            if kernel_E[e] > cover_N[i]:
                cover_N[i] = kernel_E[e]
                if weight_N[i] > 0:
                    closer += count_N[i]
        covers[taken] = closer
        state_N[j] = TAKEN
        asked_AD[len(asked_norms_A) - budget + taken] = values_ND[j]
        asked_norms_A[len(asked_norms_A) - budget + taken] = norms_N[j]
        if burst >= 0:
            burst_used[burst] = True
        for s in range(strata_SN.shape[0]):
            if strata_SN[s, j] >= 0:
                room[s, strata_SN[s, j]] -= 1
        taken += 1
    return rows[:taken], gains[:taken], covers[:taken]

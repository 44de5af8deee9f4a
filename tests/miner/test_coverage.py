"""The greedy maximiser against brute force, a naive greedy and the dense objective in floating point."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.coverage import NEAR_DUPLICATE, OVER_CAP, SAME_BURST, Greedy, _take, kernel
from miner.neighbours import Graph, distances, empty_graph, neighbour_graph, to_grid
from tests.miner.pools import dense_kernel, make_problem, value

seeds = st.integers(0, 100_000)


def naive(problem, budget: int) -> list[int]:
    """Greedy by its definition on the dense kernel: every gain afresh at every step, ties by the problem's numbers."""
    kernel_NN = dense_kernel(problem)
    picked: list[int] = []
    covered = list(problem.covered)
    for _ in range(budget):
        best = max(
            (j for j in range(len(problem.weight_N)) if problem.pickable_N[j] and j not in picked),
            key=lambda j: (round(value(kernel_NN, problem.weight_N, [*covered, *picked, j]), 7), -problem.ties_N[j]),
        )
        picked.append(best)
    return picked


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), seeds)
def test_lazy_greedy_on_the_full_graph_is_naive_greedy_on_the_dense_objective(n, seed):
    problem = make_problem(np.random.default_rng(seed), n)
    assert Greedy(problem).take(n - 1).rows == naive(problem, n - 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 40), st.integers(1, 6), seeds)
def test_every_accepted_gain_is_the_largest_there_was_on_the_sparse_graph(n, k, seed):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, n, neighbours=k, weight_N=rng.integers(0, 4, size=n) / 4.0)
    edges_NN = sparse_kernel(problem)
    taken = Greedy(problem).take(n)
    weights = np.rint(problem.weight_N / (problem.weight_N.max() or 1.0) * 2**20).astype(np.int64)
    cover = np.zeros(n, dtype=np.int64)
    left = set(range(n))
    for row in taken.rows:
        gains = {j: int((weights * np.maximum(edges_NN[:, j] - cover, 0)).sum()) for j in left}
        assert row == min(left, key=lambda j: (-gains[j], problem.ties_N[j]))
        cover = np.maximum(cover, edges_NN[:, row])
        left.remove(row)
    assert not left


def sparse_kernel(problem) -> np.ndarray:
    """The graph's kernel in fixed point as a full matrix."""
    n = len(problem.weight_N)
    edges_NN = np.zeros((n, n), dtype=np.int64)
    values = kernel(problem.graph.units, problem.vectors.scale, problem.sigma)
    edges_NN[np.repeat(np.arange(n), np.diff(problem.graph.starts)), problem.graph.indices] = values
    np.fill_diagonal(edges_NN, 1 << 20)
    return edges_NN


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.integers(1, 4), seeds)
def test_greedy_reaches_the_promised_share_of_the_optimum(n, budget, seed):
    problem = make_problem(np.random.default_rng(seed), n)
    budget = min(budget, n)
    kernel_NN = dense_kernel(problem)
    best = max(value(kernel_NN, problem.weight_N, list(rows)) for rows in combinations(range(n), budget))
    found = value(kernel_NN, problem.weight_N, Greedy(problem).take(budget).rows)
    assert found >= (1 - 1 / np.e) * best - 1e-6


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 12), st.integers(1, 4), st.integers(1, 2), seeds)
def test_with_caps_greedy_reaches_half_of_the_optimum_under_them(n, budget, cap, seed):
    rng = np.random.default_rng(seed)
    strata = rng.integers(3, size=n)
    problem = make_problem(rng, n, strata_SN=strata[None, :], caps_S=np.array([cap]))
    kernel_NN = dense_kernel(problem)

    def allowed(rows) -> bool:
        return np.bincount(strata[list(rows)]).max() <= cap

    sets = [rows for size in range(1, budget + 1) for rows in combinations(range(n), size) if allowed(rows)]
    best = max(value(kernel_NN, problem.weight_N, list(rows)) for rows in sets)
    rows = Greedy(problem).take(budget).rows
    assert allowed(rows)
    assert value(kernel_NN, problem.weight_N, rows) >= 0.5 * best - 1e-6


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 40), seeds)
def test_gains_never_rise_and_add_up_to_the_objective(n, seed):
    problem = make_problem(np.random.default_rng(seed), n, neighbours=5)
    greedy = Greedy(problem)
    taken = greedy.take(n)
    assert all(later <= earlier for earlier, later in zip(taken.gains, taken.gains[1:], strict=False))
    assert greedy.objective() == pytest.approx(sum(taken.gains))
    assert greedy.objective() == pytest.approx(problem.weight_N.sum(), rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 40), st.integers(1, 39), seeds)
def test_a_smaller_budget_gets_a_prefix_of_a_larger_one(n, budget, seed):
    problem = make_problem(np.random.default_rng(seed), n, neighbours=4)
    budget = min(budget, n - 1)
    larger = Greedy(problem).take(budget + 1)
    assert Greedy(problem).take(budget).rows == larger.rows[:budget]
    stepwise = Greedy(problem)
    assert [row for _ in range(budget + 1) for row in stepwise.take(1).rows] == larger.rows


@settings(deadline=None, max_examples=40)
@given(st.integers(6, 30), seeds)
def test_asking_for_more_never_raises_a_gain(n, seed):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, n, neighbours=5)
    asked = rng.permutation(n)[: n // 2]

    def gains(covered) -> dict[int, float]:
        pickable = np.ones(n, dtype=bool)
        pickable[covered] = False
        weight_N = np.where(pickable, problem.weight_N, 0.0)
        weight_N[-1] = problem.weight_N.max()  # one fixed scale for both sets, so that fixed point compares exactly
        found = {}
        for row in np.flatnonzero(pickable):
            only = np.zeros(n, dtype=bool)
            only[row] = True
            run = Greedy(replace(problem, weight_N=weight_N, pickable_N=pickable, covered=np.sort(covered)))
            found[int(row)] = run.take(1, only).gains[0]
        return found

    few, many = gains(asked[:2]), gains(asked)
    assert all(many[row] <= few[row] for row in many)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 30), st.floats(1e-6, 1e6), seeds)
def test_scaling_all_weights_changes_no_pick_and_scales_the_gains(n, factor, seed):
    problem = make_problem(np.random.default_rng(seed), n, neighbours=5)
    plain, scaled = Greedy(problem).take(n), Greedy(replace(problem, weight_N=problem.weight_N * factor)).take(n)
    assert scaled.rows == plain.rows
    np.testing.assert_allclose(scaled.gains, np.array(plain.gains) * factor, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 25), st.integers(1, 5), seeds)
def test_unit_weights_make_it_maxherding(n, budget, seed):
    """MaxHerding: argmax over j of the mean over i of max(k_ij, max over S of k_i)."""
    problem = make_problem(np.random.default_rng(seed), n, weight_N=np.ones(n))
    kernel_NN = dense_kernel(problem)
    cover, picked = np.zeros(n), []
    for _ in range(min(budget, n)):
        means = np.round(np.maximum(kernel_NN, cover[:, None]).mean(axis=0), 8)
        means[picked] = -1.0
        best = np.flatnonzero(means == means.max())
        picked.append(int(best[np.argmin(problem.ties_N[best])]))
        cover = np.maximum(cover, kernel_NN[:, picked[-1]])
    assert Greedy(problem).take(budget).rows == picked


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 25), st.integers(1, 5), seeds)
def test_a_top_hat_kernel_makes_it_probcover(n, budget, seed):
    """ProbCover: each pick covers the ball around it; the ball with the most uncovered points wins."""
    rng = np.random.default_rng(seed)
    vectors = to_grid(rng.normal(size=(n, 3)), None)
    squared = distances(vectors, vectors)
    radius = int(np.median(squared))
    inside = squared <= radius
    np.fill_diagonal(inside, True)
    row, column = np.nonzero(inside & ~np.eye(n, dtype=bool))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))]).astype(np.int64)
    # A very wide kernel is 1 wherever there is an edge: a top hat.
    graph = Graph(starts, column.astype(np.int32), squared[row, column], np.full(n, radius))
    problem = make_problem(rng, n, vectors=vectors, graph=graph, sigma=1e6, weight_N=np.ones(n))
    open_N, picked = np.ones(n, dtype=bool), []
    for _ in range(min(budget, n)):
        gain = (inside & open_N[:, None]).sum(axis=0)
        gain[picked] = -1
        best = np.flatnonzero(gain == gain.max())
        picked.append(int(best[np.argmin(problem.ties_N[best])]))
        open_N &= ~inside[:, picked[-1]]
    assert Greedy(problem).take(budget).rows == picked


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), seeds)
def test_a_vanishing_kernel_takes_the_largest_weights(n, seed):
    problem = make_problem(np.random.default_rng(seed), n, sigma=1e-7)
    assert Greedy(problem).take(n).rows == np.argsort(-problem.weight_N).tolist()


def test_of_equal_gains_the_smaller_tie_number_wins():
    problem = make_problem(np.random.default_rng(0), 4, weight_N=np.zeros(4), ties_N=np.array([2, 0, 3, 1]))
    assert Greedy(replace(problem, graph=empty_graph(4))).take(4).rows == [1, 3, 0, 2]


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 30), st.floats(0.5, 0.999), seeds)
def test_near_duplicates_of_picked_and_asked_for_are_left_out_and_counted(n, similarity, seed):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, n)
    near = problem.vectors.units(similarity)
    problem = replace(problem, near_units=near, asked=problem.vectors.rows(np.array([0])))
    greedy = Greedy(problem)
    rows = greedy.take(n).rows
    squared = distances(problem.vectors, problem.vectors)
    assert all(squared[a, b] > near for a, b in combinations([0, *rows], 2) if a != b or a != 0)
    for row in set(range(n)) - set(rows):
        assert min(squared[row, other] for other in [0, *rows]) <= near
    assert greedy.left_out(NEAR_DUPLICATE) == n - len(rows)


def test_one_pick_per_burst_and_the_others_are_counted():
    bursts = np.array([0, 0, 0, 1, 1, -1, -1])
    greedy = Greedy(make_problem(np.random.default_rng(1), 7, bursts_N=bursts))
    rows = greedy.take(7).rows
    assert sorted(bursts[rows].tolist()) == [-1, -1, 0, 1]
    assert greedy.left_out(SAME_BURST) == 3


def test_caps_of_two_stratifications_hold_together_and_what_they_leave_is_counted():
    strata = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]])
    greedy = Greedy(make_problem(np.random.default_rng(2), 6, strata_SN=strata, caps_S=np.array([2, 2])))
    rows = greedy.take(6).rows
    assert np.bincount(strata[0, rows]).max() <= 2
    assert np.bincount(strata[1, rows]).max() <= 2
    assert greedy.left_out(OVER_CAP) == 6 - len(rows)


def test_what_is_covered_already_is_worth_nothing_more():
    vectors = to_grid(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), None)
    problem = make_problem(np.random.default_rng(0), 3, vectors=vectors, weight_N=np.array([0.0, 0.9, 0.5]))
    problem = replace(problem, covered=np.array([0]), pickable_N=np.array([False, True, True]))
    taken = Greedy(problem).take(2)
    assert taken.rows == [2, 1]
    assert taken.gains == pytest.approx([0.5 * (1 - np.exp(-2.0)), 0.0], abs=1e-3)
    assert taken.covers == [1, 0]


def test_the_compiled_loop_and_the_same_loop_in_plain_python_agree(monkeypatch):
    problem = make_problem(np.random.default_rng(5), 25, neighbours=4)
    compiled = Greedy(problem).take(25)
    monkeypatch.setattr("miner.coverage._compiled", lambda: _take)
    plain = Greedy(problem).take(25)
    assert (plain.rows, plain.gains, plain.covers) == (compiled.rows, compiled.gains, compiled.covers)


def test_a_sum_of_a_million_full_weights_stays_exact():
    """A star whose centre covers 10^6 equal leaves: the gain is that many times 2^40, within int64."""
    n = 1_000_001
    starts = np.concatenate([[0, n - 1], np.arange(n, 2 * n - 1)]).astype(np.int64)
    indices = np.concatenate([np.arange(1, n), np.zeros(n - 1)]).astype(np.int32)
    vectors = to_grid(np.ones((n, 1)), None)
    graph = Graph(starts, indices, np.zeros(2 * n - 2, dtype=np.int64), np.zeros(n, dtype=np.int64))
    only = np.zeros(n, dtype=bool)
    only[0] = True
    problem = make_problem(
        np.random.default_rng(0), n, vectors=vectors, graph=graph, weight_N=np.ones(n), pickable_N=only
    )
    taken = Greedy(problem).take(1)
    assert taken.gains == [float(n)]
    assert taken.covers == [n]


def test_a_sparse_graph_with_all_neighbours_equals_the_dense_kernel():
    problem = make_problem(np.random.default_rng(6), 30)
    np.testing.assert_allclose(sparse_kernel(problem) / 2**20, dense_kernel(problem), atol=2e-6, rtol=2e-3)
    assert neighbour_graph(problem.vectors, 29).starts[-1] == 30 * 29

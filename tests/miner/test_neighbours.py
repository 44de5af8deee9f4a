import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.neighbours import (
    distances,
    distinct,
    leaders,
    nearest_among,
    nearest_earlier,
    neighbour_graph,
    to_grid,
)


def pairs(graph) -> dict[tuple[int, int], int]:
    row = np.repeat(np.arange(len(graph)), np.diff(graph.starts))
    return {(int(i), int(j)): int(u) for i, j, u in zip(row, graph.indices, graph.units, strict=True)}


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(1, 45), st.integers(0, 10_000))
def test_the_graph_is_brute_force_made_symmetric(n, k, seed):
    vectors = to_grid(np.random.default_rng(seed).normal(size=(n, 5)), None)
    whole = vectors.values_ND.astype(np.int64) @ vectors.values_ND.astype(np.int64).T
    np.fill_diagonal(whole, -(1 << 40))
    kth = np.sort(whole, axis=1)[:, -min(k, n - 1)]
    expected = {
        (i, j) for i in range(n) for j in range(n) if i != j and (whole[i, j] >= kth[i] or whole[i, j] >= kth[j])
    }
    found = pairs(neighbour_graph(vectors, k))
    assert set(found) == expected
    squared = distances(vectors, vectors)
    assert all(found[i, j] == squared[i, j] == found[j, i] for i, j in found)


def test_scalar_products_on_the_grid_are_exact_whatever_the_block_or_order():
    rng = np.random.default_rng(0)
    vectors = to_grid(rng.normal(size=(300, 700)) + 3.0, None)
    shuffled = rng.permutation(700)
    whole = vectors.values_ND @ vectors.values_ND.T
    exact = vectors.values_ND.astype(np.int64) @ vectors.values_ND.astype(np.int64).T
    np.testing.assert_array_equal(whole, exact)
    np.testing.assert_array_equal(vectors.values_ND[7:8, shuffled] @ vectors.values_ND[:, shuffled].T, exact[7:8])


def test_the_grid_keeps_similarities_to_a_thousandth():
    x = np.random.default_rng(1).normal(size=(200, 512))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    vectors = to_grid(x, None)
    np.testing.assert_allclose(vectors.similarity(distances(vectors, vectors)), unit @ unit.T, atol=1e-3)


def test_equal_vectors_are_at_similarity_one_exactly():
    vectors = to_grid(np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]), None)
    assert vectors.similarity(distances(vectors, vectors))[0, 1] == 1.0


def test_a_constant_column_is_harmless_once_centred():
    x = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    with_constant = np.column_stack([x, np.full(50, 1e6, dtype=np.float32)])
    plain, padded = to_grid(x, x.mean(axis=0)), to_grid(with_constant, with_constant.mean(axis=0, dtype=np.float64))
    np.testing.assert_array_equal(padded.values_ND[:, 4], 0.0)
    np.testing.assert_allclose(
        plain.values_ND / plain.scale, padded.values_ND[:, :4] / padded.scale, atol=1 / plain.scale
    )


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_extreme_lengths_neither_overflow_nor_vanish(scale):
    vectors = to_grid(np.array([[3.0, 4.0], [0.0, 0.0]]) * scale, None)
    np.testing.assert_allclose(vectors.values_ND[0] / vectors.scale, [0.6, 0.8], atol=1e-3)
    assert distances(vectors, vectors)[0, 1] == pytest.approx(vectors.scale**2, rel=1e-3)


def test_fewer_rows_than_neighbours_and_no_rows_at_all_make_graphs():
    three = neighbour_graph(to_grid(np.eye(3), None), 32)
    assert set(pairs(three)) == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}
    assert len(neighbour_graph(to_grid(np.eye(1), None), 32)) == 1
    assert len(neighbour_graph(to_grid(np.zeros((0, 3)), None), 32)) == 0


def test_distinct_takes_equal_rows_once_in_order_of_appearance():
    first, class_of = distinct(np.array([[2.0], [1.0], [2.0], [0.0], [-0.0]]))
    assert first.tolist() == [0, 1, 3]
    assert class_of.tolist() == [0, 1, 0, 2, 2]


def test_a_slow_pan_is_not_chained_into_one_group():
    angle = np.deg2rad(np.arange(0, 90, 5.0))  # neighbours at similarity 0.996, the ends at 0.09
    vectors = to_grid(np.column_stack([np.cos(angle), np.sin(angle)]), None)
    near = vectors.units(0.98)  # 11.5 degrees
    leader = leaders(neighbour_graph(vectors, 17), near, np.arange(18))
    assert leader.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12, 12, 12, 15, 15, 15]


@given(st.integers(1, 30), st.integers(2, 30), st.integers(0, 1000))
def test_nearest_among_and_earlier_agree_with_a_full_matrix(n, m, seed):
    rng = np.random.default_rng(seed)
    left, right = to_grid(rng.normal(size=(n, 3)), None), to_grid(rng.normal(size=(m, 3)), None)
    units, position = nearest_among(left, right)
    np.testing.assert_array_equal(position, distances(left, right).argmin(axis=1))
    np.testing.assert_array_equal(units, distances(left, right).min(axis=1))
    own = distances(right, right)
    counts = rng.random(m) < 0.7
    units, position = nearest_earlier(right, counts)
    for row in range(m):
        before = np.flatnonzero(counts[:row])
        assert position[row] == (before[own[row, before].argmin()] if len(before) else -1)
        assert units[row] == (own[row, before].min() if len(before) else -1)
    np.fill_diagonal(own, 1 << 60)
    np.testing.assert_array_equal(nearest_among(right, right, same=True)[0], own.min(axis=1))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000))
def test_of_equally_similar_rows_the_earlier_ones_are_neighbours(n, k, levels, seed):
    coarse = np.random.default_rng(seed).integers(-levels, levels + 1, size=(n, 3))
    vectors = to_grid(coarse.astype(np.float64), None)
    product = vectors.values_ND.astype(np.int64) @ vectors.values_ND.astype(np.int64).T
    np.fill_diagonal(product, -(1 << 40))
    chosen = np.argsort(-product, axis=1, kind="stable")[:, : min(k, n - 1)]
    expected = {(i, int(j)) for i in range(n) for j in chosen[i]}
    assert set(pairs(neighbour_graph(vectors, k))) == expected | {(j, i) for i, j in expected}


def test_thousands_of_equally_similar_rows_make_a_graph_in_bounded_time():
    graph = neighbour_graph(to_grid(np.ones((5000, 3)), None), 8)
    assert np.diff(graph.starts).min() >= 8
    assert set(graph.units.tolist()) == {0}

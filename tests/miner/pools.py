"""Pools for the miner's tests."""

from typing import Any

import numpy as np

from hardloop.core.records import Pool, PoolState
from miner.coverage import Problem
from miner.neighbours import GridVectors, neighbour_graph, to_grid
from miner.policy import MiningPolicy

BARE = MiningPolicy(audit_share=0.0, exploration_share=0.0)


def clustered(rng: np.random.Generator, n: int, dimensions: int = 8, clusters: int = 5) -> np.ndarray:
    centers = rng.normal(size=(clusters, dimensions))
    return (centers[rng.integers(clusters, size=n)] + 0.4 * rng.normal(size=(n, dimensions))).astype(np.float32)


def make_pool(
    n: int = 60, seed: int = 0, classes: int = 3, *, labelled: int = 0, audit: int = 0, **changes: Any
) -> Pool:
    """n samples in clusters with random probabilities; the first `labelled` are labelled, the next `audit` held out."""
    rng = np.random.default_rng(seed)
    state_N = np.zeros(n, dtype=np.int8)
    state_N[:labelled] = PoolState.LABELLED
    state_N[labelled : labelled + audit] = PoolState.AUDIT
    values: dict[str, Any] = {
        "ids": tuple(f"s{row:04d}" for row in rng.permutation(n)),
        "embeddings_ND": clustered(rng, n),
        "state_N": state_N,
        "labels_N": np.where(state_N == PoolState.LABELLED, rng.integers(classes, size=n), -1).astype(np.int64),
        "n_classes": classes,
        "probs_NC": rng.dirichlet(np.ones(classes), size=n),
    }
    return Pool(**(values | changes))


def make_problem(rng: np.random.Generator, n: int, *, neighbours: int | None = None, **changes: Any) -> Problem:
    """A coverage problem without limits on random vectors and weights; all pairs joined without `neighbours`."""
    vectors = changes.pop("vectors", None) or to_grid(clustered(rng, n, 3), None)
    graph = changes.pop("graph", None) or neighbour_graph(vectors, n - 1 if neighbours is None else neighbours)
    values: dict[str, Any] = {
        "graph": graph,
        "sigma": 1.0,
        "weight_N": rng.uniform(0.05, 1.0, size=n),
        "pickable_N": np.ones(n, dtype=bool),
        "covered": np.zeros(0, dtype=np.int64),
        "asked": GridVectors(np.zeros((0, vectors.width), np.float32), np.zeros(0, np.int64), vectors.scale),
        "ties_N": rng.permutation(n).astype(np.int64),
        "count_N": np.ones(n, dtype=np.int64),
        "vectors": vectors,
        "near_units": -1,
        "bursts_N": np.full(n, -1, dtype=np.int64),
        "strata_SN": np.full((1, n), -1, dtype=np.int64),
        "caps_S": np.array([-1], dtype=np.int64),
    }
    return Problem(**(values | changes))


def dense_kernel(problem: Problem) -> np.ndarray:
    """k(i, j) as a full matrix, computed in floating point from the vectors, without graph or fixed point."""
    unit = problem.vectors.values_ND.astype(np.float64) / problem.vectors.scale
    squared = ((unit[:, None, :] - unit[None, :, :]) ** 2).sum(axis=2)
    return np.exp(-squared / problem.sigma**2)


def value(kernel_NN: np.ndarray, weight_N: np.ndarray, rows: list[int]) -> float:
    """F by its definition."""
    return float((weight_N * kernel_NN[:, rows].max(axis=1)).sum()) if rows else 0.0

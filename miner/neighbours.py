"""Who resembles whom: unit vectors on an integer grid, their exact nearest neighbours, the graph those make.

The grid is what makes every result exact. Unit vectors are rounded to multiples of 1/scale with scale^2 < 2^24, so
every partial sum of a scalar product is an integer that float32 holds without rounding: matrix products come out the
same in any order of summation, on any number of threads, with any BLAS. It costs about 1e-4 of similarity.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardloop.core.records import Floats

_EXACT = 4096  # sqrt(2^24): float32 holds every integer up to 2^24
_NOISE = 1e-6  # relative; float32 resolves 6e-8
_BLOCK_ROWS = 4096  # rows searched at once


@dataclass(frozen=True, slots=True, eq=False)
class GridVectors:
    """N unit vectors on the grid. values_ND holds integers as float32; norms_N are their squared lengths.

    Squared distances are kept as integers in grid units: distance^2 = units / scale^2.
    """

    values_ND: NDArray[np.float32]
    norms_N: NDArray[np.int64]
    scale: int

    def __len__(self) -> int:
        return len(self.norms_N)

    @property
    def width(self) -> int:
        """D."""
        return int(self.values_ND.shape[1])

    def rows(self, which: NDArray[np.int64]) -> "GridVectors":
        """The same grid with the chosen rows only, in the order given."""
        return GridVectors(np.ascontiguousarray(self.values_ND[which]), self.norms_N[which], self.scale)

    def units(self, similarity: float) -> int:
        """The largest squared distance, in grid units, at which two unit vectors are still that similar."""
        return int(np.floor(2.0 * (1.0 - similarity) * self.scale**2))

    def similarity(self, units: NDArray[np.int64]) -> Floats:
        """Cosine similarity in [-1, 1] from squared distances in grid units; 1 exactly for equal vectors."""
        return np.clip(1.0 - units / (2.0 * self.scale**2), -1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A symmetric graph in compressed rows: i's neighbours are indices[starts[i]:starts[i + 1]], in ascending order.

    units: squared distance to each neighbour, in grid units. farthest_N: that to the K-th nearest, -1 where a node has
    no neighbour. No node is its own neighbour.
    """

    starts: NDArray[np.int64]
    indices: NDArray[np.int32]
    units: NDArray[np.int64]
    farthest_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.farthest_N)


def to_grid(embeddings_ND: Floats, center_D: Floats | None) -> GridVectors:
    """Embeddings as unit vectors on the grid.

    center_D: subtracted before normalising; None for nothing. A row that is (then) zero stays zero, at distance 1 from
    every unit vector.
    """
    x_ND = np.asarray(embeddings_ND, dtype=np.float64)
    if center_D is not None:
        moved_ND = x_ND - center_D
        # What is left of a constant column is rounding noise; scaled to unit length it would look like a signal.
        moved_ND[np.abs(moved_ND) <= _NOISE * np.abs(x_ND)] = 0.0
        x_ND = moved_ND
    largest_N1 = np.abs(x_ND).max(axis=1, keepdims=True, initial=0.0)
    x_ND = np.divide(x_ND, largest_N1, out=np.zeros_like(x_ND), where=largest_N1 > 0.0)  # squares must not overflow
    length_N1 = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND))[:, None]
    scale = _EXACT - 1 - int(np.ceil(np.sqrt(x_ND.shape[1]) / 2.0))  # rounding may add half a unit per dimension
    unit_ND = np.divide(x_ND, length_N1, out=np.zeros_like(x_ND), where=length_N1 > 0.0)
    values_ND = np.rint(unit_ND * scale).astype(np.float32)
    norms_N = np.einsum("nd,nd->n", values_ND, values_ND, dtype=np.float64).astype(np.int64)
    return GridVectors(values_ND, norms_N, scale)


def distances(left: GridVectors, right: GridVectors) -> NDArray[np.int64]:
    """Squared distances (len(left), len(right)) in grid units; exact."""
    product = (left.values_ND @ right.values_ND.T).astype(np.int64)
    return left.norms_N[:, None] + right.norms_N[None, :] - 2 * product


def nearest_among(
    left: GridVectors, right: GridVectors, *, same: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each left row the nearest right row: (squared distance in grid units, its position), ties to the first.

    same: left and right are the same rows, and none is its own nearest. right must then hold 2 rows, else 1, or more.
    """
    units_N = np.empty(len(left), dtype=np.int64)
    nearest_N = np.empty(len(left), dtype=np.int64)
    block = max(1, 4_000_000 // len(right))
    for start in range(0, len(left), block):
        stop = min(start + block, len(left))
        between = distances(left.rows(np.arange(start, stop)), right)
        if same:
            between[np.arange(stop - start), np.arange(start, stop)] = np.iinfo(np.int64).max
        nearest_N[start:stop] = between.argmin(axis=1)
        units_N[start:stop] = between[np.arange(stop - start), nearest_N[start:stop]]
    return units_N, nearest_N


def nearest_earlier(vectors: GridVectors, counts_N: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the nearest row before it of those that count: (squared distance in grid units, position).

    (-1, -1) where there is none.
    """
    n = len(vectors)
    units_N, nearest_N = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64)
    block = max(1, 4_000_000 // max(1, n))
    for start in range(0, n, block):
        stop = min(start + block, n)
        between = distances(vectors.rows(np.arange(start, stop)), vectors.rows(np.arange(stop)))
        later = np.arange(stop)[None, :] >= np.arange(start, stop)[:, None]
        between[later | ~counts_N[None, :stop]] = np.iinfo(np.int64).max
        best = between.argmin(axis=1)
        least = between[np.arange(stop - start), best]
        found = least < np.iinfo(np.int64).max
        nearest_N[start:stop][found], units_N[start:stop][found] = best[found], least[found]
    return units_N, nearest_N


def distinct(embeddings_ND: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows equal to the last bit, taken once: (first row of each class in ascending order, class of every row)."""
    x_ND = np.ascontiguousarray(embeddings_ND, dtype=np.float32) + np.float32(0.0)  # -0.0 becomes 0.0
    if x_ND.shape[1] == 0:
        return np.zeros(min(1, len(x_ND)), dtype=np.int64), np.zeros(len(x_ND), dtype=np.int64)
    keys = x_ND.view(np.dtype((np.void, x_ND.shape[1] * 4))).ravel()
    _, first, class_N = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return first[order].astype(np.int64), rank[class_N]


def leaders(graph: Graph, near_units: int, ties_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each node the node that stands for it: a near-duplicate of it in the graph, or itself.

    Nodes are visited by ascending tie; one that nobody stands for yet becomes a leader and takes its unclaimed
    near-duplicates. Unlike connected components this cannot chain a slow pan of a camera into one group.
    """
    leader_N = np.arange(len(graph), dtype=np.int64)
    near_E = graph.units <= near_units
    row_E = np.repeat(np.arange(len(graph)), np.diff(graph.starts))
    involved = np.unique(row_E[near_E])
    claimed_N = np.zeros(len(graph), dtype=np.bool_)
    for node in involved[np.argsort(ties_N[involved], kind="stable")]:
        if claimed_N[node]:
            continue
        span = slice(int(graph.starts[node]), int(graph.starts[node + 1]))
        members = graph.indices[span][near_E[span]]
        members = members[~claimed_N[members]]
        leader_N[members] = node
        claimed_N[members] = True
        claimed_N[node] = True
    return leader_N


def empty_graph(nodes: int) -> Graph:
    """Nodes without any neighbour."""
    return Graph(
        np.zeros(nodes + 1, dtype=np.int64),
        np.zeros(0, dtype=np.int32),
        np.zeros(0, dtype=np.int64),
        np.full(nodes, -1, dtype=np.int64),
    )


def neighbour_graph(vectors: GridVectors, neighbours: int) -> Graph:
    """The graph that joins i and j when either is among the other's `neighbours` nearest by cosine; exact.

    Costs N^2 * D multiplications and memory for N * neighbours edges, never for N^2. With neighbours >= N - 1 every
    pair is joined. Of equally similar rows the earlier ones are taken: hand rows in by ascending id.
    """
    n = len(vectors)
    k = min(neighbours, n - 1)
    if k < 1:
        return empty_graph(n)
    nearest_NK, units_NK = _nearest(vectors, k)
    row_E = np.repeat(np.arange(n, dtype=np.int64), k)
    column_E = nearest_NK.ravel()
    keys = np.concatenate([row_E * n + column_E, column_E * n + row_E])
    keys, first = np.unique(keys, return_index=True)
    units = np.concatenate([units_NK.ravel(), units_NK.ravel()])[first]
    row, column = keys // n, keys % n
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=n), out=starts[1:])
    return Graph(starts, column.astype(np.int32), units, units_NK.max(axis=1))


def _nearest(vectors: GridVectors, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N, k) rows of the k most similar others of each row, and their squared distances in grid units.

    FAISS's flat index: on the grid its products are exact. Which of equally similar rows it returns is its own affair,
    so one more than needed is asked for, and where the last two tie the row is decided again by position.
    """
    n = len(vectors)
    index = _flat_index(vectors)
    found_NK, units_NK = np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.int64)
    for start in range(0, n, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, n)
        rows_B = np.arange(start, stop)
        block = vectors.rows(rows_B)
        product_BK, column_BK = index.search(block.values_ND, min(k + 2, n))  # itself, and one to see ties by
        own_BK = column_BK == rows_B[:, None]
        own_BK[~own_BK.any(axis=1), -1] = True  # crowded out by its equals: any one of them goes
        product_BK = product_BK[~own_BK].reshape(len(rows_B), -1)
        column_BK = column_BK[~own_BK].reshape(len(rows_B), -1)
        if product_BK.shape[1] > k:
            for row in np.flatnonzero(product_BK[:, k] == product_BK[:, k - 1]):
                product_N = block.values_ND[row] @ vectors.values_ND.T
                product_N[start + row] = -np.inf  # no row is its own neighbour
                column_BK[row, :k] = np.argsort(-product_N, kind="stable")[:k]
                product_BK[row, :k] = product_N[column_BK[row, :k]]
        found_NK[start:stop] = column_BK[:, :k]
        squares_BK = block.norms_N[:, None] + vectors.norms_N[column_BK[:, :k]]
        units_NK[start:stop] = squares_BK - 2 * product_BK[:, :k].astype(np.int64)
    return found_NK, units_NK


def _flat_index(vectors: GridVectors) -> Any:
    import faiss  # a second to import: not before there is a graph to make

    index = faiss.IndexFlatIP(vectors.width)
    index.add(vectors.values_ND)
    return index

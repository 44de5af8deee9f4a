"""Two model versions side by side on the samples both were evaluated on. Pure."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardloop.core import evaluations
from hardloop.core.errors import BadShape
from hardloop.core.records import Evaluation, Interval
from registry.intervals import paired_difference, wilson


@dataclass(frozen=True, slots=True)
class _How:
    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class ClassDifference:
    """One class of one slice: how the share of its samples named right (recall) moved, with its paired interval."""

    label: str
    n: int
    before: Interval
    after: Interval
    difference: Interval


@dataclass(frozen=True, slots=True, eq=False)
class SliceComparison:
    """One slice. moved_CC: confusion of the new version minus that of the old one, rows true classes.

    better, worse: ids of samples only the new, only the old version has right, the most surely so first.
    """

    name: str
    n: int
    before: Interval
    after: Interval
    difference: Interval
    classes: tuple[ClassDifference, ...]
    moved_CC: NDArray[np.int64]
    better: tuple[str, ...]
    worse: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two versions compared. only_before, only_after: samples just one of them was evaluated on, not compared."""

    slices: tuple[SliceComparison, ...]
    only_before: int
    only_after: int


def compare(
    before: Evaluation,
    after: Evaluation,
    labels: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """How a version differs from an earlier one, by slice and class, on the samples common to both evaluations.

    A sample that changed its slice counts in the slice of `after`, and one whose agreed label changed is judged by the
    label in `after`. Raises BadShape where the classes differ.
    """
    for evaluation in (before, after):
        evaluations.check(evaluation)
        if len(evaluation.ids) and evaluation.probs_NC.shape[1] != len(labels):
            raise BadShape(f"an evaluation has {evaluation.probs_NC.shape[1]} classes, the models {len(labels)} labels")
    rows = {sample: row for row, sample in enumerate(before.ids)}
    pairs = [(rows[sample], row) for row, sample in enumerate(after.ids) if sample in rows]
    compared = [] if not pairs else _slices(before, after, pairs, labels, _How(confidence, resamples, seed))
    return Comparison(tuple(compared), len(before.ids) - len(pairs), len(after.ids) - len(pairs))


def _slices(
    before: Evaluation,
    after: Evaluation,
    pairs: list[tuple[int, int]],
    labels: Sequence[str],
    how: _How,
) -> list[SliceComparison]:
    before_N, after_N = np.array(pairs, dtype=np.int64).T
    slice_N = np.array(after.slices)[after_N]
    return [
        _slice(name, before, after, before_N[slice_N == name], after_N[slice_N == name], labels, how)
        for name in evaluations.SLICES
        if (slice_N == name).any()
    ]


def _slice(
    name: str,
    before: Evaluation,
    after: Evaluation,
    before_N: NDArray[np.int64],
    after_N: NDArray[np.int64],
    labels: Sequence[str],
    how: _How,
) -> SliceComparison:
    truth_N = after.truth_N[after_N]
    old_NC, new_NC = before.probs_NC[before_N], after.probs_NC[after_N]
    old_N, new_N = old_NC.argmax(axis=1), new_NC.argmax(axis=1)
    was_N, is_N = old_N == truth_N, new_N == truth_N
    row_N = np.arange(len(truth_N))
    gain_N = new_NC[row_N, truth_N].astype(np.float64) - old_NC[row_N, truth_N]
    ids = [after.ids[row] for row in after_N]
    classes = []
    for index, label in enumerate(labels):
        of_N = truth_N == index
        if of_N.any():
            n = int(of_N.sum())
            was, now = _accuracy(was_N[of_N], how), _accuracy(is_N[of_N], how)
            classes.append(
                ClassDifference(label, n, was, now, _paired(was_N[of_N], is_N[of_N], f"{name}/{label}", how))
            )
    moved_CC = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(moved_CC, (truth_N, new_N), 1)
    np.subtract.at(moved_CC, (truth_N, old_N), 1)
    return SliceComparison(
        name,
        len(ids),
        _accuracy(was_N, how),
        _accuracy(is_N, how),
        _paired(was_N, is_N, name, how),
        tuple(classes),
        moved_CC,
        _ranked(ids, gain_N, is_N & ~was_N),
        _ranked(ids, -gain_N, was_N & ~is_N),
    )


def _accuracy(right_N: NDArray[np.bool_], how: _How) -> Interval:
    return wilson(int(right_N.sum()), len(right_N), how.confidence)


def _paired(was_N: NDArray[np.bool_], is_N: NDArray[np.bool_], stream: str, how: _How) -> Interval:
    wins, losses = int((is_N & ~was_N).sum()), int((was_N & ~is_N).sum())
    return paired_difference(
        wins, losses, len(was_N), how.confidence, how.resamples, zlib.crc32(f"{how.seed}:{stream}".encode())
    )


def _ranked(ids: list[str], gain_N: NDArray[np.float64], which_N: NDArray[np.bool_]) -> tuple[str, ...]:
    """Ids of the chosen rows, the largest gain first, ties by id so that the order of rows cannot matter."""
    chosen = sorted(np.flatnonzero(which_N).tolist(), key=lambda row: (-gain_N[row], ids[row]))
    return tuple(ids[row] for row in chosen)

"""What comes in is looked at before anything is computed; every complaint names the sample."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardloop.core.errors import BadInput, BadShape
from hardloop.core.records import Floats, Pool, PoolState

SUM_TOLERANCE = 1e-3  # float16 probabilities of a thousand classes are off by that much


def check_pool(pool: Pool) -> None:
    """Raises BadShape or BadInput naming the first sample that does not fit."""
    n = len(pool.ids)
    check_ids(pool.ids)
    check_embeddings(pool.embeddings_ND, pool.ids)
    if pool.n_classes < 1:
        raise BadShape(f"the pool says {pool.n_classes} classes: at least 1 is needed")
    columns: list[tuple[str, Sequence[object] | np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None]] = [
        ("state_N", pool.state_N),
        ("labels_N", pool.labels_N),
        ("groups", pool.groups),
        ("bursts", pool.bursts),
        ("sources", pool.sources),
        ("audit_asked_N", pool.audit_asked_N),
        ("quality_N", pool.quality_N),
    ]
    for name, column in columns:
        if column is not None and len(column) != n:
            raise BadShape(f"{name} has {len(column)} entries for {n} samples: one per sample is needed")
    _refuse(~np.isin(pool.state_N, list(PoolState)), pool.ids, "state is none of PoolState's")
    _refuse(
        (pool.labels_N < -1) | (pool.labels_N >= pool.n_classes), pool.ids, f"label is not in -1..{pool.n_classes - 1}"
    )
    if pool.quality_N is not None:
        _refuse(~((pool.quality_N >= 0.0) & (pool.quality_N <= 1.0)), pool.ids, "quality is not in [0, 1]")
    if pool.probs_NC is not None:
        check_probabilities(pool.probs_NC, pool.ids, pool.n_classes, "probabilities", nan_rows=True)
    if pool.member_probs_MNC is not None:
        if pool.member_probs_MNC.ndim != 3:
            raise BadShape(
                f"member_probs_MNC has shape {pool.member_probs_MNC.shape}: expected (members, samples, classes)"
            )
        if pool.probs_NC is None and len(pool.member_probs_MNC):
            raise BadInput("the pool has committee members but no probs_NC: the serving model is the first member")
        for number, probs_NC in enumerate(pool.member_probs_MNC):
            check_probabilities(probs_NC, pool.ids, pool.n_classes, f"member {number}'s probabilities", nan_rows=True)


def check_ids(ids: Sequence[str]) -> None:
    """Raises BadInput for an id that comes twice."""
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, int] = {}
    for row, sample in enumerate(ids):
        if sample in seen:
            raise BadInput(f"id {sample!r} comes twice, in rows {seen[sample]} and {row}: ids must be distinct")
        seen[sample] = row


def check_embeddings(embeddings_ND: Floats, ids: Sequence[str]) -> None:
    """Raises BadShape for other than one row per id, BadInput for a value that is not finite."""
    if embeddings_ND.ndim != 2 or len(embeddings_ND) != len(ids) or embeddings_ND.shape[1] < 1:
        raise BadShape(f"embeddings have shape {embeddings_ND.shape}: expected ({len(ids)}, dimensions)")
    _refuse(~np.isfinite(embeddings_ND).all(axis=1), ids, "embedding holds a value that is not finite")


def check_probabilities(probs_NC: Floats, ids: Sequence[str], n_classes: int, what: str, *, nan_rows: bool) -> None:
    """Raises BadShape for other axes, BadInput for a row that is negative, not finite, or does not sum to 1.

    nan_rows: a row that is NaN throughout is allowed and means "no prediction yet".
    """
    if probs_NC.ndim != 2 or probs_NC.shape != (len(ids), n_classes) or n_classes < 2:
        raise BadShape(f"{what} have shape {probs_NC.shape}: expected ({len(ids)}, {max(n_classes, 2)})")
    absent_N = np.isnan(probs_NC).all(axis=1) & nan_rows
    _refuse(~np.isfinite(probs_NC).all(axis=1) & ~absent_N, ids, f"{what} hold a value that is not finite")
    _refuse((np.nan_to_num(probs_NC) < -SUM_TOLERANCE).any(axis=1), ids, f"{what} hold a negative value")
    sums_N = probs_NC.astype(np.float64).sum(axis=1)
    wrong_N = (np.abs(sums_N - 1.0) > SUM_TOLERANCE) & ~absent_N
    row = int(np.argmax(wrong_N)) if wrong_N.any() else 0
    _refuse(wrong_N, ids, f"{what} sum to {sums_N[row] if len(ids) else 1.0:.6g}, not to 1")


def _refuse(wrong_N: NDArray[np.bool_] | np.bool, ids: Sequence[str], complaint: str) -> None:
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        more = int(wrong_N.sum()) - 1
        raise BadInput(f"row {row} ({ids[row]}): {complaint}" + (f"; {more} more rows likewise" if more else ""))

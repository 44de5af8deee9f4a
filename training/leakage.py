"""What may stand in the training split, and how it is folded: the rules that keep every measured number honest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hardloop.core import ids
from hardloop.core.errors import Leakage
from hardloop.core.fingerprint import components, first_matches
from hardloop.core.records import DatasetRow, Split

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Excluded:
    """A labelled sample left out of the training split, and the held-out sample that is the reason."""

    sample_id: str
    held_out_id: str
    reason: str


def fold_of(group_id: str) -> int:
    """The fold, 0 to FOLDS - 1, of a group: drawn by hashing its id alone, so it never moves as data grows."""
    return int(ids.uniform("fold", group_id) * FOLDS)


@dataclass(frozen=True, slots=True)
class Reserved:
    """A held-out sample that has no label yet, so no row: it may get one, and must not have been trained on by then."""

    sample_id: str
    group_id: str
    fingerprint: str


def assemble(
    rows: Iterable[DatasetRow], reserved: Iterable[Reserved] = ()
) -> tuple[tuple[DatasetRow, ...], tuple[Excluded, ...]]:
    """The rows of a dataset version, folds assigned, and the training rows that had to be left out.

    A TRAIN row is left out when its group, or a near-duplicate of it, is in HOLDOUT or LEGACY, or among the reserved
    samples: a held-out sample is worth more than a training one, since it alone can say how good the model is.
    Near-duplicates inside TRAIN share a fold: the groups they tie together take the fold of the smallest group id among
    them. The fold of a group that is tied to no other depends on its id alone. Folds given with the rows are ignored.
    Both results are in order of sample id, whatever the order of `rows`.
    """
    ordered = sorted(rows, key=lambda row: row.sample_id)
    train, held_out = _by_split(ordered)
    unlabelled = sorted(reserved, key=lambda sample: sample.sample_id)
    found = _leaks(train, [*map(_kept_out, held_out), *((sample, "the audit holdout") for sample in unlabelled)])
    kept = [row for row in train if row.sample_id not in found]
    folds = _folds(kept)
    result = [replace(row, fold=folds[row.group_id]) for row in kept] + [replace(row, fold=-1) for row in held_out]
    excluded = tuple(found[row.sample_id] for row in train if row.sample_id in found)
    return tuple(sorted(result, key=lambda row: row.sample_id)), excluded


def check_leakage(rows: Sequence[DatasetRow]) -> None:
    """Raises Leakage naming the pair when TRAIN holds a held-out group or a near-duplicate of a held-out sample."""
    train, held_out = _by_split(sorted(rows, key=lambda row: row.sample_id))
    found = _leaks(train, [_kept_out(row) for row in held_out])
    if found:
        first = found[min(found)]
        more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
        raise Leakage(
            f"training sample {first.sample_id} and held-out sample {first.held_out_id}: {first.reason}{more}; "
            "build the dataset version with assemble(), which leaves such samples out"
        )


def _by_split(rows: Sequence[DatasetRow]) -> tuple[list[DatasetRow], list[DatasetRow]]:
    train = [row for row in rows if row.split is Split.TRAIN]
    return train, [row for row in rows if row.split is not Split.TRAIN]


def _kept_out(row: DatasetRow) -> tuple[Reserved, str]:
    return Reserved(row.sample_id, row.group_id, row.fingerprint), f"the {row.split} split"


def _leaks(train: Sequence[DatasetRow], held_out: Sequence[tuple[Reserved, str]]) -> dict[str, Excluded]:
    """The first reason against each training row that has one, by sample id. held_out: samples and who holds them."""
    found: dict[str, Excluded] = {}
    group_holders = {sample.group_id: (sample, holder) for sample, holder in reversed(held_out)}
    for row in train:
        if row.group_id in group_holders:
            sample, holder = group_holders[row.group_id]
            reason = f"both are of group {row.group_id!r}, which {holder} holds"
            found[row.sample_id] = Excluded(row.sample_id, sample.sample_id, reason)
    fingerprints = [sample.fingerprint for sample, _ in held_out]
    for i, j in first_matches([row.fingerprint for row in train], fingerprints).items():
        sample, holder = held_out[j]
        reason = f"near-duplicate images, one of them in {holder}"
        found.setdefault(train[i].sample_id, Excluded(train[i].sample_id, sample.sample_id, reason))
    return found


def _folds(train: Sequence[DatasetRow]) -> dict[str, int]:
    """The fold of each group, after tying together the groups that near-duplicates connect (union-find)."""
    parent: dict[str, str] = {row.group_id: row.group_id for row in train}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for row, first in zip(train, components([row.fingerprint for row in train]), strict=True):
        low, high = sorted((root(row.group_id), root(train[first].group_id)))
        parent[high] = low  # the smallest id stays the root, so the outcome does not depend on the order of pairs
    return {group: fold_of(root(group)) for group in parent}

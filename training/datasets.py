"""Immutable dataset versions: labelled samples with their lineage, one Parquet manifest each, named by content.

Format: `docs/model-files.md`, section "Dataset manifests".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from hardloop.core import ids, parquet
from hardloop.core.errors import BadInput
from hardloop.core.fingerprint import SIZE
from hardloop.core.ports import BlobStore
from hardloop.core.records import DatasetRow, Split
from training.leakage import FOLDS

VERSION = 1
MAX_MANIFEST_BYTES = 2 * 1024**3
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{2 * SIZE}}}")
_META = b"hardloop.dataset"

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.int8(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("selection_id", pa.string()),
        pa.field("annotation_ids", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset version's content: its rows in order of sample id, and the loop's label schema in class order."""

    loop: str
    labels: tuple[str, ...]
    rows: tuple[DatasetRow, ...]
    digest: str

    @property
    def key(self) -> str:
        """Where the manifest lies in the store."""
        return key_of(self.loop, self.digest)

    @property
    def counts(self) -> dict[str, int]:
        """Rows per split."""
        return {split.value: sum(row.split is split for row in self.rows) for split in Split}


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed from one dataset version to another. Sample ids, ascending; relabelled: id, old label, new label.

    moved: the split changed, the label did not.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    relabelled: tuple[tuple[str, str, str], ...]
    moved: tuple[str, ...]


def key_of(loop: str, digest: str) -> str:
    """Where the manifest of a loop's dataset version lies in the store."""
    return f"datasets/{loop}/{digest}.parquet"


def build(loop: str, labels: Sequence[str], rows: Sequence[DatasetRow]) -> Dataset:
    """A validated dataset version. Equal content has an equal digest, whatever the order of rows and annotations.

    rows: as `leakage.assemble` returns them. Raises BadInput naming the row that contradicts the schema or another.
    """
    names = tuple(labels)
    ids.loop_name(loop)
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise BadInput(f"dataset of loop {loop!r}: labels {names!r} must be at least two, distinct and not empty")
    ordered = tuple(sorted(rows, key=lambda row: row.sample_id))
    for number, row in enumerate(ordered):
        _check_row(row, names, f"dataset of loop {loop!r}, row {number} (sample {row.sample_id!r})")
    _check_together(ordered, loop)
    return Dataset(loop, names, ordered, _digest(loop, names, ordered))


def write(dataset: Dataset) -> bytes:
    """The Parquet manifest: one row per sample, ascending sample ids."""
    meta = {"version": VERSION, "loop": dataset.loop, "labels": list(dataset.labels), "digest": dataset.digest}
    schema = SCHEMA.with_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    rows = [{**asdict(row), "annotation_ids": sorted(row.annotation_ids)} for row in dataset.rows]
    return parquet.write(pa.Table.from_pylist(rows, schema=schema))


def read(data: bytes, name: str = "dataset manifest") -> Dataset:
    """The dataset version of a manifest. Raises BadInput naming `name`, and the row, for anything else."""
    try:
        table = parquet.read(data)
    except parquet.ERRORS as error:
        raise BadInput(f"{name} is not a Parquet file ({error}): it is damaged or not a dataset manifest") from None
    meta = _meta(table.schema.metadata or {}, name)
    if not table.schema.remove_metadata().equals(SCHEMA):
        raise BadInput(f"{name} claims dataset schema version {VERSION} but its columns differ")
    rows = []
    for number, fields in enumerate(table.to_pylist()):
        try:
            split = Split(fields["split"])
        except ValueError:
            known = ", ".join(Split)
            raise BadInput(f"{name}, row {number}: split {fields['split']!r} is none of {known}") from None
        rows.append(DatasetRow(**{**fields, "split": split, "annotation_ids": tuple(fields["annotation_ids"])}))
    try:
        dataset = build(meta["loop"], meta["labels"], rows)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if dataset.digest != meta["digest"]:
        raise BadInput(f"{name} does not have the digest it gives ({meta['digest'][:16]}…): it was altered")
    return dataset


def store(blobs: BlobStore, dataset: Dataset) -> str:
    """Write the manifest unless it is there, and return its key. Storing the same version twice changes nothing."""
    blobs.put_new(dataset.key, write(dataset), "application/vnd.apache.parquet")
    return dataset.key


def load(blobs: BlobStore, key: str) -> Dataset:
    """The dataset version under a key. Raises BlobMissing, and BadInput as `read` does."""
    return read(blobs.get(key, max_bytes=MAX_MANIFEST_BYTES), key)


def diff(old: Dataset, new: Dataset) -> Diff:
    """What a person would say changed from `old` to `new`."""
    before, after = ({row.sample_id: row for row in dataset.rows} for dataset in (old, new))
    both = sorted(before.keys() & after.keys())
    relabelled = tuple((i, before[i].label, after[i].label) for i in both if before[i].label != after[i].label)
    moved = tuple(i for i in both if before[i].label == after[i].label and before[i].split != after[i].split)
    return Diff(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        relabelled=relabelled,
        moved=moved,
    )


def _digest(loop: str, labels: tuple[str, ...], rows: Sequence[DatasetRow]) -> str:
    content = [{**asdict(row), "annotation_ids": sorted(row.annotation_ids)} for row in rows]
    return ids.digest({"version": VERSION, "loop": loop, "labels": labels, "rows": content})


def _check_row(row: DatasetRow, labels: tuple[str, ...], name: str) -> None:
    if not (row.sample_id and row.image_key and row.group_id):
        raise BadInput(f"{name}: sample_id, image_key and group_id must not be empty")
    if row.label not in labels:
        raise BadInput(f"{name}: label {row.label!r} is not in the label schema {', '.join(labels)}")
    if row.split is Split.TRAIN and not 0 <= row.fold < FOLDS:
        raise BadInput(f"{name}: fold {row.fold} of a training row is not in 0..{FOLDS - 1}: assign it by assemble()")
    if row.split is not Split.TRAIN and row.fold != -1:
        raise BadInput(f"{name}: fold {row.fold} of a {row.split} row: only training rows have one, others -1")
    if not _FINGERPRINT.fullmatch(row.fingerprint):
        raise BadInput(f"{name}: the fingerprint is not {2 * SIZE} hexadecimal digits: make it by core.fingerprint")


def _check_together(rows: Sequence[DatasetRow], loop: str) -> None:
    folds: dict[str, DatasetRow] = {}
    for before, row in pairwise(rows):
        if before.sample_id == row.sample_id:
            raise BadInput(f"dataset of loop {loop!r}: sample {row.sample_id!r} is there twice: one label per sample")
    for row in rows:
        if row.split is Split.TRAIN and folds.setdefault(row.group_id, row).fold != row.fold:
            other = folds[row.group_id].sample_id
            raise BadInput(
                f"dataset of loop {loop!r}: samples {other!r} and {row.sample_id!r} of group {row.group_id!r} are in "
                "different folds: assign folds by assemble()"
            )


def _meta(metadata: Mapping[bytes, bytes], name: str) -> dict[str, Any]:
    try:
        meta = json.loads(metadata[_META])
        version = meta["version"]
    except (KeyError, ValueError, TypeError):
        raise BadInput(f"{name} is a Parquet file but not a dataset manifest") from None
    if version != VERSION:
        raise BadInput(
            f"{name} has dataset schema version {version}: this Hardloop reads version {VERSION}; upgrade it"
        )
    if not isinstance(meta.get("loop"), str) or not isinstance(meta.get("labels"), list):
        raise BadInput(f"{name}: its header names no loop or no labels")
    if not all(isinstance(label, str) for label in meta["labels"]) or not isinstance(meta.get("digest"), str):
        raise BadInput(f"{name}: its header holds labels or a digest that are not text")
    return dict(meta)

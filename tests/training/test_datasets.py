"""Dataset versions: content decides the digest, a manifest comes back as it was, and what contradicts is named."""

import io
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core.errors import BadInput, BlobMissing
from hardloop.core.fingerprint import SIZE
from hardloop.core.records import DatasetRow, Split
from training import datasets
from training.leakage import fold_of

LABELS = ("cat", "dog")


def row(i: int, label: str = "cat", split: Split = Split.TRAIN, **changes: object) -> DatasetRow:
    """A valid row whose sample, group and fingerprint follow from i."""
    sample = f"{i:032x}"
    made = DatasetRow(
        sample_id=sample,
        image_key=f"images/{sample[:2]}/{sample}.png",
        label=label,
        split=split,
        fold=fold_of(sample) if split is Split.TRAIN else -1,
        group_id=sample,
        source="door",
        fingerprint=f"{i % 256:02x}" * SIZE,
        origin="coverage",
        selection_id="sel-1",
        annotation_ids=(3, 1),
    )
    return replace(made, **changes)


rows = st.lists(
    st.builds(row, st.integers(0, 2**64), st.sampled_from(LABELS), st.sampled_from(Split)),
    min_size=1,
    max_size=12,
    unique_by=lambda r: r.sample_id,
)


@given(rows, st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_rows_or_annotations(some, shuffler):
    shuffled = [replace(r, annotation_ids=tuple(reversed(r.annotation_ids))) for r in some]
    shuffler.shuffle(shuffled)
    assert datasets.build("pets", LABELS, some).digest == datasets.build("pets", LABELS, shuffled).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "dog"},
        {"split": Split.LEGACY, "fold": -1},
        {"fold": (fold_of(f"{1:032x}") + 1) % 5},
        {"annotation_ids": (1, 3, 4)},
        {"selection_id": None},
        {"source": "gate"},
    ],
)
def test_any_change_of_content_changes_the_digest(changes):
    before = datasets.build("pets", LABELS, [row(1), row(2)])
    after = datasets.build("pets", LABELS, [row(1, **changes), row(2)])
    assert before.digest != after.digest


def test_the_order_of_labels_is_content():
    assert (
        datasets.build("pets", ("cat", "dog"), [row(1)]).digest
        != datasets.build("pets", ("dog", "cat"), [row(1)]).digest
    )


@settings(max_examples=25)
@given(rows)
def test_a_manifest_comes_back_as_it_was(some):
    dataset = datasets.build("pets", LABELS, some)
    found = datasets.read(datasets.write(dataset))
    assert found.digest == dataset.digest
    assert [r.sample_id for r in found.rows] == sorted(r.sample_id for r in some)
    assert {r.sample_id: r.label for r in found.rows} == {r.sample_id: r.label for r in some}
    assert found.rows[0].annotation_ids == (1, 3)


def test_a_version_is_stored_once_under_its_digest(folder_blobs):
    dataset = datasets.build("pets", LABELS, [row(1), row(2, "dog")])
    key = datasets.store(folder_blobs, dataset)
    assert key == f"datasets/pets/{dataset.digest}.parquet"
    folder_blobs.put(key, b"written by somebody else")
    datasets.store(folder_blobs, dataset)
    assert folder_blobs.get(key) == b"written by somebody else"
    with pytest.raises(BadInput, match=f"{key} is not a Parquet file"):
        datasets.load(folder_blobs, key)


def test_a_missing_version_is_named(folder_blobs):
    with pytest.raises(BlobMissing, match="datasets/pets/none"):
        datasets.load(folder_blobs, "datasets/pets/none.parquet")


def test_an_altered_manifest_is_refused():
    dataset = datasets.build("pets", LABELS, [row(1), row(2, "dog")])
    table = pq.read_table(io.BytesIO(datasets.write(dataset)))
    labels = table["label"].to_pylist()[::-1]
    index = table.schema.get_field_index("label")
    altered = table.set_column(index, table.schema.field(index), [labels])
    out = io.BytesIO()
    pq.write_table(altered, out)
    with pytest.raises(BadInput, match="it was altered"):
        datasets.read(out.getvalue())


def test_other_parquet_files_and_other_versions_are_refused():
    table = pq.read_table(io.BytesIO(datasets.write(datasets.build("pets", LABELS, [row(1)]))))
    for metadata, said in (({}, "not a dataset manifest"), ({b"hardloop.dataset": b'{"version": 9}'}, "version 9")):
        out = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), out)
        with pytest.raises(BadInput, match=said):
            datasets.read(out.getvalue())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": "cow"}, "label 'cow' is not in the label schema cat, dog"),
        ({"fold": 5}, "fold 5 of a training row"),
        ({"fold": -1}, "fold -1 of a training row"),
        ({"split": Split.HOLDOUT, "fold": 2}, "fold 2 of a holdout row"),
        ({"fingerprint": "00"}, "the fingerprint is not 192 hexadecimal digits"),
        ({"image_key": ""}, "must not be empty"),
    ],
)
def test_a_bad_row_is_named_by_number_and_sample(changes, said):
    with pytest.raises(BadInput, match=said) as refused:
        datasets.build("pets", LABELS, [row(1), row(7, **changes)])
    assert f"row 1 (sample '{7:032x}')" in str(refused.value)


def test_rows_that_contradict_each_other_are_named():
    with pytest.raises(BadInput, match="is there twice"):
        datasets.build("pets", LABELS, [row(1), row(1, "dog")])
    with pytest.raises(BadInput, match="of group 'g' are in different folds"):
        datasets.build("pets", LABELS, [row(1, group_id="g", fold=0), row(2, group_id="g", fold=1)])


@pytest.mark.parametrize("labels", [(), ("cat",), ("cat", "cat"), ("cat", "")])
def test_a_label_schema_needs_two_distinct_names(labels):
    with pytest.raises(BadInput, match="at least two, distinct and not empty"):
        datasets.build("pets", labels, [])


def test_a_diff_says_what_a_person_would_say():
    old = datasets.build("pets", LABELS, [row(1), row(2), row(3), row(4)])
    new = datasets.build("pets", LABELS, [row(2, "dog"), row(3), row(4, split=Split.LEGACY), row(5)])
    ids = [f"{i:032x}" for i in range(6)]
    assert datasets.diff(old, new) == datasets.Diff(
        added=(ids[5],), removed=(ids[1],), relabelled=((ids[2], "cat", "dog"),), moved=(ids[4],)
    )


def test_counts_are_per_split():
    dataset = datasets.build("pets", LABELS, [row(1), row(2), row(3, split=Split.LEGACY)])
    assert dataset.counts == {"train": 2, "holdout": 0, "legacy": 1}

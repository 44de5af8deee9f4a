"""No held-out sample, nor its group, nor its near-duplicate, is ever trained on; folds keep groups and copies whole."""

import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardloop.core.errors import Leakage
from hardloop.core.fingerprint import SIZE
from hardloop.core.records import DatasetRow, Split
from tests.core.alike import alike
from training.leakage import FOLDS, assemble, check_leakage, fold_of


def row(name: str, split: Split = Split.TRAIN, group: str = "", picture: int = -1) -> DatasetRow:
    """A row; rows of one `picture` are near-duplicates, different pictures (0 to 7) are not."""
    number = sum(name.encode()) % 251 if picture < 0 else picture * 31
    return DatasetRow(
        name, f"images/{name}.png", "cat", split, -1, group or name, "door", f"{number:02x}" * SIZE, "coverage"
    )  # fmt: skip


def some_rows() -> st.SearchStrategy[list[DatasetRow]]:
    one = st.builds(
        row,
        st.text("abcdef", min_size=1, max_size=4),
        st.sampled_from(Split),
        st.sampled_from(["", "g1", "g2", "g3", "g4"]),
        st.integers(0, 7),
    )
    return st.lists(one, max_size=25, unique_by=lambda r: r.sample_id)


@given(some_rows())
def test_assemble_never_leaves_a_leak_and_loses_no_row(rows):
    kept, excluded = assemble(rows)
    check_leakage(kept)
    assert sorted([r.sample_id for r in kept] + [e.sample_id for e in excluded]) == sorted(r.sample_id for r in rows)
    held_out = {r.sample_id for r in rows if r.split is not Split.TRAIN}
    assert held_out <= {r.sample_id for r in kept}
    assert all(e.held_out_id in held_out for e in excluded)


@given(some_rows())
def test_every_exclusion_was_needed(rows):
    """Putting any excluded row back makes the check raise."""
    kept, excluded = assemble(rows)
    by_id = {r.sample_id: r for r in rows}
    for one in excluded:
        with pytest.raises(Leakage, match=one.sample_id):
            check_leakage([*kept, by_id[one.sample_id]])


@given(some_rows())
def test_groups_and_near_duplicates_share_a_fold(rows):
    train = [r for r in assemble(rows)[0] if r.split is Split.TRAIN]
    assert all(0 <= r.fold < FOLDS for r in train)
    assert all(a.fold == b.fold for a, b in combinations(train, 2) if alike(a.fingerprint, b.fingerprint))
    for group in {r.group_id for r in train}:
        assert len({r.fold for r in train if r.group_id == group}) == 1


@given(some_rows(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, shuffler):
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert assemble(rows) == assemble(shuffled)


def test_a_group_keeps_its_fold_as_data_grows(digits):
    """Real digits, none of which are near-duplicates: more rows must not move any row to another fold."""
    small, _ = assemble([digits.row(i) for i in range(100)])
    large, _ = assemble([digits.row(i) for i in range(400)])
    later = {r.sample_id: r.fold for r in large}
    assert all(later[r.sample_id] == r.fold == fold_of(r.group_id) for r in small)


def test_folds_are_about_equal_in_size():
    counts = Counter(fold_of(f"camera-{i}") for i in range(5000))
    assert sorted(counts) == list(range(FOLDS))
    assert min(counts.values()) > 900


def test_the_reason_names_the_held_out_sample():
    held = row("holdout-1", Split.HOLDOUT, group="cam", picture=1)
    old = row("legacy-1", Split.LEGACY, picture=2)
    kept, excluded = assemble([held, old, row("a", group="cam", picture=3), row("b", picture=2), row("c", picture=4)])
    assert [r.sample_id for r in kept] == ["c", "holdout-1", "legacy-1"]
    assert [(e.sample_id, e.held_out_id) for e in excluded] == [("a", "holdout-1"), ("b", "legacy-1")]
    assert "group 'cam', which the holdout split holds" in excluded[0].reason
    assert "near-duplicate images, one of them in the legacy split" in excluded[1].reason


def test_near_duplicates_tie_their_groups_together_through_a_chain():
    rows = [row(f"{g}{p}", group=g, picture=p) for g, p in (("a", 1), ("b", 1), ("b", 2), ("c", 2), ("d", 5))]
    folds = {r.group_id: r.fold for r in assemble(rows)[0]}
    assert folds["a"] == folds["b"] == folds["c"] == fold_of("a")
    assert folds["d"] == fold_of("d")


def test_frames_of_a_still_camera_take_little_time_and_memory():
    """Half of them byte for byte the same, half with noise of their own: all near-duplicates of one another."""
    rng = np.random.default_rng(0)
    noisy = [bytes([7] * 32 + list(120 + rng.integers(0, 2, 64))).hex() for _ in range(750)]
    frames = [noisy[0]] * 750 + noisy
    rows = [replace(row(f"r{i:04}"), fingerprint=frame) for i, frame in enumerate(frames)]
    tracemalloc.start()
    began = time.monotonic()
    kept, excluded = assemble(rows)
    seconds, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not excluded
    assert {r.fold for r in kept} == {fold_of("r0000")}
    assert peak < 20_000_000
    assert seconds < 5


def test_the_check_counts_the_further_leaks():
    rows = [row("x", Split.LEGACY, picture=1), row("a", picture=1), row("b", picture=1)]
    with pytest.raises(Leakage, match=r"training sample a and held-out sample x: near-duplicate.*\(1 more like it\)"):
        check_leakage([replace(r, fold=0) for r in rows])


def test_a_recompressed_copy_of_a_held_out_photo_is_found(digits):
    """An enlarged copy, stored as another file, of a digit in the holdout."""
    import io

    from PIL import Image

    from hardloop.core import images
    from hardloop.core.fingerprint import fingerprint

    original = images.decode(digits.files[0]).resize((64, 64), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    original.resize((128, 128), Image.Resampling.BICUBIC).save(out, "JPEG", quality=70)
    held = replace(digits.row(0, Split.HOLDOUT), fingerprint=fingerprint(original))
    copy = replace(digits.row(1), fingerprint=fingerprint(images.decode(out.getvalue())))
    kept, excluded = assemble([held, copy, digits.row(2)])
    assert [e.sample_id for e in excluded] == [copy.sample_id]
    assert len(kept) == 2

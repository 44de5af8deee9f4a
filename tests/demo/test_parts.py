"""Cutting the data: nothing seen twice, nothing leaking, the same cut every time."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core.errors import BadData, BadSettings
from hardloop.core.fingerprint import SIZE, fingerprint, first_matches
from hardloop.core.images import decode, encode_png
from hardloop.service.demo.data import DemoData, DemoItem, load, partition
from hardloop.service.demo.parts import apportion

NAMES = ("seed", "legacy", "stream", "test")


def item(number: int, label: str, split: str | None = None) -> DemoItem:
    """An item whose fingerprint is near to no other's."""
    noise = np.random.default_rng(number).bytes(SIZE)
    return DemoItem(f"{number}.png", f"image {number}".encode(), label, split, noise.hex())


def data_of(*counts: tuple[str, int, str | None]) -> DemoData:
    items = [(label, split) for label, count, split in counts for _ in range(count)]
    labels = tuple(sorted({label for label, _ in items}))
    return DemoData("pets", labels, tuple(item(i, label, split) for i, (label, split) in enumerate(items)))


PETS = data_of(("cat", 600, None), ("dog", 400, None))


def test_without_splits_a_quarter_is_test_and_a_tenth_of_the_rest_is_the_gates():
    parts = partition(PETS, 0, 20, 40, 3)
    assert parts.sizes() == {"seed": 20, "legacy": 75, "stream": 655, "test": 250}
    assert Counter(i.label for i in parts.test) == {"cat": 150, "dog": 100}
    assert Counter(i.label for i in parts.legacy) == {"cat": 45, "dog": 30}
    assert parts.notes == ()


def test_the_datas_own_splits_are_kept():
    data = data_of(("cat", 200, "train"), ("dog", 100, "train"), ("cat", 30, "val"), ("dog", 120, "test"))
    parts = partition(data, 0, 20, 40, 3)
    assert parts.sizes() == {"seed": 20, "legacy": 30, "stream": 280, "test": 120}
    assert {i.split for i in parts.test} == {"test"}
    assert {i.split for i in parts.legacy} == {"val"}
    assert {i.split for i in (*parts.seed, *parts.stream)} == {"train"}
    assert parts.notes == ("No image of cat is in the test set: accuracy says nothing about them.",)


def test_large_test_and_val_splits_are_cut_and_what_is_left_is_used_nowhere():
    data = data_of(
        ("a", 300, "train"), ("b", 300, "train"), ("a", 1500, "test"), ("b", 1500, "test"), ("a", 900, "val")
    )
    parts = partition(data, 0, 20, 40, 3)
    assert parts.sizes() == {"seed": 20, "legacy": 500, "stream": 580, "test": 2000}
    assert Counter(i.label for i in parts.test) == {"a": 1000, "b": 1000}
    assert parts.notes[:2] == (
        "1,000 images of the test split are not used: 2,000 measure well enough.",
        "400 images of the val split are not used: 500 are enough for the gate.",
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False), st.integers(2, 30))
def test_parts_are_disjoint_complete_and_blind_to_the_order_of_the_items(seed, random, first):
    parts = partition(PETS, seed, first, 10, 3)
    ids = [i.sample_id for name in NAMES for i in getattr(parts, name)]
    assert sorted(ids) == sorted(i.sample_id for i in PETS.items)
    assert len(parts.seed) == first
    assert len({i.label for i in parts.seed}) == 2
    mixed = list(PETS.items)
    random.shuffle(mixed)
    assert partition(replace(PETS, items=tuple(mixed)), seed, first, 10, 3) == parts


def test_the_test_set_stays_when_only_the_budget_changes_and_moves_with_the_seed():
    parts = [partition(PETS, seed, first, budget, 3) for seed, first, budget in ((0, 20, 40), (0, 60, 90), (1, 20, 40))]
    assert parts[0].test == parts[1].test
    assert parts[0].seed == parts[1].seed[:20]
    assert parts[0].test != parts[2].test


def test_first_labels_are_drawn_uniformly_over_classes():
    drawn = Counter(i.label for seed in range(100) for i in partition(PETS, seed, 20, 10, 3).seed)
    # 2,000 draws at 60 %: the standard deviation is 22, so 4 of them.
    assert abs(drawn["cat"] - 1200) < 88


def test_a_draw_that_meets_one_class_only_is_mended_and_noted():
    data = data_of(("cat", 990, None), ("dog", 10, None))
    mended = [parts for seed in range(20) if (parts := partition(data, seed, 5, 10, 3)).notes]
    assert mended
    for parts in mended:
        assert Counter(i.label for i in parts.seed) == {"cat": 4, "dog": 1}
        assert "met one class only" in parts.notes[0]


def test_a_class_of_one_image_can_be_learned_but_is_not_tested():
    data = data_of(("cat", 200, None), ("dog", 200, None), ("eel", 1, None))
    for seed in range(10):
        parts = partition(data, seed, 20, 40, 3)
        assert "eel" in {i.label for i in (*parts.seed, *parts.stream)}
        assert parts.notes == ("No image of eel is in the test set: accuracy says nothing about them.",)


def test_a_class_that_is_only_in_the_test_split_is_noted():
    data = data_of(("cat", 200, "train"), ("dog", 200, "train"), ("eel", 50, "test"), ("cat", 60, "test"))
    notes = partition(data, 0, 20, 40, 3).notes
    assert "No image of eel is left to learn from: those test images cannot be right." in notes


def test_near_duplicates_of_test_and_gate_images_leave_the_traffic_and_are_counted():
    """Three training images come again, slightly re-compressed, in test; one in val; and one val image in test."""
    rng = np.random.default_rng(0)

    def photo(name: str, pixels: np.ndarray, label: str, split: str) -> DemoItem:
        png = encode_png(pixels)
        return DemoItem(name, png, label, split, fingerprint(decode(png)))

    def blurred() -> np.ndarray:
        return np.kron(rng.integers(0, 250, (17, 17)), np.ones((4, 4))).astype(np.uint8)

    train = [blurred() for _ in range(200)]
    val, test = [blurred() for _ in range(50)], [blurred() for _ in range(50)]
    test[:3] = [pixels + 1 for pixels in train[:3]]
    val[0] = train[3] + 1
    val[1] = test[9] + 1
    items = [
        photo(f"{split}/{i}", pixels, "ab"[i % 2], split)
        for split, group in (("train", train), ("val", val), ("test", test))
        for i, pixels in enumerate(group)
    ]
    parts = partition(DemoData("photos", ("a", "b"), tuple(items)), 0, 10, 20, 3)
    assert parts.sizes() == {"seed": 10, "legacy": 49, "stream": 186, "test": 50}
    assert {i.name for i in (*parts.seed, *parts.stream)} == {f"train/{i}" for i in range(4, 200)}
    assert "1 near-duplicate(s) of test images were taken out of the gate's set." in parts.notes
    assert "4 near-duplicate(s) of test or gate images were taken out of the seed and the traffic." in parts.notes


def test_too_few_samples_for_the_budget_say_the_numbers_and_what_fits():
    with pytest.raises(BadData) as caught:
        partition(PETS, 0, 20, 300, 3)
    assert str(caught.value) == (
        "pets has 1,000 images, of which 250 test and 75 gate; 675 are left for 20 first labels and 3 round(s) of 300, "
        "which need 920: add images, or lower the budget (a budget of 218 per round fits 3 round(s))"
    )
    assert partition(PETS, 0, 20, 218, 3).sizes()["stream"] == 655


def test_tiny_data_is_refused_with_advice():
    with pytest.raises(BadData, match="lower the first labels, the rounds and the budget"):
        partition(data_of(("cat", 30, None), ("dog", 30, None)), 0, 20, 5, 3)


def test_training_data_of_one_class_is_refused():
    data = data_of(("cat", 300, "train"), ("dog", 100, "test"))
    with pytest.raises(BadData, match="all images left for training have the label 'cat'"):
        partition(data, 0, 20, 40, 3)


@pytest.mark.parametrize("numbers", [(1, 10, 3), (20, 0, 3), (20, 10, 0)])
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(BadSettings, match="at least 2, 1 and 1 are needed"):
        partition(PETS, 0, *numbers)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 400))
def test_apportioned_counts_add_up_and_stay_within_their_strata(sizes, total):
    counts = apportion(sizes, total)
    assert sum(counts) == min(total, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    filled = sum(size > 0 for size in sizes)
    if total >= filled:
        assert all(count >= 1 for count, size in zip(counts, sizes, strict=True) if size)


def test_apportioned_counts_are_in_proportion():
    assert apportion([600, 300, 100], 100) == [60, 30, 10]
    assert apportion([5, 5, 5], 10) == [4, 3, 3]
    assert apportion([1000, 1, 1], 10) == [8, 1, 1]


def test_the_digits_hold_four_rounds_of_sixty_labels_without_a_leak():
    data = load(None, lambda *_: None)
    parts = partition(data, 0, 20, 60, 4)
    assert parts.sizes() == {"seed": 20, "legacy": 135, "stream": 1193, "test": 449}
    held = [i.fingerprint for i in (*parts.test, *parts.legacy)]
    assert first_matches(held, [i.fingerprint for i in (*parts.seed, *parts.stream)]) == {}


def test_clothing10_keeps_its_published_splits(shared_data: Path):
    parts = partition(load(shared_data / "clothing10", lambda *_: None), 0, 40, 100, 4)
    assert (len(parts.test), len(parts.legacy)) == (372, 341)
    assert len(parts.seed) + len(parts.stream) == 3068

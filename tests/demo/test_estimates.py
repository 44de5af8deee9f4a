"""The report's statistics against values worked out by hand, by scipy, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hardloop.core.errors import BadInput, BadShape
from hardloop.service.demo.estimates import labels_saved, mean, paired_gain, wilson

CURVE = [(20, 0.50), (40, 0.60), (80, 0.70)]


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_wilson(case):
    right, n = case
    ours, theirs = wilson(right, n), binomtest(right, n).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)
    assert 0.0 <= ours.low <= ours.value <= ours.high <= 1.0


@pytest.mark.parametrize(("right", "n"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(right, n):
    with pytest.raises(BadInput, match="expected 0 <= right <= n"):
        wilson(right, n)


def test_mean_over_three_seeds_uses_students_t():
    found = mean([0.70, 0.72, 0.74])
    # t(0.975, 2) = 4.3027; standard error 0.02 / sqrt(3)
    np.testing.assert_allclose([found.value, found.low, found.high], [0.72, 0.72 - 0.04968, 0.72 + 0.04968], atol=1e-5)


def test_mean_of_one_seed_claims_no_interval_and_of_none_is_refused():
    assert (mean([0.7]).low, mean([0.7]).high) == (0.7, 0.7)
    with pytest.raises(BadInput, match="no repetitions"):
        mean([])


@pytest.mark.parametrize(
    ("accuracy", "labels", "value", "at_least"),
    [
        (0.65, 40, 20, False),  # halfway between 40 and 80 is 60, 20 more than our 40
        (0.60, 40, 0, False),
        (0.55, 40, -10, False),  # random was there with 30
        (0.70, 60, 20, False),  # the last point counts as measured
        (0.71, 60, 20, True),  # beyond it: at least 80 - 60
        (0.40, 40, -20, False),  # as good as its first point or worse: 20 labels were enough for random
        (0.651, 40, 20, False),  # 60.4 rounds down
    ],
)
def test_labels_saved_reads_the_random_curve(accuracy, labels, value, at_least):
    assert labels_saved(accuracy, labels, CURVE) == (value, at_least)


def test_a_lucky_bump_of_the_random_curve_counts_for_random():
    assert labels_saved(0.65, 100, [(20, 0.5), (40, 0.7), (80, 0.6), (120, 0.8)]) == (35 - 100, False)


@given(st.floats(0.0, 0.9), st.floats(0.0, 0.09))
def test_more_accuracy_never_saves_fewer_labels(accuracy, more):
    assert labels_saved(accuracy + more, 40, CURVE).value >= labels_saved(accuracy, 40, CURVE).value


@pytest.mark.parametrize("curve", [[], [(40, 0.5), (20, 0.6)], [(40, 0.5), (40, 0.6)]])
def test_an_unordered_or_empty_curve_is_refused(curve):
    with pytest.raises(BadInput, match="strictly ascending"):
        labels_saved(0.5, 20, curve)


def test_the_gain_is_the_mean_difference_in_points():
    ours_RN = np.array([[True, True, True, False], [True, True, True, True]])
    random_SRN = np.array([[[True, False, True, False], [True, False, True, False]]])
    found = paired_gain(ours_RN, random_SRN, seed=0)
    assert found.value == pytest.approx(100 * (3 + 4 - 2 - 2) / 8)
    assert found.low <= found.value <= found.high


def test_no_difference_anywhere_is_a_gain_of_exactly_zero():
    right_RN = np.random.default_rng(0).random((3, 200)) < 0.8
    found = paired_gain(right_RN, np.stack([right_RN, right_RN]), seed=1)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_paired_interval_holds_the_truth_about_as_often_as_it_says():
    """Ours right with 0.80, random with 0.75, independent given the image: the true gain is 5 points."""
    rng = np.random.default_rng(7)
    held = 0
    for trial in range(60):
        ours_RN = rng.random((1, 300)) < 0.80
        random_SRN = rng.random((4, 1, 300)) < 0.75
        found = paired_gain(ours_RN, random_SRN, seed=trial, resamples=1000)
        held += found.low <= 5.0 <= found.high
    # 57 expected; under 50 has a chance of about 0.1 %.
    assert held >= 50


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(3)
    ours_RN, random_SRN = rng.random((2, 50)) < 0.8, rng.random((3, 2, 50)) < 0.7
    assert paired_gain(ours_RN, random_SRN, 5) == paired_gain(ours_RN, random_SRN, 5)


def test_axes_that_do_not_agree_are_refused():
    with pytest.raises(BadShape, match=r"expected .rounds, images. and .baselines, rounds, images."):
        paired_gain(np.ones((2, 5), bool), np.ones((3, 2, 4), bool), 0)
    with pytest.raises(BadShape):
        paired_gain(np.ones((2, 5), bool), np.ones((0, 2, 5), bool), 0)

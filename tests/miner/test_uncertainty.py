import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardloop.core.errors import BadShape
from miner.uncertainty import combine, disagreement, margin, tempered


def test_margin_prefers_the_near_tie():
    np.testing.assert_allclose(margin(np.array([[0.90, 0.10], [0.51, 0.49]])), [0.20, 0.98])


def test_margin_looks_at_the_two_likeliest_of_many_classes():
    np.testing.assert_allclose(margin(np.array([[0.1, 0.5, 0.4], [0.0, 0.0, 1.0]])), [0.9, 0.0])


def test_margin_of_one_class_is_refused_with_its_shape():
    with pytest.raises(BadShape, match=r"\(4, 1\)"):
        margin(np.ones((4, 1)))


def test_members_sure_of_different_classes_disagree_fully():
    sure = np.eye(2)
    np.testing.assert_allclose(disagreement(np.stack([sure, sure[::-1]])), [1.0, 1.0])


def test_members_that_agree_do_not_disagree_however_unsure_they_are():
    probs = np.array([[0.5, 0.5], [0.9, 0.1]])
    np.testing.assert_allclose(disagreement(np.stack([probs, probs, probs])), [0.0, 0.0], atol=1e-12)


def test_disagreement_matches_the_divergence_worked_out_by_hand():
    # mean (0.7, 0.3); H(0.7) = 0.610864, H(0.9) = 0.325083, H(0.5) = 0.693147; over log 2
    found = disagreement(np.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
    np.testing.assert_allclose(found, [(0.610864 - (0.325083 + 0.693147) / 2) / np.log(2)], atol=1e-6)


def test_a_single_member_never_disagrees():
    np.testing.assert_array_equal(disagreement(np.array([[[0.5, 0.5], [0.1, 0.9]]])), [0.0, 0.0])


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10_000))
def test_disagreement_stays_in_the_unit_interval(members, classes, seed):
    probs = np.random.default_rng(seed).dirichlet(np.full(classes, 0.1), size=(members, 20))
    found = disagreement(probs)
    assert found.min() >= 0.0
    assert found.max() <= 1.0


def test_either_reason_for_doubt_suffices_and_both_count_more():
    found = combine(np.array([0.0, 0.6, 0.0, 0.6]), np.array([0.0, 0.0, 0.5, 0.5]))
    np.testing.assert_allclose(found, [0.0, 0.6, 0.5, 0.8])


def test_temperature_two_takes_the_square_root_of_the_odds():
    np.testing.assert_allclose(tempered(np.array([[0.8, 0.2]]), 2.0), [[2 / 3, 1 / 3]])


def test_temperature_one_changes_nothing_and_a_zero_probability_stays_finite():
    np.testing.assert_array_equal(tempered(np.array([[1.0, 0.0]]), 1.0), [[1.0, 0.0]])
    assert np.isfinite(tempered(np.array([[1.0, 0.0]]), 3.0)).all()

"""The temperature: found again where rows are many, barely moved where they are few or free of mistakes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hardloop.core.temperature import PRIOR_ROWS, fit_temperature, softmax

N_LABELLED = 120  # of the digits: a model of about 90 % accuracy


def drawn(n: int, seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and truths drawn from the logits' own probabilities: their temperature is 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 1.5
    return logits, (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def loss(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(truth)), truth]).mean())


def test_two_classes_and_one_mistake_by_hand():
    """Ten rows of log odds log(9), one of them wrong, agree with 90 %; with five wrong, rows and prior say 60 in 60."""
    logits = np.tile([np.log(9.0), 0.0], (10, 1))
    assert fit_temperature(logits, np.array([0] * 9 + [1])) == pytest.approx(1.0)
    right = (PRIOR_ROWS * 0.9 + 5) / (PRIOR_ROWS + 10)
    expected = np.log(9.0) / np.log(right / (1 - right))
    assert fit_temperature(logits, np.array([0] * 5 + [1] * 5)) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0.3, 12.0), st.integers(2, 12))
def test_rows_without_a_mistake_shrink_the_chance_of_one_no_further_than_their_number_allows(n, odds, classes):
    """The chance of an error falls from e to e * PRIOR_ROWS / (PRIOR_ROWS + n), whatever the model's confidence."""
    logits = np.zeros((n, classes))
    logits[:, 0] = odds
    temperature = fit_temperature(logits, np.zeros(n, dtype=np.int64))
    before, after = (1 - softmax(logits, t)[0, 0] for t in (1.0, temperature))
    assert after == pytest.approx(before * PRIOR_ROWS / (PRIOR_ROWS + n), rel=1e-6)
    assert temperature <= 1.0


def test_twenty_rows_without_a_mistake_leave_the_temperature_near_one():
    logits = np.random.default_rng(0).normal(size=(20, 10)) * 3
    assert 0.7 < fit_temperature(logits, logits.argmax(axis=1)) < 1.0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.3, 4.0))
def test_with_many_rows_it_is_the_one_of_least_log_loss_and_follows_the_logits_scale(seed, scale):
    logits, truth = drawn(20_000, seed)
    found = fit_temperature(logits * scale, truth)
    best = min(np.geomspace(0.2, 5, 400), key=lambda t: loss(logits * scale, truth, t))
    assert found == pytest.approx(best, rel=0.02)
    assert found == pytest.approx(scale * fit_temperature(logits, truth), rel=0.02)


def test_few_rows_stay_near_the_prior_and_many_leave_it():
    logits, truth = drawn(20_000)
    near, far = (fit_temperature(logits[:n], truth[:n], prior=3.0) for n in (5, 20_000))
    assert near == pytest.approx(3.0, rel=0.25)
    assert far == pytest.approx(1.0, rel=0.03)


def test_no_rows_and_rows_that_say_nothing_give_the_prior():
    assert fit_temperature(np.empty((0, 2)), np.empty(0, dtype=np.int64), prior=1.7) == 1.7
    assert fit_temperature(np.full((5, 3), 4.0), np.array([0, 1, 2, 0, 1]), prior=1.7) == 1.7


def test_huge_logits_neither_overflow_nor_leave_the_bounds():
    sure = np.array([[1e5, 0.0], [0.0, 1e5]])
    assert fit_temperature(sure, np.array([1, 0])) == pytest.approx(20.0, rel=1e-6)
    assert fit_temperature(sure, np.array([0, 1])) >= 0.05


def test_a_small_audit_without_mistakes_does_not_make_a_model_sure_of_its_mistakes():
    """Digits: on 1,600 others the log loss stays within 0.02 of what no calibration gives, and doubt is still seen."""
    pixels, truth = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(truth))
    train, rest = order[:N_LABELLED], order[N_LABELLED:]
    model = LogisticRegression(C=0.01, max_iter=1000).fit(pixels[train], truth[train])
    logits, labels = model.decision_function(pixels[rest]), truth[rest]
    wrong = logits.argmax(axis=1) != labels
    assert 0.04 < wrong.mean() < 0.12
    audit = np.flatnonzero(~wrong)[:20]
    temperature = fit_temperature(logits[audit], labels[audit])
    assert loss(logits, labels, temperature) < loss(logits, labels, 1.0) + 0.02
    assert softmax(logits[wrong], temperature).max(axis=1).mean() < 0.75

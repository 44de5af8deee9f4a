"""Intervals: known values, and the coverage they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core.errors import BadShape
from registry.intervals import paired_difference, wilson


def test_wilson_gives_the_textbook_interval() -> None:
    interval = wilson(8, 10)
    assert interval.value == 0.8
    assert interval.low == pytest.approx(0.4902, abs=1e-4)
    assert interval.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_stays_inside_the_range_at_its_ends() -> None:
    assert wilson(0, 10).low == 0.0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(10, 10).high == 1.0
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_wilson_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(7)
    covered = [wilson(int(h), 40).low <= 0.9 <= wilson(int(h), 40).high for h in rng.binomial(40, 0.9, size=4000)]
    assert 0.93 < np.mean(covered) < 0.98


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(BadShape, match="11 hits of 10"):
        wilson(11, 10)
    for wins, losses, n in [(-1, 0, 5), (3, 3, 5), (0, 0, 0)]:
        with pytest.raises(BadShape, match="counts must not be negative"):
            paired_difference(wins, losses, n, 0.95, 1000, 0)


@settings(deadline=None, max_examples=60)
@given(wins=st.integers(0, 60), losses=st.integers(0, 60), ties=st.integers(0, 200), seed=st.integers(0, 2**32 - 1))
def test_exchanging_the_models_mirrors_the_interval(wins: int, losses: int, ties: int, seed: int) -> None:
    n = max(1, wins + losses + ties)
    there = paired_difference(wins, losses, n, 0.95, 2000, seed)
    back = paired_difference(losses, wins, n, 0.95, 2000, seed)
    assert (back.value, back.low, back.high) == (-there.value, -there.high, -there.low)
    assert -1 <= there.low <= there.value <= there.high <= 1


def test_a_handful_of_wins_is_no_proof_and_half_a_dozen_without_a_loss_is() -> None:
    assert paired_difference(4, 0, 50, 0.95, 10_000, 0).low <= 0
    assert paired_difference(7, 0, 50, 0.95, 10_000, 0).low > 0


def test_models_that_never_differed_on_few_samples_are_not_called_equal_beyond_doubt() -> None:
    interval = paired_difference(0, 0, 30, 0.95, 10_000, 0)
    assert interval.value == 0.0
    assert interval.low < -0.05
    assert interval.high > 0.05


def test_the_interval_agrees_with_the_normal_one_where_samples_are_many() -> None:
    wins, losses, n = 900, 600, 10_000
    interval = paired_difference(wins, losses, n, 0.95, 50_000, 3)
    error = np.sqrt((wins + losses) / n - ((wins - losses) / n) ** 2) / np.sqrt(n)
    assert interval.low == pytest.approx(0.03 - 1.96 * error, abs=3e-4)
    assert interval.high == pytest.approx(0.03 + 1.96 * error, abs=3e-4)


def test_a_million_samples_cost_no_more_than_ten() -> None:
    assert paired_difference(50_000, 49_000, 1_000_000, 0.95, 10_000, 0).low > 0

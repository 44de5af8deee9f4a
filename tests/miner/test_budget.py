import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardloop.core.records import PoolState
from miner.budget import draw, draw_arms, interleave, split_budget, tie_numbers
from miner.demand import in_order
from miner.policy import MiningPolicy
from tests.miner.pools import make_pool


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.floats(0, 0.5), st.floats(0, 0.5))
def test_over_any_rounds_each_arm_is_within_one_of_its_share(budgets, audit_share, exploration_share):
    asked, audit, exploration = 0, 0, 0
    for budget in budgets:
        split = split_budget(budget, asked, audit_share, exploration_share, 10**6, 10**6)
        assert split.audit + split.exploration + split.coverage == budget
        assert min(split.audit, split.exploration, split.coverage) >= 0
        asked, audit, exploration = asked + budget, audit + split.audit, exploration + split.exploration
    assert abs(audit - audit_share * asked) <= 1.0 + 1e-6
    # Where both arms fall due in a round of one, exploration gives way to the audit, once per such round at most.
    yielded = sum(budget <= 1 for budget in budgets)
    assert -1.0 - yielded - 1e-6 <= exploration - exploration_share * asked <= 1.0 + 1e-6


def test_five_percent_of_ten_is_one_every_second_round_and_the_arms_take_turns():
    splits = [split_budget(10, asked, 0.05, 0.05, 99, 99) for asked in range(0, 60, 10)]
    assert [s.audit for s in splits] == [1, 0, 1, 0, 1, 0]
    assert [s.exploration for s in splits] == [0, 1, 0, 1, 0, 1]


def test_what_an_empty_audit_cannot_take_goes_to_coverage():
    split = split_budget(100, 0, 0.05, 0.05, 2, 1000)
    assert (split.audit, split.exploration, split.coverage) == (2, 5, 93)


def test_whole_shares_are_not_lost_to_floating_point():
    assert split_budget(100, 0, 0.0, 0.29, 0, 1000).exploration == 29
    assert [split_budget(20, asked, 0.05, 0.05, 99, 999).audit for asked in range(0, 200, 20)] == [1] * 10


@given(st.integers(1, 60), st.integers(0, 1000))
def test_tie_numbers_are_a_permutation_that_belongs_to_the_ids(n, seed):
    ids = [f"id{i:03d}" for i in range(n)]
    numbers = tie_numbers(ids, seed, "tie")
    assert sorted(numbers.tolist()) == list(range(n))
    some = tie_numbers(ids[::2], seed, "tie")
    assert np.argsort(some).tolist() == [i // 2 for i in np.argsort(numbers) if i % 2 == 0]


def test_purposes_and_seeds_draw_differently():
    ids = [f"id{i:03d}" for i in range(50)]
    drawn = {tuple(tie_numbers(ids, seed, purpose)) for seed in (0, 1) for purpose in ("audit", "tie")}
    assert len(drawn) == 4


def test_every_row_is_drawn_equally_often_over_seeds():
    """Chi-square with 19 degrees of freedom; its 99.9 % point is 43.8."""
    ids = [f"id{i:03d}" for i in range(20)]
    counts = np.zeros(20)
    for seed in range(2000):
        counts[draw(np.arange(20), tie_numbers(ids, seed, "audit"), 3)] += 1
    assert ((counts - 300) ** 2 / 300).sum() < 43.8


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_interleaving_keeps_each_arm_in_order_and_its_share_in_every_prefix(sizes):
    order = interleave(sizes)
    total = sum(sizes)
    for arm, size in enumerate(sizes):
        assert [place for a, place in order if a == arm] == list(range(size))
        for end in range(total + 1):
            there = sum(a == arm for a, _ in order[:end])
            assert abs(there - size * end / total if total else 0) <= len(sizes)


def test_exploration_asks_for_one_sample_of_a_burst_and_none_of_a_burst_that_was_asked_about():
    bursts = ["a", "a", "a", "b", "b", "", "", "", ""]
    pool = make_pool(9, bursts=tuple(bursts), state_N=np.array([1, 0, 0, 0, 0, 0, 0, 0, 0], dtype=np.int8),
                     labels_N=np.array([0] + [-1] * 8))  # fmt: skip
    pool = in_order(pool)
    policy = MiningPolicy(audit_share=0.0, exploration_share=1.0)
    drawn: dict[str, int] = dict.fromkeys(pool.ids, 0)
    for seed in range(600):
        arms = draw_arms(pool, 3, policy, seed)
        assert len(arms.exploration) == 3
        picked = [pool.bursts[row] for row in arms.exploration]
        assert "a" not in picked
        assert picked.count("b") <= 1
        for row, propensity in zip(arms.exploration, arms.exploration_propensities, strict=True):
            drawn[pool.ids[row]] += 1
            assert propensity == pytest.approx(3 / 5 / (2 if pool.bursts[row] == "b" else 1))
    for row, sample in enumerate(pool.ids):
        expected = 600 * {"a": 0.0, "b": 0.3, "": 0.6}[pool.bursts[row]]
        assert abs(drawn[sample] - expected) <= 5 * np.sqrt(expected + 1e-9), "the logged chance is the true one"


def test_the_arms_keep_their_shares_whatever_else_is_in_the_pool():
    """Labels brought by people and samples taken out say nothing about how many picks were made."""
    policy = MiningPolicy()
    asked = audit = exploration = 0
    for round_ in range(40):
        state_N = np.zeros(400, dtype=np.int8)
        state_N[: 5 * round_] = PoolState.LABELLED
        state_N[5 * round_ : 8 * round_] = PoolState.REJECTED
        state_N[-60:] = PoolState.AUDIT
        pool = in_order(make_pool(400, seed=round_, state_N=state_N, labels_N=np.full(400, -1), asked_before=asked))
        arms = draw_arms(pool, 10, policy, round_)
        asked, audit, exploration = asked + 10, audit + arms.split.audit, exploration + arms.split.exploration
    assert (asked, audit, exploration) == (400, 20, 20)

"""How often the gate is wrong and how often it notices, in seeded simulations of whole decisions."""

import numpy as np
import pytest

from hardloop.core.records import Evaluation
from registry.gate import GatePolicy, decide

POLICY = GatePolicy(resamples=2_000)
ROUNDS = 800
NOMINAL = 0.025
SLACK = 0.017  # three standard errors of a rate of 2.5 % seen in 800 rounds


def promoted_share(slices: dict[str, tuple[int, float, float]], seed: int, rounds: int = ROUNDS) -> float:
    """Share of rounds that promote. Per slice: samples, chance that only the candidate is right, only the champion."""
    rng = np.random.default_rng(seed)
    names = tuple(name for name, (n, _, _) in slices.items() for _ in range(n))
    ids = tuple(map(str, range(len(names))))
    truth_N = np.zeros(len(names), dtype=np.int64)
    promoted = 0
    for number in range(rounds):
        # 0: only the candidate is right, 1: only the champion, 2: both
        kind_N = np.concatenate(
            [rng.choice(3, size=n, p=[win, loss, 1 - win - loss]) for n, win, loss in slices.values()]
        )
        candidate = Evaluation(ids, truth_N, probs(kind_N != 1), names)
        champion = Evaluation(ids, truth_N, probs(kind_N != 0), names)
        promoted += decide(candidate, champion, POLICY, seed=number).promote
    return promoted / rounds


def probs(right_N: np.ndarray) -> np.ndarray:
    return np.where(right_N[:, None], [0.9, 0.1], [0.1, 0.9])


@pytest.mark.parametrize("n", [25, 60, 200])
def test_equal_models_are_promoted_no_more_often_than_nominal(n: int) -> None:
    assert promoted_share({"mined": (n, 0.15, 0.15)}, seed=n) <= NOMINAL + SLACK


def test_where_too_little_is_mined_equal_models_are_promoted_no_more_often_than_nominal() -> None:
    share = promoted_share({"mined": (10, 0.15, 0.15), "audit": (150, 0.1, 0.1), "legacy": (150, 0.1, 0.1)}, seed=5)
    assert share <= NOMINAL + SLACK


def test_with_a_guard_beside_equal_models_are_promoted_no_more_often_than_by_two_tests() -> None:
    share = promoted_share({"mined": (30, 0.15, 0.15), "audit": (150, 0.1, 0.1), "legacy": (150, 0.1, 0.1)}, seed=6)
    assert share <= 2 * NOMINAL + SLACK


def test_a_clear_gain_is_noticed_though_little_was_mined() -> None:
    assert promoted_share({"mined": (28, 0.32, 0.18), "legacy": (135, 0.25, 0.02)}, seed=4, rounds=300) > 0.75


@pytest.mark.parametrize(("n", "differing"), [(150, 0.10), (400, 0.10), (400, 0.30)])
def test_a_candidate_that_loses_the_margin_in_production_is_let_through_no_more_often_than_nominal(
    n: int, differing: float
) -> None:
    wins, losses = (differing - POLICY.margin) / 2, (differing + POLICY.margin) / 2
    share = promoted_share({"mined": (100, 0.4, 0.1), "audit": (n, wins, losses)}, seed=n)
    assert share <= NOMINAL + SLACK


def test_a_clear_gain_is_noticed() -> None:
    assert promoted_share({"mined": (100, 0.30, 0.08)}, seed=1, rounds=300) > 0.95
    assert promoted_share({"mined": (40, 0.35, 0.08)}, seed=2, rounds=300) > 0.65
    assert promoted_share({"mined": (100, 0.30, 0.08), "audit": (300, 0.07, 0.03)}, seed=3, rounds=300) > 0.9


def test_mining_by_the_champions_doubts_favours_any_other_model_and_the_audit_corrects_it() -> None:
    """Two equally good models; the samples mined are those the champion is least sure of. docs/gate.md quotes this."""
    rng = np.random.default_rng(11)
    on_mined, on_audit, mined_only, guarded = [], [], 0, 0
    rounds = 300
    for number in range(rounds):
        ease_N = rng.normal(1.5, 1.0, size=3000)  # a sample's margin for the true class; negative: wrong
        champion_N, candidate_N = ease_N + rng.normal(0, 0.7, size=(2, 3000))
        audit_N = np.arange(3000) < 300
        pool = np.flatnonzero(~audit_N)
        mined = pool[np.argsort(np.abs(champion_N[pool]))[:150]]
        rows = np.concatenate([mined, np.flatnonzero(audit_N)])
        names = ("mined",) * 150 + ("audit",) * 300
        ids = tuple(map(str, rows))
        truth_N = np.zeros(450, dtype=np.int64)
        candidate = Evaluation(ids, truth_N, probs(candidate_N[rows] > 0), names)
        champion = Evaluation(ids, truth_N, probs(champion_N[rows] > 0), names)
        verdict = decide(candidate, champion, POLICY, seed=number)
        by_name = {part.name: part for part in verdict.slices}
        on_mined.append(by_name["mined"].difference.value)  # type: ignore[union-attr]
        on_audit.append(by_name["audit"].difference.value)  # type: ignore[union-attr]
        mined_only += by_name["mined"].passed is True
        guarded += verdict.promote
    assert 0.12 < np.mean(on_mined) < 0.20
    assert abs(np.mean(on_audit)) < 0.005
    assert mined_only / rounds > 0.75
    assert guarded / rounds < 0.40

"""The gate's decisions: each case of the table in docs/gate.md, and its properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hardloop.core.errors import BadShape
from hardloop.core.records import Evaluation, SliceVerdict, Verdict
from registry.gate import GatePolicy, decide

POLICY = GatePolicy()


def pair(**slices: tuple[int, int, int]) -> tuple[Evaluation, Evaluation]:
    """(candidate, champion) on two classes; per slice (wins, losses, ties), half of the ties right, half wrong."""
    names: list[str] = []
    candidate_hits: list[bool] = []
    champion_hits: list[bool] = []
    for name, (wins, losses, ties) in slices.items():
        names += [name] * (wins + losses + ties)
        tied = [bool(i % 2) for i in range(ties)]
        candidate_hits += [True] * wins + [False] * losses + tied
        champion_hits += [False] * wins + [True] * losses + tied
    truth_N = np.arange(len(names)) % 2
    candidate = Evaluation(
        tuple(f"{name}-{i}" for i, name in enumerate(names)), truth_N, two_class(truth_N, candidate_hits), tuple(names)
    )
    return candidate, replace(candidate, probs_NC=two_class(truth_N, champion_hits))


def two_class(truth_N: np.ndarray, hits: list[bool]) -> np.ndarray:
    named_N = np.where(hits, truth_N, 1 - truth_N)
    return np.where(np.arange(2) == named_N[:, None], 0.75, 0.25)


def passed(verdict: Verdict) -> dict[str, bool | None]:
    return {part.name: part.passed for part in verdict.slices}


def part(verdict: Verdict, name: str) -> SliceVerdict:
    return next(part for part in verdict.slices if part.name == name)


def judge(**slices: tuple[int, int, int]) -> Verdict:
    return decide(*pair(**slices), POLICY, seed=0, champion_version="3")


# ---------------------------------------------------------------- the table of cases


def test_better_on_mined_and_not_worse_elsewhere_is_promoted() -> None:
    verdict = judge(mined=(30, 8, 62), audit=(14, 6, 180), legacy=(10, 7, 383))
    assert verdict.promote
    assert passed(verdict) == {"mined": True, "audit": True, "legacy": True}
    mined = part(verdict, "mined")
    assert mined.n == 100
    assert mined.difference is not None
    assert mined.champion is not None
    assert mined.difference.value == pytest.approx(0.22)
    assert mined.candidate.value == pytest.approx(0.61)
    assert mined.champion.value == pytest.approx(0.39)
    assert verdict.reason.startswith("Better on mined: +22.0 points [")
    assert "not worse on audit: +4.0 points" in verdict.reason
    assert "and legacy: +0.8 points" in verdict.reason
    assert verdict.champion_version == "3"


@pytest.mark.parametrize("guard", ["audit", "legacy"])
def test_a_loss_on_a_guard_slice_refuses_what_is_better_on_mined(guard: str) -> None:
    verdict = judge(mined=(30, 8, 62), **{guard: (4, 20, 376)})
    assert not verdict.promote
    assert passed(verdict) == {"mined": True, guard: False}
    assert verdict.reason.startswith(f"Not shown to be no worse than the champion on {guard}: -4.0 points [")
    assert verdict.reason.endswith("-3.0 allowed.")


def test_a_guard_that_cannot_rule_the_margin_out_refuses() -> None:
    verdict = judge(mined=(30, 8, 62), audit=(15, 15, 90))  # equal so far, but 120 samples could hide five points
    assert passed(verdict) == {"mined": True, "audit": False}
    assert not verdict.promote


def test_no_difference_on_mined_is_refused_where_no_guard_shows_one() -> None:
    verdict = judge(mined=(12, 10, 78), audit=(14, 6, 380))
    assert not verdict.promote
    assert passed(verdict) == {"mined": False, "audit": True}
    assert verdict.reason.startswith("Not shown to be better than the champion on mined: +2.0 points")


def test_a_gain_shown_on_the_first_guard_carries_one_that_mined_is_too_few_to_show() -> None:
    verdict = judge(mined=(8, 4, 16), audit=(30, 4, 366))
    assert verdict.promote
    assert passed(verdict) == {"mined": False, "audit": True}
    assert verdict.reason.startswith("Better on audit: +6.5 points [")
    assert "ahead on mined: +14.3 points [" in verdict.reason


@pytest.mark.parametrize("mined", [(4, 4, 20), (4, 6, 18)])
def test_no_guard_carries_a_candidate_that_is_not_ahead_on_mined(mined: tuple[int, int, int]) -> None:
    assert not judge(mined=mined, audit=(30, 4, 366)).promote


def test_only_the_first_guard_that_is_large_enough_may_carry_a_candidate() -> None:
    assert not judge(mined=(8, 4, 16), audit=(12, 8, 380), legacy=(30, 4, 366)).promote
    assert judge(mined=(8, 4, 16), audit=(2, 1, 20), legacy=(30, 4, 366)).promote


def test_guards_too_small_to_say_do_not_stop_what_is_better_on_mined() -> None:
    verdict = judge(mined=(30, 8, 62), audit=(1, 2, 20))
    assert verdict.promote
    assert passed(verdict) == {"mined": True, "audit": None}
    assert verdict.reason.endswith("no guard slice was large enough to object (audit has 23).")


def test_a_policy_may_require_a_guard() -> None:
    strict = GatePolicy(require_guard=True)
    refused = decide(*pair(mined=(30, 8, 62), audit=(1, 2, 20)), strict, seed=0)
    assert not refused.promote
    assert "No guard slice has the 100 samples this gate requires (audit has 23)" in refused.reason
    assert decide(*pair(mined=(30, 8, 62), audit=(14, 6, 180)), strict, seed=0).promote


def test_a_small_guard_still_convicts_where_its_few_samples_prove_a_loss() -> None:
    verdict = judge(mined=(30, 8, 62), audit=(0, 12, 18))
    assert not verdict.promote
    assert passed(verdict) == {"mined": True, "audit": False}


def test_too_little_mined_falls_back_to_the_first_guard_that_is_large_enough() -> None:
    better = judge(mined=(3, 0, 2), audit=(25, 6, 169), legacy=(10, 7, 383))
    assert better.promote
    assert passed(better)["mined"] is None
    assert better.reason.startswith("Too little was mined to judge by (mined has 5), but better on audit: +9.5 points")
    level = judge(mined=(3, 0, 2), audit=(9, 6, 385), legacy=(40, 7, 353))
    assert not level.promote  # audit speaks alone: a second try on legacy would double the error rate
    assert "not shown to be better on audit" in level.reason


def test_no_slice_large_enough_is_refused_saying_what_is_needed() -> None:
    verdict = judge(mined=(9, 0, 2), legacy=(5, 0, 20))
    assert not verdict.promote
    assert verdict.reason == (
        "No slice is large enough to judge by (mined has 11, legacy has 25): the gate needs 20 newly mined or "
        "100 audit or legacy samples; label more."
    )


def test_no_sample_at_all_is_refused() -> None:
    empty = Evaluation((), np.zeros(0, dtype=np.int64), np.zeros((0, 2)), ())
    assert not decide(empty, None, POLICY, 0).promote
    assert not decide(empty, empty, POLICY, 0).promote


def test_what_the_champion_trained_on_does_not_count_as_mined() -> None:
    candidate, champion = pair(mined=(0, 30, 70), audit=(14, 6, 180))
    assert not decide(candidate, champion, POLICY, 0).promote
    lessons = frozenset(i for i, part in zip(candidate.ids, candidate.slices, strict=True) if part == "mined")
    some = list(lessons)[:40]
    assert part(decide(candidate, champion, POLICY, 0, champion_trained_on=some), "mined").n == 60
    without = decide(candidate, champion, POLICY, 0, champion_trained_on=lessons)
    assert passed(without) == {"audit": True}
    assert part(without, "audit").n == 200


# ---------------------------------------------------------------- the first champion


def test_the_first_model_is_promoted_when_it_beats_the_commonest_class() -> None:
    candidate, _ = pair(mined=(60, 10, 0))
    verdict = decide(candidate, None, POLICY, 0)
    assert verdict.promote
    assert verdict.champion_version is None
    assert verdict.reason.startswith("First champion, better than chance: 85.7 % [75.7 %, 92.1 %] of 70 held-out")
    assert verdict.reason.endswith("the commonest class alone gives 50.0 %.")


def test_the_first_model_is_refused_when_naming_the_commonest_class_does_as_well() -> None:
    truth_N = np.array([0] * 90 + [1] * 10)
    always_first = Evaluation(tuple(map(str, range(100))), truth_N, np.tile([0.9, 0.1], (100, 1)), ("audit",) * 100)
    verdict = decide(always_first, None, POLICY, 0)
    assert not verdict.promote
    assert "90.0 % [82.6 %, 94.5 %] of 100" in verdict.reason


# ---------------------------------------------------------------- properties

counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 150))


@settings(deadline=None, max_examples=40)
@given(mined=counts, audit=counts, seed=st.integers(0, 2**31))
def test_exchanging_the_models_flips_every_difference(mined, audit, seed) -> None:  # type: ignore[no-untyped-def]
    candidate, champion = pair(mined=mined, audit=audit)
    there, back = decide(candidate, champion, POLICY, seed), decide(champion, candidate, POLICY, seed)
    for one, other in zip(there.slices, back.slices, strict=True):
        assert one.difference is not None
        assert other.difference is not None
        assert other.difference.value == -one.difference.value
        assert (other.difference.low, other.difference.high) == (-one.difference.high, -one.difference.low)
        assert one.candidate == other.champion
    assert not (there.promote and back.promote)


@settings(deadline=None, max_examples=40)
@given(ties=st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400)), seed=st.integers(0, 2**31))
def test_a_model_is_never_better_than_itself(ties: tuple[int, int, int], seed: int) -> None:
    same, _ = pair(mined=(0, 0, ties[0]), audit=(0, 0, ties[1]), legacy=(0, 0, ties[2]))
    verdict = decide(same, same, POLICY, seed)
    assert not verdict.promote
    assert passed(verdict).get("mined") is not True


@settings(deadline=None, max_examples=25)
@given(mined=counts, legacy=counts, seed=st.integers(0, 2**31), shuffle=st.randoms(use_true_random=False))
def test_the_verdict_does_not_depend_on_the_order_of_rows(mined, legacy, seed, shuffle) -> None:  # type: ignore[no-untyped-def]
    candidate, champion = pair(mined=mined, legacy=legacy)
    order = list(range(len(candidate.ids)))
    shuffle.shuffle(order)
    assert decide(reordered(candidate, order), champion, POLICY, seed) == decide(candidate, champion, POLICY, seed)


def reordered(evaluation: Evaluation, order: list[int]) -> Evaluation:
    return Evaluation(
        tuple(evaluation.ids[i] for i in order),
        evaluation.truth_N[order],
        evaluation.probs_NC[order],
        tuple(evaluation.slices[i] for i in order),
    )


def test_a_further_slice_does_not_change_what_the_others_say() -> None:
    alone = judge(mined=(20, 9, 71))
    together = judge(mined=(20, 9, 71), audit=(14, 6, 180))
    assert part(alone, "mined") == part(together, "mined")


# ---------------------------------------------------------------- refused input


def test_evaluations_of_different_samples_are_refused_naming_one() -> None:
    candidate, champion = pair(mined=(3, 1, 6))
    fewer = reordered(champion, list(range(9)))
    with pytest.raises(BadShape, match=r"on 9 samples, the candidate on 10, and 1 of the latter .*first: mined-9"):
        decide(candidate, fewer, POLICY, 0)
    with pytest.raises(BadShape, match="different true classes"):
        decide(candidate, replace(champion, truth_N=1 - champion.truth_N), POLICY, 0)
    three = np.full((10, 3), 1 / 3)
    with pytest.raises(BadShape, match="knows 2 classes, the champion 3"):
        decide(candidate, replace(champion, probs_NC=three), POLICY, 0)


def test_a_policy_refuses_what_it_does_not_know() -> None:
    for wrong in ({"margn": 0.1}, {"confidence": 1.0}, {"margin": -0.1}, {"resamples": 10}):
        with pytest.raises(ValidationError):
            GatePolicy(**wrong)  # type: ignore[arg-type]

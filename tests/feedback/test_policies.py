"""Capture policies on numbers small enough to check by hand, and what must hold for all."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feedback.policies import NAMES, CapturePolicy, decide, jensen_shannon, normalised_entropy
from hardloop.core import ids

NONE = {"low_confidence": None, "small_margin": None, "high_entropy": None, "disagreement": None,
        "audit_share": 0.0, "exploration_share": 0.0}  # fmt: skip


def taken(policy: dict, probs: list[float], members: list[list[float]] | None = None, sample="s", group="g"):
    members_MC = None if members is None else np.array(members)
    return decide(CapturePolicy(**NONE | policy), "shoes", sample, group, np.array(probs), members_MC)


@pytest.mark.parametrize(
    ("policy", "probs", "members", "values"),
    [
        ({"low_confidence": 0.6}, [0.5, 0.3, 0.2], None, {"low_confidence": 0.5}),
        ({"low_confidence": 0.6}, [0.6, 0.3, 0.1], None, {}),
        ({"small_margin": 0.3}, [0.5, 0.3, 0.2], None, {"small_margin": 0.2}),
        ({"small_margin": 0.2}, [0.5, 0.25, 0.25], None, {}),
        ({"high_entropy": 0.99}, [0.5, 0.5], None, {"high_entropy": 1.0}),
        ({"high_entropy": 0.5}, [1.0, 0.0], None, {}),
        ({"disagreement": 1.0}, [0.6, 0.4], [[0.4, 0.6]], {"disagreement": 0.0290}),
        ({"disagreement": 0.2}, [1.0, 0.0], [[0.6, 0.4]], {"disagreement": 0.2365}),
        ({"disagreement": 0.2}, [0.9, 0.1], [[0.8, 0.2]], {}),
        ({"disagreement": 0.0}, [0.9, 0.1], None, {}),
        ({"take_all": True}, [0.9, 0.1], None, {"take_all": 1.0}),
        ({"audit_share": 1.0}, [0.9, 0.1], None, {"audit": 1.0}),
        ({"exploration_share": 1.0}, [0.9, 0.1], None, {"exploration": 1.0}),
        ({"low_confidence": 0.6, "small_margin": 0.5}, [0.5, 0.5], None, {"low_confidence": 0.5, "small_margin": 0.0}),
    ],
)
def test_each_policy_takes_by_its_number_and_reports_it(policy, probs, members, values):
    result = taken(policy, probs, members)
    assert dict(result.policies) == pytest.approx(values, abs=1e-4)
    assert set(result.policies) <= set(NAMES)


def test_two_certain_members_of_different_opinions_disagree_wholly():
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([[0.0, 1.0]])) == pytest.approx(1.0)
    assert jensen_shannon(np.array([1.0, 0.0, 0.0]), np.eye(3)[1:]) == pytest.approx(1.0)


def test_entropy_of_a_known_distribution():
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)) / math.log(3)
    assert normalised_entropy(np.array([0.5, 0.25, 0.25])) == pytest.approx(expected)


def test_the_audit_slice_goes_by_group_and_is_the_draw_that_all_of_the_product_makes():
    groups = [f"camera-{n}" for n in range(4000)]
    audited = [g for g in groups if taken({"audit_share": 0.05}, [0.9, 0.1], sample=f"x{g}", group=g).audit]
    assert audited == [g for g in groups if ids.reserved(g, "shoes", 0.05)]
    assert 140 <= len(audited) <= 260  # 200 expected; four standard deviations are 55
    assert taken({"audit_share": 0.05}, [0.9, 0.1], sample="another", group=audited[0]).policies == {"audit": 0.05}


def test_exploration_goes_by_sample_logs_its_propensity_and_does_not_follow_the_audit_draw():
    policy = {"exploration_share": 0.1, "audit_share": 0.1}
    results = [taken(policy, [0.9, 0.1], None, f"s{n}", f"s{n}") for n in range(4000)]
    explored = [r for r in results if "exploration" in r.policies]
    assert all(r.propensity == 0.1 for r in explored)
    assert all(r.propensity is None for r in results if "exploration" not in r.policies)
    assert 320 <= len(explored) <= 480
    both = sum(r.audit for r in explored)
    assert 16 <= both <= 64  # independent draws: 40 expected


@pytest.mark.parametrize("wrong", [{"low_confidence": 1.5}, {"audit_share": -0.1}, {"audit_share": None}, {"typo": 1}])
def test_impossible_policies_are_refused(wrong):
    with pytest.raises(ValidationError):
        CapturePolicy(**wrong)


@st.composite
def distributions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    classes, members = draw(st.integers(2, 8)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sharp = draw(st.sampled_from([0.01, 0.3, 1.0, 30.0]))
    rows = rng.dirichlet(np.full(classes, sharp), members + 1)
    return rows[0].astype(np.float32), rows[1:].astype(np.float32)


@settings(deadline=None)
@given(distributions(), st.randoms(use_true_random=False))
def test_numbers_stay_in_range_and_do_not_depend_on_the_order_of_classes_or_members(rows, random):
    probs_C, members_MC = rows
    divergence, entropy = jensen_shannon(probs_C, members_MC), normalised_entropy(probs_C)
    assert 0.0 <= divergence <= 1.0
    assert 0.0 <= entropy <= 1.0
    classes = random.sample(range(len(probs_C)), len(probs_C))
    members = random.sample(range(len(members_MC)), len(members_MC))
    assert jensen_shannon(probs_C[classes], members_MC[members][:, classes]) == pytest.approx(divergence, abs=1e-6)
    assert jensen_shannon(probs_C, np.repeat(probs_C[None], 3, axis=0)) == pytest.approx(0.0, abs=1e-7)


@settings(deadline=None)
@given(distributions(), st.floats(0, 1), st.floats(0, 1))
def test_a_looser_threshold_takes_everything_that_a_stricter_one_takes(rows, one, other):
    probs_C, members_MC = rows
    strict, loose = sorted((one, other))
    for name in ("low_confidence", "small_margin"):
        stricter = decide(CapturePolicy(**NONE | {name: strict}), "shoes", "s", "g", probs_C, members_MC)
        looser = decide(CapturePolicy(**NONE | {name: loose}), "shoes", "s", "g", probs_C, members_MC)
        assert set(stricter.policies) <= set(looser.policies)
    for name in ("high_entropy", "disagreement"):
        stricter = decide(CapturePolicy(**NONE | {name: loose}), "shoes", "s", "g", probs_C, members_MC)
        looser = decide(CapturePolicy(**NONE | {name: strict}), "shoes", "s", "g", probs_C, members_MC)
        assert set(stricter.policies) <= set(looser.policies)

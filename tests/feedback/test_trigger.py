"""The retrain trigger: by hand on small numbers, and its promises as properties."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feedback.trigger import TriggerPolicy, TriggerState, decide

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
POLICY = TriggerPolicy(min_new_labels=3, max_age_s=3600, debounce_s=60, max_wait_s=300, cooldown_s=600)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def labels(*seconds: float, **rest) -> TriggerState:
    return TriggerState.from_moments([at(s) for s in seconds], POLICY, **rest)


def test_too_few_labels_wait_for_more_or_for_the_age_of_the_oldest():
    decision = decide(POLICY, labels(0, 10), at(20))
    assert (decision.fire, decision.reason, decision.at) == (False, "", at(3600))
    assert decision.waits_for == "1 more labels (2 of 3), or the oldest label's age at 2026-11-23 13:00:00 UTC"


def test_nothing_at_all_waits_for_labels_and_never_by_time_alone():
    decision = decide(POLICY, labels(), at(10**6))
    assert (decision.fire, decision.waits_for, decision.at) == (False, "3 more labels (0 of 3)", None)


def test_enough_labels_wait_for_a_pause_and_then_fire():
    waiting = decide(POLICY, labels(0, 10, 20), at(30))
    assert (waiting.fire, waiting.at) == (False, at(80))
    assert waiting.waits_for == "a pause in the labelling, until 2026-11-23 12:01:20 UTC"
    fired = decide(POLICY, labels(20, 0, 10), at(80))
    assert (fired.fire, fired.reason, fired.waits_for) == (True, "3 unused labels, of 3 needed", "")


def test_labelling_without_a_pause_is_waited_for_at_most_max_wait_after_the_third_label():
    steady = [30.0 * n for n in range(13)]  # the third comes at 60, the last at 360
    assert not decide(POLICY, labels(*steady[:12]), at(359)).fire
    assert decide(POLICY, labels(*steady), at(360)).fire


def test_one_old_label_fires_by_its_age():
    assert not decide(POLICY, labels(0), at(3599)).fire
    fired = decide(POLICY, labels(0), at(3600))
    assert (fired.fire, fired.reason) == (True, "1 unused labels, the oldest for 3600 s or more")


def test_age_counts_for_nothing_where_it_is_switched_off():
    policy = POLICY.model_copy(update={"max_age_s": None})
    decision = decide(policy, labels(0), at(10**7))
    assert (decision.fire, decision.at) == (False, None)


def test_the_pause_after_a_training_is_kept_and_doubles_with_every_failure():
    for failures, pause_s in ((0, 600), (1, 1200), (3, 4800), (6, 38_400), (60, 38_400)):
        state = labels(0, 0, 0, started_at=at(-50), ended_at=at(0), failures=failures)
        waiting = decide(POLICY, state, at(pause_s - 1))
        assert (waiting.fire, waiting.at) == (False, at(pause_s))
        assert "the pause after the last training" in waiting.waits_for
        assert decide(POLICY, state, at(pause_s)).fire


def test_a_persons_request_waits_for_neither_pause_nor_labels_but_for_a_running_training():
    state = labels(manual_at=at(5), started_at=at(-10), ended_at=at(0))
    assert decide(POLICY, state, at(6)).reason == "a person asked for it"
    assert decide(POLICY, state, at(6)).fire
    running = decide(POLICY, state.model_copy(update={"training": True}), at(6))
    assert (running.fire, running.reason) == (False, "a person asked for it")
    assert running.waits_for == "the running training to end"


def test_a_request_is_served_by_the_training_that_started_after_it():
    assert not decide(POLICY, labels(manual_at=at(5), started_at=at(6), ended_at=at(7)), at(8)).fire


def test_a_clock_that_runs_ahead_holds_a_training_back_by_as_much_and_no_more():
    ahead = labels(100, 100, 100)
    assert decide(POLICY, ahead, at(0)).at == at(160)
    assert decide(POLICY, ahead, at(160)).fire


@pytest.mark.parametrize(
    "wrong",
    [
        {"new_labels": 1},
        {"oldest_at": NOON, "newest_at": NOON},
        {"new_labels": 1, "oldest_at": NOON},
        {"new_labels": -1},
        {"manual_at": datetime(2026, 1, 1)},
        {"surprise": 1},
    ],
)
def test_states_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(ValidationError):
        TriggerState(**wrong)


# ------------------------------------------------------------ properties

seconds = st.integers(-10_000, 10_000)
policies = st.builds(
    TriggerPolicy,
    min_new_labels=st.integers(1, 6),
    max_age_s=st.none() | st.integers(0, 5000),
    debounce_s=st.integers(0, 500),
    max_wait_s=st.integers(0, 1000),
    cooldown_s=st.integers(0, 3000),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[TriggerPolicy, TriggerState, datetime]:
    policy = draw(policies)
    ended = draw(st.none() | seconds)
    state = TriggerState.from_moments(
        [at(s) for s in draw(st.lists(seconds, max_size=12))],
        policy,
        manual_at=draw(st.none() | seconds.map(at)),
        training=draw(st.booleans()),
        started_at=None if ended is None else at(ended - 10),
        ended_at=None if ended is None else at(ended),
        failures=draw(st.integers(0, 8)),
    )
    return policy, state, at(draw(seconds))


@settings(deadline=None)
@given(situations())
def test_it_never_fires_while_a_training_runs(situation):
    policy, state, now = situation
    assert not decide(policy, state.model_copy(update={"training": True}), now).fire


@settings(deadline=None)
@given(situations())
def test_it_always_says_why_it_fires_or_what_it_waits_for(situation):
    decision = decide(*situation)
    assert decision.fire == (decision.waits_for == "")
    assert decision.reason or not decision.fire


@settings(deadline=None)
@given(situations())
def test_without_labels_and_without_a_request_it_never_fires(situation):
    policy, state, now = situation
    bare = TriggerState.from_moments([], policy, started_at=state.started_at, ended_at=state.ended_at)
    assert not decide(policy, bare, now).fire


@settings(deadline=None)
@given(situations())
def test_looking_again_when_it_says_to_brings_it_forward_and_waiting_ends(situation):
    policy, state, now = situation
    for _ in range(5):
        decision = decide(policy, state, now)
        if decision.at is None:
            break
        assert decision.at > now
        now = decision.at
    assert decision.fire or state.training or state.new_labels < policy.min_new_labels


@settings(deadline=None)
@given(situations(), st.integers(0, 5000))
def test_once_due_time_alone_never_takes_a_firing_back(situation, later):
    policy, state, now = situation
    if decide(policy, state, now).fire:
        assert decide(policy, state, now + timedelta(seconds=later)).fire


@settings(deadline=None)
@given(situations())
def test_a_label_is_never_held_back_longer_than_the_policy_allows(situation):
    policy, state, now = situation
    if state.training or state.new_labels < policy.min_new_labels or state.reached_at is None:
        return
    latest = max(now, state.reached_at + timedelta(seconds=policy.max_wait_s))
    if state.ended_at is not None:
        shortest_s = max(policy.cooldown_s, 15.0) if state.failures else policy.cooldown_s
        latest = max(latest, state.ended_at + timedelta(seconds=shortest_s * 2 ** min(state.failures, 6)))
    assert decide(policy, state, latest).fire


@settings(deadline=None)
@given(policies, st.lists(seconds, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_moments_does_not_matter(policy, when, random):
    moments = [at(s) for s in when]
    shuffled = random.sample(moments, len(moments))
    assert TriggerState.from_moments(shuffled, policy) == TriggerState.from_moments(moments, policy)

"""A policy can be switched off where a settings file has no null."""

from feedback.policies import CapturePolicy
from feedback.trigger import TriggerPolicy
from miner.policy import MiningPolicy


def test_false_switches_a_capture_policy_off_instead_of_setting_it_to_zero() -> None:
    policy = CapturePolicy.model_validate({"high_entropy": False, "disagreement": False, "low_confidence": 0})
    assert policy.high_entropy is None
    assert policy.disagreement is None
    assert policy.low_confidence == 0.0


def test_false_switches_the_age_rule_and_near_duplicates_off() -> None:
    assert TriggerPolicy.model_validate({"max_age_s": False}).max_age_s is None
    assert MiningPolicy.model_validate({"near_duplicate_similarity": False}).near_duplicate_similarity is None

"""Which predictions are worth capturing: pure functions from one prediction to the policies that take it.

Every policy is a threshold on a number in [0, 1] that a person can check by hand; policies compose by union, and each
captured record names those that took it with the number each of them saw.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from hardloop.core import ids
from hardloop.core.records import Floats

Share = Annotated[float, Field(ge=0.0, le=1.0)]

NAMES = ("low_confidence", "small_margin", "high_entropy", "disagreement", "audit", "exploration", "take_all")


class CapturePolicy(BaseModel):
    """What to capture. A threshold of None (in TOML: false) switches that policy off.

    low_confidence: take when the largest probability is below this.
    small_margin: take when the two largest probabilities are less than this apart.
    high_entropy: take when the entropy, divided by ln(C) so that 1 is a uniform guess, is above this.
    disagreement: take when a committee member's likeliest class is another one, or when the Jensen-Shannon divergence
        of all members, divided by its maximum, is above this.
    audit_share: the part of all groups reserved as the audit holdout, all of whose samples are taken and marked. It
        must equal the loop's audit share, so that the whole product draws the same holdout.
    exploration_share: the chance of any sample to be taken by a uniform draw; logged as its propensity.
    take_all: take everything, to build a pool before there is a model worth asking.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("low_confidence", "small_margin", "high_entropy", "disagreement", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        # TOML has no null; without this `false` would be read as the threshold 0.
        return None if value is False else value

    low_confidence: Share | None = 0.6
    small_margin: Share | None = 0.15
    high_entropy: Share | None = None
    disagreement: Share | None = 0.1
    audit_share: Share = 0.05
    exploration_share: Share = 0.01
    take_all: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """Which policies take a sample and the number each saw; whether its group is audited; its exploration propensity.

    An empty `policies` means that the sample is not captured.
    """

    policies: Mapping[str, float]
    audit: bool
    propensity: float | None


def decide(
    policy: CapturePolicy, loop: str, sample_id: str, group_id: str, probs_C: Floats, member_probs_MC: Floats | None
) -> Taken:
    """Which policies take one prediction.

    probs_C: the champion's C >= 2 probabilities, summing to 1; member_probs_MC: M >= 1 further members, or None.
    The uniform draws hash the ids and the loop's name: every process comes to the same answer, and asking again
    changes nothing. The values of audit and exploration are the chances with which they take a sample.
    """
    values: dict[str, float] = {}
    if policy.low_confidence is not None or policy.small_margin is not None:
        first, second = _two_largest(probs_C)
        if policy.low_confidence is not None and first < policy.low_confidence:
            values["low_confidence"] = first
        if policy.small_margin is not None and first - second < policy.small_margin:
            values["small_margin"] = first - second
    if policy.high_entropy is not None and (entropy := normalised_entropy(probs_C)) > policy.high_entropy:
        values["high_entropy"] = entropy
    if policy.disagreement is not None and member_probs_MC is not None:
        divergence = jensen_shannon(probs_C, member_probs_MC)
        if divergence > policy.disagreement or bool((member_probs_MC.argmax(axis=1) != probs_C.argmax()).any()):
            values["disagreement"] = divergence
    audit = ids.reserved(group_id, loop, policy.audit_share)
    if audit:
        values["audit"] = policy.audit_share
    explored = ids.uniform("explore", loop, sample_id) < policy.exploration_share
    if explored:
        values["exploration"] = policy.exploration_share
    if policy.take_all:
        values["take_all"] = 1.0
    return Taken(values, audit, policy.exploration_share if explored else None)


def _two_largest(probs_C: Floats) -> tuple[float, float]:
    second, first = np.partition(probs_C, -2)[-2:].tolist()
    return first, second


def normalised_entropy(probs_C: Floats) -> float:
    """Shannon entropy over ln(C), in [0, 1]: 0 for a certain answer, 1 for a uniform guess."""
    return _clip(_entropy(probs_C[None, :])[0] / math.log(len(probs_C)))


def jensen_shannon(probs_C: Floats, member_probs_MC: Floats) -> float:
    """Jensen-Shannon divergence of the champion and its M members with equal weights, over its maximum: in [0, 1].

    The maximum is ln(min(M + 1, C)): all of M + 1 certain of different classes. Source: Lin 1991, generalised form.
    """
    members = len(member_probs_MC) + 1
    rows_NC = np.empty((members + 1, len(probs_C)), dtype=np.float64)
    rows_NC[0], rows_NC[1:members] = probs_C, member_probs_MC
    rows_NC[members] = rows_NC[:members].sum(axis=0) / members
    entropy_N = _entropy(rows_NC)
    divergence = entropy_N[members] - entropy_N[:members].sum() / members
    return _clip(divergence / math.log(min(members, len(probs_C))))


def _entropy(probs_NC: Floats) -> Floats:
    probs_NC = np.maximum(probs_NC, 1e-300, dtype=np.float64)  # 0 ln 0 is 0, and so is this product
    return -np.asarray((probs_NC * np.log(probs_NC)).sum(axis=1))


def _clip(value: float) -> float:
    return min(1.0, max(0.0, float(value)))

"""When to train again: a pure decision from what is known now, so that every caller comes to the same answer.

A training is due when enough labels are unused, when the oldest of them has waited long enough, or when a person asks.
It then waits for people to pause, for the last training to be long enough ago, and always for a running one to end.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

Seconds = Annotated[float, Field(ge=0.0, le=10 * 366 * 86_400.0)]
MAX_DOUBLINGS = 6
FIRST_RETRY_S = 15.0  # half the pause before a failed training is tried again where cooldown_s is shorter


class TriggerPolicy(BaseModel):
    """When unused labels start a training.

    min_new_labels: this many make one due. max_age_s: so does an unused label of this age; None (in TOML: false) for
    never. debounce_s: a due training waits until no label came for this long, but at most max_wait_s after it became
    due.
    cooldown_s: pause between the end of one training and the start of the next; doubled for every failure in a row, up
        to 64-fold, so that a training that cannot succeed does not run all night.
    A person's request waits for neither.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("max_age_s", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        # TOML has no null; without this `false` would be read as an age of 0.
        return None if value is False else value

    min_new_labels: Annotated[int, Field(ge=1)] = 50
    max_age_s: Seconds | None = 7 * 86_400.0
    debounce_s: Seconds = 60.0
    max_wait_s: Seconds = 900.0
    cooldown_s: Seconds = 600.0


class TriggerState(BaseModel):
    """What is known of a loop's labels and trainings.

    new_labels: labels created, changed or deleted since the data of the last successful training were fixed; each
        counts once. oldest_at, newest_at: when the first and last of them happened. reached_at: when there were
        `min_new_labels` of them. All three None where they do not exist (`from_moments` works them out).
    manual_at: when a person last asked. training: one runs or waits to run. started_at, ended_at: of the last training,
        successful or not. failures: how many failed in a row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    new_labels: Annotated[int, Field(ge=0)] = 0
    oldest_at: AwareDatetime | None = None
    newest_at: AwareDatetime | None = None
    reached_at: AwareDatetime | None = None
    manual_at: AwareDatetime | None = None
    training: bool = False
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    failures: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _moments_belong_to_labels(self) -> Self:
        if not (self.new_labels > 0) == (self.oldest_at is not None) == (self.newest_at is not None):
            raise ValueError("oldest_at and newest_at come with new_labels and not without")
        return self

    @classmethod
    def from_moments(
        cls,
        moments: Iterable[datetime],
        policy: TriggerPolicy,
        *,
        manual_at: datetime | None = None,
        training: bool = False,
        started_at: datetime | None = None,
        ended_at: datetime | None = None,
        failures: int = 0,
    ) -> Self:
        """The state from the moments at which labels were created, changed or deleted, in any order."""
        ordered = sorted(moments)
        enough = len(ordered) >= policy.min_new_labels
        return cls(
            new_labels=len(ordered),
            oldest_at=ordered[0] if ordered else None,
            newest_at=ordered[-1] if ordered else None,
            reached_at=ordered[policy.min_new_labels - 1] if enough else None,
            manual_at=manual_at,
            training=training,
            started_at=started_at,
            ended_at=ended_at,
            failures=failures,
        )


class TriggerDecision(BaseModel):
    """Whether to start a training now.

    reason: why it is due, "" when it is not. waits_for: what is missing, "" when it fires. at: when to look again if
    nothing else happens; None when only an event can change the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fire: bool
    reason: str
    waits_for: str
    at: AwareDatetime | None = None


def decide(policy: TriggerPolicy, state: TriggerState, now: datetime) -> TriggerDecision:
    """Whether a training starts now.

    now: with a time zone, by the clock the state's moments come from; a moment that lies ahead of it holds a training
    back by as much. At most one training may act on the answer: the caller claims it by a unique key, as two callers
    may ask at once.
    """
    manual = state.manual_at is not None and (state.started_at is None or state.manual_at > state.started_at)
    due = _due(policy, state, now)
    if state.training:
        reason = _MANUAL if manual else due[1] if due else ""
        return TriggerDecision(fire=False, reason=reason, waits_for="the running training to end")
    if manual:
        return TriggerDecision(fire=True, reason=_MANUAL, waits_for="")
    if due is None:
        return _waits_for_labels(policy, state)
    since, reason = due
    ready_at = max(_quiet_at(policy, state, since), _cool_at(policy, state))
    if now >= ready_at:
        return TriggerDecision(fire=True, reason=reason, waits_for="")
    cooling = _cool_at(policy, state) >= ready_at
    what = "the pause after the last training" if cooling else "a pause in the labelling"
    return TriggerDecision(fire=False, reason=reason, waits_for=f"{what}, until {_clock(ready_at)}", at=ready_at)


_MANUAL = "a person asked for it"
_EARLIEST = datetime.min.replace(tzinfo=UTC)


def _due(policy: TriggerPolicy, state: TriggerState, now: datetime) -> tuple[datetime, str] | None:
    """Since when a training is due, and why; the earlier of both rules."""
    rules = []
    if state.new_labels >= policy.min_new_labels and state.newest_at is not None:
        reached_at = state.reached_at or state.newest_at
        rules.append((reached_at, f"{state.new_labels} unused labels, of {policy.min_new_labels} needed"))
    aged_at = _aged_at(policy, state)
    if aged_at is not None and aged_at <= now:
        rules.append((aged_at, f"{state.new_labels} unused labels, the oldest for {policy.max_age_s:g} s or more"))
    return min(rules, default=None)


def _aged_at(policy: TriggerPolicy, state: TriggerState) -> datetime | None:
    if state.oldest_at is None or policy.max_age_s is None:
        return None
    return state.oldest_at + timedelta(seconds=policy.max_age_s)


def _quiet_at(policy: TriggerPolicy, state: TriggerState, since: datetime) -> datetime:
    """When labelling has paused for long enough, or has been waited for long enough."""
    newest_at = since if state.newest_at is None else state.newest_at
    return min(newest_at + timedelta(seconds=policy.debounce_s), since + timedelta(seconds=policy.max_wait_s))


def _cool_at(policy: TriggerPolicy, state: TriggerState) -> datetime:
    if state.ended_at is None:
        return _EARLIEST
    pause_s = policy.cooldown_s
    if state.failures:
        pause_s = max(policy.cooldown_s, FIRST_RETRY_S) * 2 ** min(state.failures, MAX_DOUBLINGS)
    return state.ended_at + timedelta(seconds=pause_s)


def _waits_for_labels(policy: TriggerPolicy, state: TriggerState) -> TriggerDecision:
    missing = f"{policy.min_new_labels - state.new_labels} more labels ({state.new_labels} of {policy.min_new_labels})"
    aged_at = _aged_at(policy, state)
    if aged_at is None:
        return TriggerDecision(fire=False, reason="", waits_for=missing)
    waits_for = f"{missing}, or the oldest label's age at {_clock(aged_at)}"
    return TriggerDecision(fire=False, reason="", waits_for=waits_for, at=aged_at)


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"

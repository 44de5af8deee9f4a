"""The gate: whether a candidate takes the champion's place. Pure; the reasoning is in `docs/gate.md`."""

import zlib
from collections.abc import Collection, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hardloop.core import evaluations
from hardloop.core.errors import BadShape
from hardloop.core.ids import settings_digest
from hardloop.core.records import Evaluation, SliceVerdict, Verdict
from registry.intervals import paired_difference, wilson

BETTER = "better"
NOT_WORSE = "not worse"
BETTER_THAN_CHANCE = "better than chance"

MINED = "mined"
GUARDS = ("audit", "legacy")  # the order in which they speak where nothing was mined


class GatePolicy(BaseModel):
    """What the gate asks for.

    margin: how much accuracy (a share) a candidate may lose on a guard slice and still pass as not worse.
    confidence: of every interval, two-sided; a claim is wrong with probability (1 - confidence) / 2 at most, nominally.
    resamples: bootstrap resamples per slice.
    min_mined, min_guard: samples below which a slice is too small to decide. A guard of 150 clears two equal models
    that differ on 4 % of the samples in 38 % of all cases, one of 400 in 85 %: docs/gate.md has the table.
    require_guard: refuse while no guard slice is large enough, instead of promoting on the mined slice alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin: Annotated[float, Field(ge=0, lt=1)] = 0.03
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=1_000, le=1_000_000)] = 10_000
    min_mined: Annotated[int, Field(ge=1)] = 20
    min_guard: Annotated[int, Field(ge=1)] = 100
    require_guard: bool = False

    @property
    def digest(self) -> str:
        """Names these settings in tags and events."""
        return settings_digest(self.model_dump())


def decide(
    candidate: Evaluation,
    champion: Evaluation | None,
    policy: GatePolicy,
    seed: int,
    *,
    champion_version: str | None = None,
    champion_trained_on: Collection[str] = frozenset(),
) -> Verdict:
    """Whether to promote the candidate, with the numbers of each slice and a sentence saying why.

    candidate: its predictions on samples it did not train on (out-of-fold ones for "mined").
    champion: its predictions on the same samples, in any order; None before the first promotion.
    champion_trained_on: ids the champion learned from. They are left out of "mined": there it would be judged on its
    own lessons, and the candidate, cross-fitted, would not.
    Equal arguments give equal verdicts, whatever the order of rows. Raises BadShape where the samples do not match.
    """
    evaluations.check(candidate, "the candidate's evaluation")
    if champion is None:
        return _first(candidate, policy, seed)
    evaluations.check(champion, "the champion's evaluation")
    candidate_N, champion_N = _paired_hits(candidate, champion)
    seen = champion_trained_on if isinstance(champion_trained_on, set | frozenset) else set(champion_trained_on)
    slice_N = np.array(
        ["" if part == MINED and i in seen else part for i, part in zip(candidate.ids, candidate.slices, strict=True)]
    )
    judged = tuple(
        _judge(name, candidate_N[slice_N == name], champion_N[slice_N == name], policy, seed)
        for name in (MINED, *GUARDS)
        if (slice_N == name).any()
    )
    promote, reason = _weigh(judged, policy)
    return Verdict(promote, reason, judged, champion_version, seed)


def _first(candidate: Evaluation, policy: GatePolicy, seed: int) -> Verdict:
    """No champion yet: better than always naming the commonest class, on all held-out samples together."""
    n = len(candidate.ids)
    if n == 0:
        return Verdict(False, "There is no held-out sample to judge the candidate by: label some.", (), None, seed)
    hits_N = candidate.probs_NC.argmax(axis=1) == candidate.truth_N
    slice_N = np.array(candidate.slices)
    judged = []
    for name in (MINED, *GUARDS):
        mine_N = slice_N == name
        if mine_N.any():
            accuracy = wilson(int(hits_N[mine_N].sum()), int(mine_N.sum()), policy.confidence)
            passed = accuracy.low > _majority(candidate.truth_N[mine_N])
            judged.append(SliceVerdict(name, BETTER_THAN_CHANCE, int(mine_N.sum()), None, accuracy, None, passed))
    accuracy, chance = wilson(int(hits_N.sum()), n, policy.confidence), _majority(candidate.truth_N)
    promote = accuracy.low > chance
    numbers = (
        f"{_percent(accuracy.value)} [{_percent(accuracy.low)}, {_percent(accuracy.high)}] of {n} held-out samples "
        f"right, the commonest class alone gives {_percent(chance)}"
    )
    if promote:
        return Verdict(True, f"First champion, better than chance: {numbers}.", tuple(judged), None, seed)
    return Verdict(False, f"Not shown to be better than chance: {numbers}; label more.", tuple(judged), None, seed)


def _judge(
    name: str, candidate_N: NDArray[np.bool_], champion_N: NDArray[np.bool_], policy: GatePolicy, seed: int
) -> SliceVerdict:
    n = len(candidate_N)
    wins, losses = int((candidate_N & ~champion_N).sum()), int((champion_N & ~candidate_N).sum())
    # A stream per slice: what one slice says does not depend on which others are there.
    stream = zlib.crc32(f"{seed}:{name}".encode())
    difference = paired_difference(wins, losses, n, policy.confidence, policy.resamples, stream)
    passed: bool | None
    if name == MINED:
        passed = difference.low > 0 if n >= policy.min_mined else None
    elif n >= policy.min_guard:
        passed = difference.low > -policy.margin
    else:  # too small to clear the candidate, not too small to convict it
        passed = False if difference.high < 0 else None
    return SliceVerdict(
        name,
        BETTER if name == MINED else NOT_WORSE,
        n,
        wilson(int(champion_N.sum()), n, policy.confidence),
        wilson(int(candidate_N.sum()), n, policy.confidence),
        difference,
        passed,
    )


def _weigh(judged: tuple[SliceVerdict, ...], policy: GatePolicy) -> tuple[bool, str]:
    """The decision and its sentence from the slices' verdicts; the table of cases is in `docs/gate.md`."""
    by_name = {verdict.name: verdict for verdict in judged}
    guards = [by_name[name] for name in GUARDS if name in by_name]
    mined = by_name.get(MINED)
    for guard in guards:
        if guard.passed is False:
            return False, f"Not shown to be no worse than the champion on {_told(guard)}{_allowed(guard, policy)}."
    cleared = [guard for guard in guards if guard.passed]
    if mined is not None and mined.passed is False and not _outweighed(mined, cleared):
        return False, f"Not shown to be better than the champion on {_told(mined)}."
    if policy.require_guard and not cleared:
        return False, (
            f"No guard slice has the {policy.min_guard} samples this gate requires ({_sizes(guards)}): label the audit."
        )
    if mined is not None and mined.passed:
        if cleared:
            return True, f"Better on {_told(mined)}; not worse on {' and '.join(_told(guard) for guard in cleared)}."
        return True, f"Better on {_told(mined)}; no guard slice was large enough to object ({_sizes(guards)})."
    if mined is not None and mined.passed is False:
        return True, f"Better on {_told(cleared[0])}; ahead on {_told(mined)}, too few to show it alone."
    # Nothing was mined, or too little. The first guard that is large enough speaks alone: one test, one error rate.
    if cleared:
        first, difference = cleared[0], cleared[0].difference
        if difference is not None and difference.low > 0:
            return True, f"Too little was mined to judge by ({_sizes([mined])}), but better on {_told(first)}."
        return False, (
            f"Too little was mined to judge by ({_sizes([mined])}), and not shown to be better on {_told(first)}."
        )
    return False, (
        f"No slice is large enough to judge by ({_sizes([mined, *guards])}): the gate needs {policy.min_mined} newly "
        f"mined or {policy.min_guard} audit or legacy samples; label more."
    )


def _outweighed(mined: SliceVerdict, cleared: Sequence[SliceVerdict]) -> bool:
    """A round mines few samples, so a clear gain may stay unproven on them; a slice nobody picked counts more.

    The candidate must be ahead on what was mined and shown to be better on the first guard that is large enough; the
    others have no say, since each would be one more chance to be wrong.
    """
    ahead = mined.difference is not None and mined.difference.value > 0
    return ahead and bool(cleared) and cleared[0].difference is not None and cleared[0].difference.low > 0


def _paired_hits(candidate: Evaluation, champion: Evaluation) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which samples each model has right, in the candidate's order."""
    rows = {sample: row for row, sample in enumerate(champion.ids)}
    missing = [sample for sample in candidate.ids if sample not in rows]
    if missing or len(rows) != len(candidate.ids):
        raise BadShape(
            f"the champion was evaluated on {len(rows)} samples, the candidate on {len(candidate.ids)}, and "
            f"{len(missing)} of the latter are missing (first: {missing[0] if missing else 'none'}): "
            "score both on the same samples"
        )
    order_N = np.array([rows[sample] for sample in candidate.ids], dtype=np.int64)
    if len(order_N) and candidate.probs_NC.shape[1] != champion.probs_NC.shape[1]:
        raise BadShape(
            f"the candidate knows {candidate.probs_NC.shape[1]} classes, the champion {champion.probs_NC.shape[1]}: "
            "score both over the loop's labels"
        )
    if not np.array_equal(champion.truth_N[order_N], candidate.truth_N):
        raise BadShape("the two evaluations give different true classes for one sample: score both on one dataset")
    if not len(order_N):
        return np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.bool_)
    candidate_N = candidate.probs_NC.argmax(axis=1) == candidate.truth_N
    return candidate_N, champion.probs_NC[order_N].argmax(axis=1) == candidate.truth_N


def _majority(truth_N: NDArray[np.int64]) -> float:
    return float(np.bincount(truth_N).max() / len(truth_N))


def _told(verdict: SliceVerdict) -> str:
    difference = verdict.difference
    assert difference is not None
    return (
        f"{verdict.name}: {_points(difference.value)} points [{_points(difference.low)}, {_points(difference.high)}] "
        f"on {verdict.n} samples"
    )


def _allowed(guard: SliceVerdict, policy: GatePolicy) -> str:
    return f", {_points(-policy.margin)} allowed" if guard.n >= policy.min_guard else ""


def _sizes(verdicts: list[SliceVerdict] | list[SliceVerdict | None]) -> str:
    there = [f"{verdict.name} has {verdict.n}" for verdict in verdicts if verdict is not None]
    return ", ".join(there) or "there are none"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # no "-0.0"

"""The coverage arm: from a pool and its signals to picks in greedy order, and words for what could not be served."""

from dataclasses import dataclass

import numpy as np

from hardloop.core.records import Pool
from miner.budget import Arms
from miner.bursts import number_bursts
from miner.coverage import NEAR_DUPLICATE, OVER_CAP, SAME_BURST, Greedy, Taken
from miner.demand import Demand, Space, lay_out, pose, weigh
from miner.policy import MiningPolicy
from miner.signals import Signals


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What the coverage arm took: positions among the space's groups, and F afterwards.

    space and demand are None where there was nothing to lay out. shortfall: what could not be served and why.
    """

    taken: Taken
    objective: float
    shortfall: tuple[str, ...]
    space: Space | None = None
    demand: Demand | None = None


def serve_coverage(pool: Pool, arms: Arms, signals: Signals, policy: MiningPolicy) -> Served:
    """Quotas first, in the order of their keys, then the rest of the arm's budget, all on one greedy run."""
    wanted = arms.split.coverage
    if arms.budget < 1 or not len(arms.eligible) + len(arms.asked):
        return Served(Taken(), 0.0, _shortfall(wanted, 0, 0, None, 0))
    bursts_N = number_bursts(pool, policy.one_per_burst)
    used = np.unique(bursts_N[arms.asked])
    used = used[used >= 0]
    space = lay_out(pool, arms.eligible, arms.asked, np.isin(bursts_N, used), arms.ties_N, policy)
    demand = weigh(pool, space, signals, policy, arms.labelled)
    greedy = Greedy(pose(pool, space, demand, signals, policy, arms.ties_N, bursts_N, used))
    taken = Taken()
    unmet: list[str] = []
    for what, among_G, least in _quotas(pool, space, signals, policy):
        got = greedy.take(min(least, wanted - len(taken.rows)), among_G)
        taken.extend(got)
        if len(got.rows) < least:
            unmet.append(f"the quota of {least} for {what} got {len(got.rows)}: no more could be picked")
    taken.extend(greedy.take(wanted - len(taken.rows)))
    in_used_bursts = int((np.isin(bursts_N[space.row_G], used) & ~space.asked_G).sum())
    short = _shortfall(wanted, len(taken.rows), len(arms.eligible), greedy, in_used_bursts)
    return Served(taken, greedy.objective(), (*unmet, *short), space, demand)


def _quotas(
    pool: Pool, space: Space, signals: Signals, policy: MiningPolicy
) -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.bool_]], int]]:
    predicted_G = signals.predicted_N[space.row_G]
    found = [(f"predicted class {c}", predicted_G == c, least) for c, least in sorted(policy.class_quotas.items())]
    for source, least in sorted(policy.source_quotas.items()):
        names = pool.sources if pool.sources is not None else ("",) * len(pool.ids)
        found.append((f"source {source!r}", np.array([names[row] == source for row in space.row_G]), least))
    return found


def _shortfall(wanted: int, got: int, eligible: int, greedy: Greedy | None, in_used_bursts: int) -> tuple[str, ...]:
    if got >= wanted:
        return ()
    causes = []
    if greedy is not None:
        for reason, words in (
            (NEAR_DUPLICATE, "near-duplicates of picked or asked-for samples"),
            (OVER_CAP, "over a class or source cap"),
            (SAME_BURST, "in a burst already picked from"),
        ):
            count = greedy.left_out(reason) + (in_used_bursts if reason == SAME_BURST else 0)
            if count:
                causes.append(f"{count} {words}")
    why = f" ({', '.join(causes)})" if causes else ""
    return (
        f"mining asked for {wanted} samples and got {got}: {eligible} were eligible, equal and near-equal ones "
        f"counting once{why}",
    )

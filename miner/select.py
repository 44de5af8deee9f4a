"""One selection: from a pool and a budget to picks, each with its receipt.

`mine` is what the service calls (through `PolicyMiner`, the adapter of `core.ports.Miner`), `select` what a person
calls in a notebook. Nothing heavy is imported until a selection is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardloop.core.errors import BadInput
from hardloop.core.records import Floats, Pool, PoolState, Selection
from miner.budget import draw_arms
from miner.check import check_embeddings, check_ids, check_pool, check_probabilities
from miner.policy import Method, MiningPolicy
from miner.signals import read_signals


@dataclass(frozen=True, slots=True)
class PolicyMiner:
    """`core.ports.Miner` for one policy."""

    policy: MiningPolicy

    def __call__(self, pool: Pool, budget: int, seed: int) -> Selection:
        """See `mine`."""
        return mine(pool, budget, self.policy, seed)


def mine(pool: Pool, budget: int, policy: MiningPolicy, seed: int) -> Selection:
    """At most `budget` picks, never padded: what could not be served stands in `shortfall`.

    The same pool in any order of rows, budget, policy and seed give the same picks, on any number of threads. The
    order of picks keeps the arms' proportions in every prefix; within coverage it is the order of greedy.
    Raises BadInput or BadShape naming the sample that does not fit, BadInput for a negative budget.
    """
    if budget < 0:
        raise BadInput(f"the budget is {budget}: expected 0 or more")
    check_pool(pool)
    from miner.demand import in_order
    from miner.outcome import conclude
    from miner.serve import serve_coverage

    ordered = in_order(pool)
    arms = draw_arms(ordered, budget, policy, seed)
    signals = read_signals(ordered, policy)
    served = serve_coverage(ordered, arms, signals, policy)
    return conclude(ordered, arms, signals, served, policy)


def select(
    embeddings: Floats,
    probabilities: Floats | None = None,
    *,
    budget: int,
    ids: Sequence[str] | None = None,
    labelled: Iterable[str | int] | Mapping[str, int] | Mapping[int, int] = (),
    exclude: Iterable[str | int] = (),
    groups: Sequence[str] | None = None,
    method: Method = "uncertainty-coverage",
    seed: int = 0,
    policy: MiningPolicy | None = None,
) -> Selection:
    """The `budget` samples most worth labelling, for arrays at hand and no service.

    embeddings: (N, D), finite. probabilities: (N, C), rows sum to 1; a row of NaN has no prediction; None before there
    is a model. ids: N distinct strings; None: the row numbers as text, "0" to "N-1".
    labelled: ids (row numbers where ids is None) that have a label: never picked, and taken as covered. A mapping
    from them to their class's index also lets classes with few labels weigh more (`MiningPolicy.class_balance`).
    exclude: ids never to pick that cover nothing. groups: rows that belong together (a video burst, one object): at
    most one sample of a group is picked, none where one is labelled.
    policy: overrides `method`; the default has neither audit nor exploration arm, there being no log to keep.
    Raises BadInput or BadShape naming the row that does not fit, and for a budget above what may be picked.
    """
    matrix_ND = np.asarray(embeddings)
    names = tuple(str(row) for row in range(len(matrix_ND))) if ids is None else tuple(ids)
    check_ids(names)
    check_embeddings(matrix_ND, names)
    classes = 1
    probs_NC = None
    if probabilities is not None:
        probs_NC = np.asarray(probabilities)
        classes = int(probs_NC.shape[1]) if probs_NC.ndim == 2 else 0
        check_probabilities(probs_NC, names, classes, "probabilities", nan_rows=True)
    if groups is not None and len(groups) != len(names):
        raise BadInput(f"groups has {len(groups)} entries for {len(names)} samples: one per sample is needed")
    state_N = np.full(len(names), PoolState.ELIGIBLE, dtype=np.int8)
    row_of = {name: row for row, name in enumerate(names)}
    _mark(state_N, row_of, labelled, PoolState.LABELLED, "labelled")
    _mark(state_N, row_of, exclude, PoolState.REJECTED, "exclude")
    may = int((state_N == PoolState.ELIGIBLE).sum())
    if not 0 <= budget <= may:
        raise BadInput(
            f"asked for {budget} samples, {may} of {len(names)} may be picked: choose a budget from 0 to {may}"
        )
    chosen = policy or MiningPolicy(method=method, audit_share=0.0, exploration_share=0.0)
    # Which class a label says does not matter otherwise, only that there is one: it tells a cold start from a warm one.
    labels_N = np.where(state_N == PoolState.LABELLED, 0, -1).astype(np.int64)
    if isinstance(labelled, Mapping) and classes > 1:
        for name, label in labelled.items():
            labels_N[row_of[str(name)]] = label
    else:
        chosen = chosen.model_copy(update={"class_balance": 0.0})
    pool = Pool(
        ids=names,
        embeddings_ND=matrix_ND,
        state_N=state_N,
        labels_N=labels_N,
        n_classes=classes,
        probs_NC=probs_NC,
        bursts=None if groups is None else tuple(groups),
    )
    return mine(pool, budget, chosen, seed)


def _mark(
    state_N: NDArray[np.int8], row_of: dict[str, int], which: Iterable[str | int], state: PoolState, what: str
) -> None:
    for name in which:
        row = row_of.get(str(name))
        if row is None:
            raise BadInput(f"{what} names {str(name)!r}, which is not among the {len(row_of)} samples")
        state_N[row] = state

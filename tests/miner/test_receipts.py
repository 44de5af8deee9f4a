"""A receipt can be recomputed from the pool by somebody who does not trust the miner."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core.records import Arm, PoolState
from miner.policy import MiningPolicy
from miner.select import mine
from tests.miner.pools import make_pool


def recomputed(pool, selection, policy):
    """Gain and weight of each coverage pick in the order taken, from the formulas alone: dense, in floating point."""
    x = pool.embeddings_ND.astype(np.float64) - pool.embeddings_ND.astype(np.float64).mean(axis=0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    receipts = {p.sample_id: p.receipt for p in selection.picks}
    sigma, lam = selection.terms["sigma"], selection.terms["lam"]
    kernel_NN = np.exp(-((unit[:, None] - unit[None]) ** 2).sum(axis=2) / sigma**2)
    top_two = np.sort(pool.probs_NC, axis=1)[:, -2:]
    uncertainty = 1 - (top_two[:, 1] - top_two[:, 0])
    row = {name: i for i, name in enumerate(pool.ids)}
    exploration = [row[name] for name, r in receipts.items() if r.arm is Arm.EXPLORATION]
    taken = [name for name, r in receipts.items() if r.arm is Arm.COVERAGE]
    asked = [*np.flatnonzero(pool.state_N == PoolState.LABELLED), *exploration]
    labels = np.array([(pool.labels_N == c).sum() + 1 for c in range(pool.n_classes)])
    balance = np.sqrt(labels.mean() / labels)[pool.probs_NC.argmax(axis=1)]
    weight = np.where(pool.state_N == PoolState.ELIGIBLE, balance * ((1 - lam) + lam * uncertainty), 0.0)
    weight[exploration] = 0.0
    cover = kernel_NN[:, asked].max(axis=1, initial=0.0)
    for name in taken:
        better = np.maximum(kernel_NN[:, row[name]] - cover, 0.0)
        yield (
            receipts[name],
            float(weight @ better),
            float(weight[row[name]]),
            # Kernel values are rounded to 2^-20 there: what differs by less than two steps may count or not.
            [int(((kernel_NN[:, row[name]] - cover > least) & (weight > 0)).sum()) for least in (2**-19, -(2**-19))],
        )
        cover = np.maximum(cover, kernel_NN[:, row[name]])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 20))
def test_gain_and_weight_of_every_pick_follow_from_its_terms(seed, lam, labelled):
    pool = make_pool(50, seed, labelled=labelled)
    policy = MiningPolicy(
        lam=lam,
        neighbours=49,
        near_duplicate_similarity=None,
        outlier_quantile=0.0,
        exploration_share=0.1,
        audit_share=0,
    )
    selection = mine(pool, 12, policy, seed)
    seen = 0
    for receipt, gain, weight, covers in recomputed(pool, selection, policy):
        assert receipt.gain == pytest.approx(gain, rel=2e-3, abs=2e-3)
        assert receipt.weight == pytest.approx(weight)
        assert covers[0] <= receipt.covers <= covers[1]
        assert receipt.weight == pytest.approx(
            receipt.priority
            * receipt.balance
            * receipt.duplicates**policy.duplicates_exponent
            * receipt.damping
            * ((1 - receipt.lam) + receipt.lam * receipt.uncertainty)
        )
        assert (receipt.seed, receipt.policy_digest) == (seed, policy.digest)
        seen += 1
    assert seen == 12 - sum(p.receipt.arm is Arm.EXPLORATION for p in selection.picks)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_the_nearest_is_the_most_similar_of_all_asked_or_ranked_before(seed, labelled):
    pool = make_pool(40, seed, labelled=labelled, audit=10)
    selection = mine(pool, 15, MiningPolicy(audit_share=0.2, exploration_share=0.2, center=False), seed)
    unit = pool.embeddings_ND / np.linalg.norm(pool.embeddings_ND, axis=1, keepdims=True)
    row = {name: i for i, name in enumerate(pool.ids)}
    before = list(range(labelled))
    for pick in selection.picks:
        receipt, here = pick.receipt, unit[row[pick.sample_id]]
        if not before:
            assert receipt.nearest_picked is None
            assert receipt.nearest_similarity is None
        else:
            assert receipt.nearest_similarity == pytest.approx(max(float(here @ unit[b]) for b in before), abs=2e-3)
            assert receipt.nearest_similarity == pytest.approx(
                float(here @ unit[row[receipt.nearest_picked]]), abs=2e-3
            )
        if receipt.arm is not Arm.AUDIT:
            before.append(row[pick.sample_id])


def test_reasons_say_in_words_what_the_numbers_say():
    rng = np.random.default_rng(0)
    probs = np.tile([0.5, 0.5], (60, 1))
    pool = make_pool(60, classes=2, labelled=12, audit=10, probs_NC=probs, embeddings_ND=rng.normal(size=(60, 12)))
    picks = mine(pool, 20, MiningPolicy(audit_share=0.1, exploration_share=0.1), 1).picks
    said = {arm: [p.receipt.reasons for p in picks if p.receipt.arm is arm] for arm in Arm}
    assert said[Arm.AUDIT] == [("drawn at random from the audit holdout to measure accuracy (chance 1 in 5)",)] * 2
    assert said[Arm.EXPLORATION] == [("drawn at random to compare mining with chance (chance 1 in 19)",)] * 2
    assert len(said[Arm.COVERAGE]) == 16
    for reasons in said[Arm.COVERAGE]:
        assert reasons[0] == "the model cannot decide between its two likeliest classes (1.00)"
    cold = mine(make_pool(30, probs_NC=None), 2, MiningPolicy(), 0).picks
    assert "nothing has been asked for yet" in cold[0].receipt.reasons
    assert any("nothing asked for resembles as much" in reason for reason in cold[0].receipt.reasons)


def test_terms_say_what_the_selection_went_by():
    pool = make_pool(60, labelled=15, audit=10)
    selection = mine(pool, 20, MiningPolicy(), 0)
    assert selection.terms["eligible"] == 35
    assert selection.terms["labels"] == 15
    assert selection.terms["warm"] == 1.0
    assert selection.terms["audit_holdout"] == 10
    assert (
        selection.terms["coverage_picks"] + selection.terms["exploration_picks"] + selection.terms["audit_picks"] == 20
    )
    assert selection.method == "uncertainty-coverage"
    assert all(np.isfinite(value) for value in selection.terms.values())

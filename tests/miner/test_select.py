"""Whole selections: what is picked, what never is, what cannot depend on anything, and what is refused."""

import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardloop
from hardloop.core.errors import BadInput, BadShape
from hardloop.core.records import Arm, Pool, PoolState, Selection
from miner.policy import METHODS, MiningPolicy
from miner.select import PolicyMiner, mine, select
from tests.miner.pools import BARE, clustered, make_pool

seeds = st.integers(0, 10_000)


def ids(selection: Selection, arm: Arm | None = None) -> list[str]:
    return [pick.sample_id for pick in selection.picks if arm is None or pick.receipt.arm is arm]


def permuted(pool: Pool, order: np.ndarray) -> Pool:
    def take(column):
        if column is None:
            return None
        return tuple(column[i] for i in order) if isinstance(column, tuple) else column[order]

    columns = (
        "ids",
        "embeddings_ND",
        "state_N",
        "labels_N",
        "probs_NC",
        "groups",
        "bursts",
        "sources",
        "audit_asked_N",
        "quality_N",
    )
    members = None if pool.member_probs_MNC is None else pool.member_probs_MNC[:, order]
    return replace(pool, **{name: take(getattr(pool, name)) for name in columns}, member_probs_MNC=members)


def rich_pool(seed: int, n: int = 80) -> Pool:
    """Every column filled, every state present, duplicates and bursts included."""
    rng = np.random.default_rng(seed)
    pool = make_pool(n, seed)
    pool.embeddings_ND[: n // 8] = pool.embeddings_ND[n // 8 : 2 * (n // 8)]
    pool.state_N[:] = rng.choice(5, size=n, p=[0.6, 0.15, 0.05, 0.05, 0.15])
    probs = pool.probs_NC.copy()
    probs[rng.random(n) < 0.1] = np.nan
    return replace(
        pool,
        labels_N=np.where(pool.state_N == PoolState.LABELLED, rng.integers(3, size=n), -1),
        probs_NC=probs,
        member_probs_MNC=rng.dirichlet(np.ones(3), size=(2, n)),
        bursts=tuple(rng.choice(["", "a", "b", "c", "d"], size=n, p=[0.7, 0.1, 0.1, 0.05, 0.05]).tolist()),
        sources=tuple(rng.choice(["cam1", "cam2"], size=n).tolist()),
        audit_asked_N=(pool.state_N == PoolState.AUDIT) & (rng.random(n) < 0.3),
        quality_N=rng.random(n),
    )


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(0, 90), st.sampled_from(METHODS))
def test_only_what_may_be_asked_is_picked_once_and_a_shortfall_is_said_never_padded(seed, budget, method):
    pool = rich_pool(seed)
    selection = mine(pool, budget, MiningPolicy(method=method), seed)
    state = dict(zip(pool.ids, pool.state_N, strict=True))
    asked = dict(zip(pool.ids, pool.audit_asked_N, strict=True))
    assert len(set(ids(selection))) == len(selection.picks) <= budget
    assert [pick.receipt.rank for pick in selection.picks] == list(range(len(selection.picks)))
    for pick in selection.picks:
        wanted = PoolState.AUDIT if pick.receipt.arm is Arm.AUDIT else PoolState.ELIGIBLE
        assert state[pick.sample_id] == wanted
        assert not asked[pick.sample_id]
    assert bool(selection.shortfall) == (len(selection.picks) < budget)


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(METHODS))
def test_the_order_of_rows_changes_nothing_at_all(seed, method):
    pool = rich_pool(seed)
    order = np.random.default_rng(seed + 1).permutation(len(pool.ids))
    policy = MiningPolicy(method=method, audit_share=0.1, exploration_share=0.1)
    one, other = mine(pool, 25, policy, 7), mine(permuted(pool, order), 25, policy, 7)
    assert one.picks == other.picks
    assert (one.objective, one.terms, one.shortfall) == (other.objective, other.terms, other.shortfall)


_DIGEST = """
import hashlib, sys
import numpy as np
from hardloop import select
rng = np.random.default_rng(3)
x = rng.normal(size=(1500, 96)) + 2.0 * rng.normal(size=(9, 96))[rng.integers(9, size=1500)]
found = select(x, rng.dirichlet(np.ones(9), size=1500), budget=60, labelled=range(50))
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


def test_the_number_of_threads_changes_nothing_at_all():
    def digest(threads: int) -> str:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": str(threads)}
        environment |= dict.fromkeys(names, str(threads))
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert digest(1) == digest(2) == digest(4)


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(0.5, 0.999))
def test_no_two_picks_are_near_duplicates_of_each_other_or_of_what_was_asked(seed, tau):
    pool = make_pool(60, seed, labelled=10)
    policy = MiningPolicy(near_duplicate_similarity=tau, center=False, audit_share=0.0, exploration_share=0.0)
    selection = mine(pool, 50, policy, 0)
    row = {name: i for i, name in enumerate(pool.ids)}
    unit = pool.embeddings_ND / np.linalg.norm(pool.embeddings_ND, axis=1, keepdims=True)
    rows = [*range(10), *(row[name] for name in ids(selection))]
    for a, b in combinations(rows, 2):
        if b >= 10:
            assert unit[a] @ unit[b] < tau + 1e-3


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 6))
def test_with_gamma_zero_replicas_leave_the_selected_groups_unchanged(seed, copies):
    rng = np.random.default_rng(seed)
    pool = make_pool(40, seed)
    chosen = rng.choice(40, size=8, replace=False)
    extra = np.repeat(chosen, copies)
    both = np.concatenate([np.arange(40), extra])
    replicated = Pool(
        ids=(*pool.ids, *(f"copy{i}" for i in range(len(extra)))),
        embeddings_ND=pool.embeddings_ND[both],
        state_N=pool.state_N[both],
        labels_N=pool.labels_N[both],
        n_classes=3,
        probs_NC=pool.probs_NC[both],
    )
    policy = BARE.model_copy(
        update={"duplicates_exponent": 0.0, "neighbours": 6, "near_duplicate_similarity": 0.9999, "lam": 1.0}
    )
    group = {name: int(both[i]) for i, name in enumerate(replicated.ids)}
    plain = [group[name] for name in ids(mine(pool, 12, policy, 1))]
    assert [group[name] for name in ids(mine(replicated, 12, policy, 1))] == plain


def test_a_sample_that_stands_for_many_weighs_their_number_to_the_power_gamma():
    x = np.repeat(np.eye(3), [1, 9, 1], axis=0)
    first = select(x, budget=3).picks[0]
    assert first.sample_id in {str(row) for row in range(1, 10)}
    assert (first.receipt.weight, first.receipt.duplicates, first.receipt.covers) == (3.0, 9, 11)


def test_identical_samples_are_one_sample_and_the_shortfall_says_so():
    pool = make_pool(20, embeddings_ND=np.ones((20, 4), dtype=np.float32))
    selection = mine(pool, 5, BARE, 0)
    assert len(selection.picks) == 1
    assert selection.shortfall == (
        "mining asked for 5 samples and got 1: 20 were eligible, equal and near-equal ones counting once",
    )
    without = BARE.model_copy(update={"near_duplicate_similarity": None})
    assert len(mine(pool, 5, without, 0).picks) == 5


@pytest.mark.parametrize("method", METHODS)
def test_small_and_empty_pools_give_what_they_have(method):
    policy = MiningPolicy(method=method)
    for n in (0, 1, 2, 3):
        selection = mine(make_pool(n), 3, policy, 0)
        assert sorted(ids(selection)) == [f"s{i:04d}" for i in range(n)]
        assert bool(selection.shortfall) == (n < 3)
        assert mine(make_pool(n), 0, policy, 0).picks == ()


def test_a_pool_with_nothing_left_to_ask_says_so():
    selection = mine(make_pool(10, labelled=10), 4, MiningPolicy(), 0)
    assert selection.picks == ()
    assert "asked for 4 samples and got 0: 0 were eligible" in selection.shortfall[0]


def test_a_cold_start_needs_no_model_and_covers_every_cluster_first():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(6), 50)
    x = 5 * np.eye(6)[cluster] + 0.3 * rng.normal(size=(300, 6))
    first = select(x, budget=6, seed=3)
    assert sorted(cluster[int(name)] for name in ids(first)) == list(range(6))
    assert first.terms["lam"] == 0.0
    assert first.picks[0].receipt.predicted == -1
    assert first.picks[0].receipt.confidence is None


def test_warm_selection_turns_to_where_the_model_is_unsure():
    """Two equal halves; the model is sure in the left one and torn in the right one."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4)) + np.where(np.arange(200) < 100, -4, 4)[:, None] * np.array([1, 0, 0, 0])
    probs = np.where(np.arange(200)[:, None] < 100, [0.99, 0.01], [0.5, 0.5])
    labelled = [*range(10), *range(100, 110)]
    warm = select(x, probs, budget=20, labelled=labelled)
    assert warm.terms["lam"] == 1.0
    assert all(int(name) >= 100 for name in ids(warm))
    assert any(int(name) < 100 for name in ids(select(x, probs, budget=20, labelled=labelled, method="coverage")))
    cold = select(x, probs, budget=20, labelled=labelled[:2])
    assert cold.terms["lam"] == 0.0


def test_a_sample_without_a_prediction_counts_as_the_average_of_the_others():
    pool = make_pool(30, labelled=15)
    probs = pool.probs_NC.copy()
    probs[20:] = np.nan
    selection = mine(replace(pool, probs_NC=probs), 15, BARE.model_copy(update={"lam": 1.0}), 0)
    top_two = np.sort(probs[15:20], axis=1)[:, -2:]
    average = (1 - (top_two[:, 1] - top_two[:, 0])).mean()
    unknown = [p.receipt for p in selection.picks if pool.ids.index(p.sample_id) >= 20]
    assert unknown
    assert [r.uncertainty for r in unknown] == pytest.approx([average] * len(unknown))
    assert all(r.confidence is None and r.predicted == -1 for r in unknown)


def test_margin_takes_the_most_uncertain_in_order():
    pool = make_pool(30)
    selection = mine(pool, 8, BARE.model_copy(update={"method": "margin", "near_duplicate_similarity": None}), 0)
    top_two = np.sort(pool.probs_NC, axis=1)[:, -2:]
    order = np.argsort(top_two[:, 1] - top_two[:, 0])[:8]
    assert ids(selection) == [pool.ids[row] for row in order]
    assert [p.receipt.gain for p in selection.picks] == pytest.approx(
        [p.receipt.uncertainty for p in selection.picks], abs=1e-6
    )


def test_random_picks_every_sample_equally_often():
    """Chi-square with 19 degrees of freedom; its 99.9 % point is 43.8."""
    pool = make_pool(20)
    counts = dict.fromkeys(pool.ids, 0)
    for seed in range(1000):
        for name in ids(mine(pool, 3, BARE.model_copy(update={"method": "random"}), seed)):
            counts[name] += 1
    assert sum((c - 150) ** 2 / 150 for c in counts.values()) < 43.8


@pytest.mark.parametrize(("arm", "share"), [(Arm.AUDIT, "audit_share"), (Arm.EXPLORATION, "exploration_share")])
def test_a_uniform_arm_draws_each_sample_with_the_chance_it_logs(arm, share):
    pool = make_pool(45, labelled=5, audit=20, audit_asked_N=np.arange(45) < 10)
    expected = {Arm.AUDIT: pool.ids[10:25], Arm.EXPLORATION: pool.ids[25:]}[arm]
    policy = MiningPolicy(**{"audit_share": 0.0, "exploration_share": 0.0, share: 0.5}, method="random")
    counts = dict.fromkeys(expected, 0)
    for seed in range(600):
        for pick in mine(pool, 8, policy, seed).picks:
            if pick.receipt.arm is arm:
                counts[pick.sample_id] += 1
                assert pick.receipt.propensity == pytest.approx(4 / len(expected))
                assert (pick.receipt.gain, pick.receipt.weight) == (0.0, 0.0)
    mean = 600 * 4 / len(expected)
    assert sum(counts.values()) == 2400
    assert sum((c - mean) ** 2 / mean for c in counts.values()) < 43.8


def test_accuracy_estimated_from_the_audit_is_unbiased_though_mining_chases_mistakes():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    pool = make_pool(400, labelled=0, audit=100)
    truth = right[:100].mean()
    estimates = []
    for seed in range(300):
        picked = {
            p.sample_id
            for p in mine(pool, 40, MiningPolicy(audit_share=0.5, method="margin"), seed).picks
            if p.receipt.arm is Arm.AUDIT
        }
        estimates.append(np.mean([right[row] for row in range(100) if pool.ids[row] in picked]))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 3.5 * error


def test_exploration_covers_its_surroundings_before_coverage_picks():
    x = np.repeat(np.eye(2), 2, axis=0)
    x[[1, 3]] += 0.01
    policy = MiningPolicy(audit_share=0.0, exploration_share=0.5)
    pool = make_pool(4, ids=("a", "b", "c", "d"), embeddings_ND=x)
    for seed in range(10):
        found = ids(mine(pool, 2, policy, seed))
        assert {"ab".find(found[0]) >= 0, "ab".find(found[1]) >= 0} == {True, False}


def test_bursts_are_per_source_and_one_that_was_asked_for_is_closed():
    pool = make_pool(6, labelled=1, bursts=("x", "x", "x", "x", "", ""), sources=("1", "1", "2", "2", "1", "1"))
    found = [
        pool.ids.index(name)
        for name in ids(mine(pool, 5, BARE.model_copy(update={"near_duplicate_similarity": None}), 0))
    ]
    assert 1 not in found
    assert len({2, 3} & set(found)) == 1
    assert {4, 5} <= set(found)


def test_caps_hold_and_quotas_come_first_and_what_they_miss_is_said():
    predicted = np.repeat([0, 1, 2], [30, 8, 2])
    probs = np.full((40, 3), 0.1)
    probs[np.arange(40), predicted] = 0.8
    pool = make_pool(40, probs_NC=probs)
    policy = BARE.model_copy(update={"class_cap": 7, "class_quotas": {2: 4, 1: 3}, "near_duplicate_similarity": None})
    selection = mine(pool, 14, policy, 0)
    counts = np.bincount([p.receipt.predicted for p in selection.picks], minlength=3)
    assert counts.max() <= 7
    assert counts[1] >= 3
    assert counts[2] == 2
    assert {p.receipt.predicted for p in selection.picks[:5]} == {1, 2}
    assert "the quota of 4 for predicted class 2 got 2: no more could be picked" in selection.shortfall


def test_a_priority_multiplies_the_weight_and_stands_in_the_receipt():
    pool = make_pool(30, sources=tuple(["a", "b"] * 15))
    policy = BARE.model_copy(update={"source_priorities": {"b": 50.0}})
    for pick in mine(pool, 5, policy, 0).picks:
        assert pool.sources[pool.ids.index(pick.sample_id)] == "b"
        assert pick.receipt.weight == 50.0 == pick.receipt.priority


def test_likely_garbage_is_damped_by_quality_and_by_loneliness():
    rng = np.random.default_rng(0)
    x = clustered(rng, 300)
    x[0] = -100 * x.mean(axis=0) + 40 * rng.normal(size=8)
    quality = np.ones(300)
    quality[5] = 0.2
    pool = make_pool(300, embeddings_ND=x, quality_N=quality)
    policy = BARE.model_copy(update={"center": False, "near_duplicate_similarity": None})
    damping = {pool.ids.index(p.sample_id): p.receipt.damping for p in mine(pool, 300, policy, 0).picks}
    assert damping[0] == damping[5] == 0.1
    assert 2 <= sum(d < 1 for d in damping.values()) <= 7


def test_the_audit_alone_decides_how_far_uncertainty_counts_and_how_sure_the_model_is():
    """Mistakes exactly where the model is unsure: lam is 1; mistakes anywhere: lam near 0."""
    rng = np.random.default_rng(0)
    n = 400
    confidence = np.where(np.arange(n) % 2, 0.95, 0.55)
    probs = np.column_stack([confidence, 1 - confidence])
    pool = make_pool(n, classes=2, labelled=20, audit=300, probs_NC=probs)
    labels = pool.labels_N.copy()
    audit = np.arange(20, 320)
    labels[audit] = np.where((confidence[audit] < 0.6) & (rng.random(300) < 0.5), 1, 0)
    good = mine(replace(pool, labels_N=labels), 5, MiningPolicy(), 0).terms
    labels[audit] = (rng.random(300) < 0.25).astype(np.int64)
    bad = mine(replace(pool, labels_N=labels), 5, MiningPolicy(), 0).terms
    assert good["lam"] == 1.0
    assert good["auroc"] > 0.75
    assert bad["lam"] < 0.4
    assert good["temperature"] != 1.0
    assert good["audit_labels"] == 300


def test_too_few_audit_mistakes_leave_lam_to_the_policy():
    pool = make_pool(100, labelled=20, audit=30)
    labels = np.where(pool.state_N == PoolState.AUDIT, pool.probs_NC.argmax(axis=1), pool.labels_N)
    for lam in (0.25, 0.75):
        policy = MiningPolicy(lam_without_audit=lam)
        assert mine(replace(pool, labels_N=labels), 5, policy, 0).terms["lam"] == lam


def test_disagreement_of_a_committee_raises_uncertainty():
    probs = np.tile([0.9, 0.05, 0.05], (30, 1))
    members = probs[None].copy()
    members[0, 4] = [0.05, 0.9, 0.05]
    pool = make_pool(30, probs_NC=probs, member_probs_MNC=members)
    first = mine(pool, 1, BARE.model_copy(update={"method": "margin"}), 0).picks[0]
    assert first.sample_id == pool.ids[4]
    assert first.receipt.disagreement > 0.5
    assert first.receipt.uncertainty == pytest.approx(1.0)


def test_one_class_and_a_miner_by_its_port_work():
    pool = make_pool(12, classes=1, probs_NC=None)
    assert len(PolicyMiner(BARE)(pool, 4, 0).picks) == 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"embeddings": np.ones((4, 2, 2))}, r"embeddings have shape \(4, 2, 2\)"),
        (
            {"embeddings": np.array([[1.0], [np.nan], [1.0], [2.0]])},
            r"row 1 \(1\): embedding holds a value that is not",
        ),
        ({"probabilities": np.full((4, 2), 0.4)}, r"row 0 \(0\): probabilities sum to 0.8, not to 1; 3 more rows"),
        ({"probabilities": np.array([[0.5, 0.5], [0.5, 0.5], [1.5, -0.5], [0.5, 0.5]])}, r"row 2 \(2\).*negative"),
        ({"probabilities": np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [np.nan, 1.0]])}, r"row 3 \(3\).*not finite"),
        ({"probabilities": np.full((3, 2), 0.5)}, r"probabilities have shape \(3, 2\): expected \(4, 2\)"),
        ({"probabilities": np.ones((4, 1))}, r"expected \(4, 2\)"),
        ({"ids": ["a", "b", "a", "c"]}, "id 'a' comes twice, in rows 0 and 2"),
        ({"ids": ["a", "b"]}, r"embeddings have shape \(4, 2\): expected \(2, dimensions\)"),
        ({"groups": ["a", "b"]}, "groups has 2 entries for 4 samples"),
        ({"labelled": [9]}, "labelled names '9', which is not among the 4 samples"),
        ({"exclude": ["x"]}, "exclude names 'x'"),
        ({"budget": 4, "labelled": [0]}, "asked for 4 samples, 3 of 4 may be picked: choose a budget from 0 to 3"),
        ({"budget": -1}, "asked for -1 samples"),
    ],
)
def test_what_does_not_fit_is_refused_naming_the_row(changes, complaint):
    given_values = {"embeddings": np.arange(8.0).reshape(4, 2), "budget": 1, **changes}
    with pytest.raises((BadInput, BadShape), match=complaint):
        select(**given_values)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"state_N": np.zeros(3, dtype=np.int8)}, "state_N has 3 entries for 5 samples"),
        ({"state_N": np.full(5, 9, dtype=np.int8)}, "row 0 .*state is none of PoolState's; 4 more"),
        ({"labels_N": np.array([-1, -1, 3, -1, -1])}, r"row 2 .*label is not in -1..2"),
        ({"quality_N": np.array([1, 1, 1, np.nan, 1])}, r"row 3 .*quality is not in \[0, 1\]"),
        ({"member_probs_MNC": np.full((1, 5, 3), 0.5)}, "member 0's probabilities sum to 1.5"),
        ({"probs_NC": None, "member_probs_MNC": np.full((1, 5, 3), 1 / 3)}, "the serving model is the first member"),
        ({"bursts": ("",)}, "bursts has 1 entries for 5 samples"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused_naming_the_sample(changes, complaint):
    with pytest.raises((BadInput, BadShape), match=complaint):
        mine(make_pool(5, **changes), 1, MiningPolicy(), 0)


def test_groups_give_one_pick_each_and_none_where_one_is_labelled():
    x = np.random.default_rng(0).normal(size=(9, 4))
    groups = ["a", "a", "a", "b", "b", "b", "c", "c", "c"]
    found = select(x, budget=2, groups=groups, labelled=[0])
    assert sorted(groups[int(name)] for name in ids(found)) == ["b", "c"]
    short = select(x, budget=3, groups=groups, labelled=[0])
    assert "in a burst already picked from" in short.shortfall[0]


def test_select_is_what_hardloop_exports_and_importing_it_costs_no_heavy_library():
    assert hardloop.select is select
    heavy = "import sys, hardloop; hardloop.select; print(sorted({'numba', 'faiss', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_policies_are_strict_and_their_digest_follows_every_setting():
    assert MiningPolicy().digest == MiningPolicy().digest
    assert MiningPolicy().digest != MiningPolicy(neighbours=33).digest
    with pytest.raises(ValueError, match="extra"):
        MiningPolicy(neighbors=32)
    with pytest.raises(ValueError, match="whole budget"):
        MiningPolicy(audit_share=0.6, exploration_share=0.6)
    assert all(field.description for field in MiningPolicy.model_fields.values())


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 30), st.sampled_from(METHODS))
def test_one_more_in_the_budget_adds_one_pick_and_changes_no_other(seed, budget, method):
    pool = rich_pool(seed)
    policy = BARE.model_copy(update={"method": method})
    smaller, larger = mine(pool, budget, policy, seed), mine(pool, budget + 1, policy, seed)
    assert larger.picks[: len(smaller.picks)] == smaller.picks
    assert len(larger.picks) - len(smaller.picks) <= 1
    assert larger.objective >= smaller.objective


def test_memory_grows_with_the_neighbours_not_with_the_square_of_the_pool():
    rng = np.random.default_rng(0)
    x = clustered(rng, 12_000, 32, 40)
    select(x[:50], budget=5)  # compiled outside of what is measured
    tracemalloc.start()
    started = time.process_time()
    select(x, rng.dirichlet(np.ones(5), size=12_000), budget=200, labelled=range(100))
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6, f"{peak / 1e6:.0f} MB; one float32 per pair would be 576 MB"
    assert seconds < 30, f"{seconds:.0f} s of processor time; a few are expected"


def test_a_predicted_class_with_few_labels_weighs_more_and_only_as_much_as_the_exponent_says():
    """Class 0 has seven labels and class 1 one, so their factors are (5 / 8) and (5 / 2) to the exponent."""
    probs_NC = np.tile([[0.9, 0.1], [0.1, 0.9]], (20, 1))
    state_N = np.zeros(40, dtype=np.int8)
    state_N[:8] = PoolState.LABELLED
    labels_N = np.full(40, -1, dtype=np.int64)
    labels_N[:8] = [0, 1, 0, 0, 0, 0, 0, 0]
    pool = make_pool(40, classes=2, probs_NC=probs_NC, state_N=state_N, labels_N=labels_N)
    for exponent in (0.0, 0.5, 1.0):
        picks = mine(pool, 26, BARE.model_copy(update={"class_balance": exponent}), 0).picks
        factors = {pick.receipt.predicted: pick.receipt.balance for pick in picks}
        expected = {c: (5 / labels) ** exponent for c, labels in ((0, 8), (1, 2))}
        assert factors == pytest.approx({c: expected[c] for c in factors})
        assert set(factors) == {0, 1}


def test_classes_with_as_many_labels_as_each_other_are_picked_as_without_balance():
    pool = make_pool(80, classes=3, labelled=12, labels_N=np.array([0, 1, 2] * 4 + [-1] * 68))
    picks = [mine(pool, 15, BARE.model_copy(update={"class_balance": e}), 3).picks for e in (0.0, 0.5, 1.0)]
    assert [[p.sample_id for p in found] for found in picks] == [[p.sample_id for p in picks[0]]] * 3


def test_select_balances_classes_where_it_is_told_which_they_are():
    rng = np.random.default_rng(4)
    embeddings, probabilities = rng.normal(size=(60, 8)), rng.dirichlet(np.ones(3), size=60)
    told = select(embeddings, probabilities, budget=45, labelled=dict.fromkeys(range(9), 2))
    untold = select(embeddings, probabilities, budget=45, labelled=range(9))
    assert {pick.receipt.balance for pick in untold.picks} == {1.0}
    by_class = {pick.receipt.predicted: pick.receipt.balance for pick in told.picks}
    assert by_class[0] == by_class[1] == pytest.approx(2.0), "(mean of 1, 1 and 10) to one half"
    assert by_class[2] == pytest.approx(np.sqrt(0.4))
    with pytest.raises(BadInput, match="label"):
        select(embeddings, probabilities, budget=20, labelled={3: 7})

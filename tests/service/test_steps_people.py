"""Mine, send and collect on both databases: who may be asked about, once each, and whose answers count."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from hardloop.core import ids
from hardloop.core.errors import Missing, Unavailable
from hardloop.core.records import Prediction, Split
from hardloop.service import retraining, steps
from hardloop.service.database import connect, migrate
from hardloop.service.intake import GivenImage
from hardloop.service.samples import StoredPrediction
from miner.policy import MiningPolicy
from miner.select import PolicyMiner
from tests.fakes.loops import LABELS, FakeLoop, fake_loop, picture
from tests.service.scenes import AT, first_model, give, produce, round_of_labels


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path)
    yield world
    world.capture.close()


def queued(world: FakeLoop, state: str | None = None) -> set[str]:
    return {item["sample_id"] for item in world.loop.work.queue(state)}


# ---------------------------------------------------------------- mine


def test_before_there_is_a_model_mining_covers_the_pool_and_makes_no_pre_annotation(world: FakeLoop) -> None:
    give(world, "pool", 12, np.random.default_rng(0))
    steps.mine(world.loop, "round-1", 6)
    items = world.loop.work.queue()
    assert len(items) == 6
    assert {world.truth[item["sample_id"]] for item in items} == set(LABELS), "coverage looks at every kind of image"
    (selection,) = world.loop.work.selections()
    assert (selection["model_version"], selection["encoder"]) == (None, world.loop.encoder.version)
    assert all(item["receipt"]["predicted"] == -1 and item["receipt"]["confidence"] is None for item in items)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    assert all(world.tool.predictions(task) == [] for task in world.tool.task_ids())


def test_the_history_shows_the_policy_that_a_selection_was_made_with(world: FakeLoop) -> None:
    policy = world.loop.settings.mining.model_copy(update={"class_quotas": {0: 1}})
    settings_ = world.loop.settings.model_copy(update={"mining": policy})
    loop = replace(world.loop, settings=settings_, miner=PolicyMiner(policy))
    give(world, "pool", 2, np.random.default_rng(20))
    steps.mine(loop, "round-1", 2)
    (event,) = [event for event in loop.work.events() if event["kind"] == "selection"]
    assert MiningPolicy.model_validate(event["detail"]["policy"]) == policy
    (selection,) = loop.work.selections()
    assert MiningPolicy.model_validate(event["detail"]["policy"]).digest == selection["policy_digest"]


def test_an_empty_pool_gives_an_empty_selection_that_says_so(world: FakeLoop) -> None:
    steps.mine(world.loop, "round-1", 5)
    (selection,) = world.loop.work.selections()
    assert world.loop.work.queue() == []
    assert selection["shortfall"]


def test_a_selection_is_made_once_whoever_repeats_it_and_the_next_one_picks_others(world: FakeLoop) -> None:
    give(world, "pool", 8, np.random.default_rng(1))
    steps.mine(world.loop, "round-1", 5)
    first = queued(world)
    assert steps.mine(world.loop, "round-1", 20) == "round-1"
    assert queued(world) == first
    steps.mine(world.loop, "round-2", 5)
    assert len(queued(world)) == 10
    assert [s["seed"] for s in world.loop.work.selections()] == [0, 1]


def test_after_a_promotion_the_pool_is_scored_again_by_the_new_champion(world: FakeLoop) -> None:
    rng = np.random.default_rng(2)
    first_model(world, rng)
    made = produce(world, 20, rng, model_version="0")  # by a model that is no longer there
    steps.ingest(world.loop)
    steps.mine(world.loop, "round-1", 5)
    predicted = world.loop.samples.predictions("1")
    assert set(predicted) == set(made)
    for item in world.loop.work.queue():
        probabilities = predicted[item["sample_id"]].probs_C
        assert item["receipt"]["predicted"] == int(probabilities.argmax())
    images = [world.blobs.get(s.image_key) for s in world.loop.samples.get(made).values()]
    np.testing.assert_allclose(
        np.stack([predicted[i].probs_C for i in world.loop.samples.get(made)]),
        world.champion().score(images).probs_NC,
        atol=1e-6,
    )
    stored = predicted[made[0]].at
    steps.mine(world.loop, "round-2", 5)
    assert world.loop.samples.predictions("1")[made[0]].at == stored, "scored once, not at every selection"


def test_pre_annotations_name_the_version_that_the_selection_was_made_with(world: FakeLoop) -> None:
    rng = np.random.default_rng(3)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "round-1", 5)
    world.loop.work.decide("approved", "reviewer")
    assert steps.send(world.loop) == 5
    for task in world.tool.task_ids():
        (prediction,) = world.tool.predictions(task)
        sample = world.tool.draft(task).sample_id
        stored = world.loop.samples.predictions("1")[sample].probs_C
        assert (prediction.model_version, prediction.label) == ("1", LABELS[int(stored.argmax())])


def test_what_was_rejected_skipped_deleted_or_answered_is_never_picked_again(world: FakeLoop) -> None:
    policy = world.loop.settings.mining.model_copy(update={"near_duplicate_similarity": None})
    world = replace(world, loop=replace(world.loop, miner=PolicyMiner(policy)))
    give(world, "pool", 8, np.random.default_rng(4))
    steps.mine(world.loop, "round-1", 8)
    picks = sorted(queued(world))
    world.loop.work.decide("rejected", "reviewer", picks[:2])
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    tasks = {world.tool.draft(task).sample_id: task for task in world.tool.task_ids()}
    assert set(tasks) == set(picks[2:])
    world.tool.skip(tasks[picks[2]])
    world.tool.delete_task(tasks[picks[3]])
    world.tool.delete(world.tool.answer(tasks[picks[4]], "red"))
    world.answer_all()
    steps.collect(world.loop)
    for number in range(2, 8):
        steps.mine(world.loop, f"round-{number}", 8)
    pool = {s.sample_id for s in world.loop.samples.all() if s.role == "pool"}
    assert queued(world) >= pool, "every other sample of the pool was picked"
    selections = {item["sample_id"]: item["selection_id"] for item in world.loop.work.queue()}
    assert {selections[sample] for sample in picks} == {"round-1"}


def test_skipped_and_rejected_samples_cover_nothing_while_queued_and_labelled_ones_do(world: FakeLoop) -> None:
    from hardloop.core.records import PoolState
    from hardloop.service import pool

    give(world, "pool", 4, np.random.default_rng(5))
    steps.mine(world.loop, "round-1", 4)
    rejected, skipped, open_, labelled = sorted(queued(world))
    world.loop.work.decide("rejected", "reviewer", [rejected])
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    tasks = {world.tool.draft(task).sample_id: task for task in world.tool.task_ids()}
    world.tool.skip(tasks[skipped])
    world.tool.answer(tasks[labelled], "red")
    steps.collect(world.loop)
    loop = world.loop
    assembled = pool.assemble(loop.samples, loop.work, loop.embeddings, loop.encoder.version, None, LABELS)
    state = dict(zip(assembled.ids, assembled.state_N, strict=True))
    assert state[rejected] == state[skipped] == PoolState.REJECTED
    assert state[open_] == PoolState.QUEUED
    assert state[labelled] == PoolState.LABELLED
    others = {sample for sample, found in state.items() if found == PoolState.ELIGIBLE}
    assert others == {s.sample_id for s in world.loop.samples.all() if s.role == "pool"} - queued(world)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), cameras=st.integers(1, 40), share=st.floats(0.05, 0.6))
def test_audit_samples_are_asked_for_and_never_trained_on_whatever_the_groups(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cameras: int, share: float
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    engine = connect(f"sqlite:///{folder / 'loop.db'}")
    migrate(engine)
    rng = np.random.default_rng(seed)
    world = fake_loop(engine, folder)
    capture = world.loop.settings.capture.model_copy(update={"audit_share": share})
    policy = world.loop.settings.mining.model_copy(update={"audit_share": 0.4})
    loop = replace(
        world.loop, settings=world.loop.settings.model_copy(update={"capture": capture}), miner=PolicyMiner(policy)
    )
    given_images = []
    for _ in range(48):
        label = LABELS[rng.integers(3)]
        image = picture(label, rng)
        world.truth[ids.sample_id(image)] = label
        camera = f"camera-{rng.integers(cameras)}"
        given_images.append(GivenImage(f"{camera}.png", image, camera, "pool", None, camera))
    steps.add_images(loop, given_images)
    world = replace(world, loop=loop)
    for number in range(3):
        round_of_labels(world, f"round-{number}", 12)
    retraining.claim(loop, "a test")
    reserved = {s.sample_id for s in loop.samples.all() if ids.reserved(s.group_id, "colours", share)}
    assert reserved == {s.sample_id for s in loop.samples.all() if s.role == "audit"}
    (dataset,) = loop.lineage.datasets()
    from training import datasets

    rows = datasets.load(world.blobs, dataset["key"]).rows
    assert {r.sample_id for r in rows if r.split is Split.TRAIN} & reserved == set()
    held_out = {r.group_id for r in rows if r.split is Split.HOLDOUT}
    assert not held_out & {r.group_id for r in rows if r.split is Split.TRAIN}
    arms = {item["sample_id"]: item["arm"] for item in loop.work.queue()}
    assert {sample for sample, arm in arms.items() if arm == "audit"} == set(arms) & reserved
    if reserved:
        assert set(arms) & reserved, "the audit arm asked for none of its slice"
    engine.dispose()


# ---------------------------------------------------------------- send and collect


def test_a_send_that_broke_after_some_tasks_is_repeated_without_a_second_task(world: FakeLoop) -> None:
    rng = np.random.default_rng(6)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "round-1", 8)
    world.loop.work.decide("approved", "reviewer")
    world.tool.break_after(3)
    with pytest.raises(Unavailable):
        steps.send(world.loop)
    assert len(world.tool.task_ids()) == 3
    assert world.loop.work.tasks() == []
    assert steps.send(world.loop) == 8
    assert len(world.tool.task_ids()) == 8
    samples = [world.tool.draft(task).sample_id for task in world.tool.task_ids()]
    assert sorted(samples) == sorted(queued(world))
    assert all(len(world.tool.predictions(task)) == 1 for task in world.tool.task_ids())
    assert steps.send(world.loop) == 0


def test_collect_adopts_the_tasks_of_a_send_that_was_killed_with_their_answers(world: FakeLoop) -> None:
    give(world, "pool", 6, np.random.default_rng(7))
    steps.mine(world.loop, "round-1", 6)
    world.loop.work.decide("approved", "reviewer")
    world.tool.break_after(2)
    with pytest.raises(Unavailable):
        steps.send(world.loop)
    assert world.answer_all() == 2
    counts = steps.collect(world.loop)
    assert (counts["new"], counts["labels"]) == (2, 2)
    assert len(world.loop.work.tasks()) == 2
    assert steps.send(world.loop) == 4
    assert len(world.tool.task_ids()) == 6
    world.answer_all()
    steps.collect(world.loop)
    labels = {row["sample_id"]: row["label"] for row in world.loop.work.labels()}
    assert labels == {sample: world.truth[sample] for sample in queued(world)}


def test_tasks_of_a_send_that_broke_get_their_predictions_though_answers_were_collected_meanwhile(
    world: FakeLoop,
) -> None:
    rng = np.random.default_rng(17)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "round-1", 8)
    world.loop.work.decide("approved", "reviewer")
    world.tool.break_after(4)
    with pytest.raises(Unavailable):
        steps.send(world.loop)
    answered = min(world.tool.task_ids())
    world.tool.answer(answered, "red")
    assert steps.collect(world.loop)["new"] == 1
    assert [task["task_id"] for task in world.loop.work.tasks()] == [answered], "its answer must not wait"
    assert steps.send(world.loop) == 7
    held = {task: len(world.tool.predictions(task)) for task in world.tool.task_ids()}
    assert held == {task: int(task != answered) for task in held}
    assert len(held) == 8


def test_tasks_are_not_taken_for_sent_before_the_older_ones_show_the_new_champions_word(world: FakeLoop) -> None:
    rng = np.random.default_rng(18)
    first_model(world, rng)
    produce(world, 30, rng)
    steps.ingest(world.loop)
    for number in (1, 2):
        steps.mine(world.loop, f"round-{number}", 4)
        world.loop.work.decide("approved", "reviewer")
        if number == 1:
            steps.send(world.loop)
            give(world, "seed", 2, rng)
            assert steps.train(world.loop, manual=True) == "2"
            world.registry.promote(world.registry.versions()[1], "by hand")
    predict, calls = world.tool.predict, iter(range(9))

    def once_away(predictions: Mapping[int, Prediction]) -> None:
        if next(calls) == 1:  # the first call belongs to the new tasks, the second to the older ones
            raise Unavailable("the annotation tool went away")
        predict(predictions)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world.tool, "predict", once_away)
        with pytest.raises(Unavailable):
            steps.send(world.loop)
        assert steps.send(world.loop) == 4
    assert {p.model_version for task in world.tool.task_ids() for p in world.tool.predictions(task)} == {"2"}


def test_a_probability_that_rounding_left_above_one_does_not_hold_up_the_batch(world: FakeLoop) -> None:
    give(world, "pool", 4, np.random.default_rng(19))
    above = np.array([1.0000001, 0.0, 0.0], dtype=np.float32)
    samples = [s.sample_id for s in world.loop.samples.of_role("pool")]
    world.loop.samples.predict([StoredPrediction(s, "own-1", above, None, "own", {}, None, AT) for s in samples])
    for number in (1, 2):  # the second time, what was sent before is renewed
        steps.mine(world.loop, f"round-{number}", 3)
        world.loop.work.decide("approved", "reviewer")
        assert steps.send(world.loop) == 3
    said = [world.tool.predictions(task) for task in world.tool.task_ids()]
    assert said == [[Prediction("own-1", "red", 1.0)]] * 6


def test_tasks_of_samples_that_are_not_ours_are_left_alone(world: FakeLoop) -> None:
    from hardloop.core.records import TaskDraft

    numbers = world.tool.send([TaskDraft("f" * 32, "s3://elsewhere/x.png", 1, "somebody's", "s")])
    world.tool.answer(numbers["f" * 32], "red")
    counts = steps.collect(world.loop)
    assert counts["new"] == 0
    assert world.loop.work.labels() == []
    assert world.loop.work.annotations() == []


def test_a_label_follows_every_change_deletion_and_disagreement(world: FakeLoop) -> None:
    give(world, "pool", 2, np.random.default_rng(8))
    (sample,) = _one_task(world)
    (task,) = world.tool.task_ids()

    def label() -> str | None:
        steps.collect(world.loop)
        return {row["sample_id"]: row["label"] for row in world.loop.work.labels()}.get(sample)

    first = world.tool.answer(task, "red", "anna@example.org")
    assert label() == "red"
    second = world.tool.answer(task, "green", "ben@example.org")
    assert label() is None, "one against one is no agreement"
    world.tool.change(second, "red")
    assert label() == "red"
    world.tool.delete(first)
    assert label() == "red"
    world.tool.delete(second)
    assert label() is None
    world.tool.answer(task, "blue", "cleo@example.org")
    world.tool.answer(task, "mauve", "anna@example.org")
    assert label() == "blue", "an answer that is no label of the loop does not count"
    assert [row["refused"] is not None for row in world.loop.work.annotations()] == [False, False, False, True]
    world.tool.delete_task(task)
    assert label() is None


def test_a_sample_that_left_the_queue_cannot_be_decided_about_by_a_wrong_name(world: FakeLoop) -> None:
    give(world, "pool", 2, np.random.default_rng(9))
    steps.mine(world.loop, "round-1", 2)
    one, other = sorted(queued(world))
    with pytest.raises(Missing, match=f"sample {'0' * 32} is not in the queue"):
        world.loop.work.decide("approved", "reviewer", [one, "0" * 32])
    assert queued(world, "approved") == set(), "all or nothing"
    assert world.loop.work.decide("rejected", "reviewer", [one]) == 1
    assert world.loop.work.decide("approved", "reviewer", [one]) == 0, "a decision stands"
    assert world.loop.work.decide("approved", "reviewer") == 1
    assert queued(world, "approved") == {other}


def _one_task(world: FakeLoop) -> list[str]:
    steps.mine(world.loop, "round-1", 1)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    return sorted(queued(world))

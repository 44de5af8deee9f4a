"""Train, promote and roll back on both databases: each once, in the open, and only forwards through the gate."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from hardloop.core import ids, images
from hardloop.core.errors import BadData, Conflict, ExportMismatch, HardloopError, Interrupted, Unavailable
from hardloop.core.ports import Progress
from hardloop.core.records import Split, TrainedModel, Verdict
from hardloop.service import database as db
from hardloop.service import judging, retraining, schedule, steps
from hardloop.service.intake import GivenImage
from tests.fakes.loops import LABELS, FakeLoop, fake_loop, picture
from tests.fakes.registry import InMemoryRegistry
from tests.service.scenes import first_model, give, produce, round_of_labels
from training import datasets


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path)
    yield world
    world.capture.close()


def trainer_that(
    world: FakeLoop, act: Callable[[int], None]
) -> Callable[[str, str, int, Path, Progress], TrainedModel]:
    """The world's trainer, which first does something with the number of its call."""
    calls = iter(range(1, 1000))

    def train(dataset_key: str, recipe: str, seed: int, folder: Path, progress: Progress) -> TrainedModel:
        act(next(calls))
        return world.trainer(dataset_key, recipe, seed, folder, progress)

    return train


def fails(error: HardloopError, times: int = 1000) -> Callable[[int], None]:
    def act(call: int) -> None:
        if call <= times:
            raise error

    return act


def relabel(world: FakeLoop, sample: str, label: str) -> None:
    """An annotator changes the one answer to a sample."""
    (answer,) = world.loop.work.annotations(sample)
    world.tool.change(answer["annotation_id"], label)
    steps.collect(world.loop)


# ---------------------------------------------------------------- train


def test_a_training_that_cannot_succeed_says_why_and_is_tried_again_after_longer_and_longer_pauses(
    world: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    reds = [GivenImage(f"red-{n}", picture("red", rng), "archive", "seed", "red") for n in range(6)]
    loop = world.loop
    steps.add_images(loop, reds)
    assert retraining.due(loop).fire
    with pytest.raises(BadData, match="fewer than two classes"):
        steps.train(loop)
    (row,) = loop.lineage.trainings()
    assert row["state"] == "failed"
    assert "fewer than two classes" in row["error"]
    assert row["finished_at"] is not None
    assert not retraining.due(loop).fire, "not at once"
    assert steps.train(loop) is None
    (event,) = [event for event in loop.work.events() if event["kind"] == "training failed"]
    assert event["detail"] == {"training": row["training_key"], "why": row["error"]}
    pauses = []
    for _ in range(3):
        decision = retraining.due(loop)
        assert decision.at is not None
        pauses.append((decision.at - loop.lineage.trainings()[-1]["finished_at"]).total_seconds())
        monkeypatch.setattr(db, "now", lambda at=decision.at: at)
        with pytest.raises(BadData, match="fewer than two classes"):
            steps.train(loop)
    assert pauses == [30, 60, 120]
    give(world, "seed", 2, rng)
    later = db.now() + timedelta(seconds=480)
    monkeypatch.setattr(db, "now", lambda: later)
    assert steps.train(loop) == "1", "other labels, another training"
    assert [t["state"] for t in loop.lineage.trainings()] == ["failed", "trained"]


def test_a_person_may_insist_on_a_training_that_failed(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(0))
    mismatch = ExportMismatch("the exported model answers otherwise")
    loop = replace(world.loop, trainer=trainer_that(world, fails(mismatch, 1)))
    with pytest.raises(ExportMismatch):
        steps.train(loop)
    assert steps.train(loop) is None
    assert steps.train(loop, manual=True) == "1"
    (row,) = loop.lineage.trainings()
    assert (row["state"], row["error"], row["attempts"]) == ("trained", None, 1)


def test_a_store_that_is_away_while_training_costs_time_and_not_the_training(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(1))
    away = Unavailable("S3 does not answer")
    loop = replace(world.loop, trainer=trainer_that(world, fails(away, 2 * retraining.MAX_ATTEMPTS)))
    for _ in range(2 * retraining.MAX_ATTEMPTS):
        with pytest.raises(Unavailable):
            steps.train(loop)
    assert steps.train(loop) == "1"
    assert [t["state"] for t in loop.lineage.trainings()] == ["trained"]


def test_a_training_that_takes_the_process_down_again_and_again_is_given_up(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(2))

    class Killed(BaseException):
        """What SIGKILL is to the database: no handler of ours runs."""

    def dies(call: int) -> None:
        raise Killed

    loop = replace(world.loop, trainer=trainer_that(world, dies))
    for _ in range(retraining.MAX_ATTEMPTS):
        with pytest.raises(Killed):
            steps.train(loop)
    with pytest.raises(Interrupted, match="given up after 3 attempts"):
        steps.train(loop)
    (row,) = loop.lineage.trainings()
    assert row["state"] == "failed"
    assert "given up" in row["error"]
    assert not retraining.due(loop).fire


def test_without_a_single_label_nothing_is_trained_and_a_person_who_insists_is_told(world: FakeLoop) -> None:
    assert steps.train(world.loop) is None
    with pytest.raises(BadData, match="loop 'colours' has no label yet"):
        steps.train(world.loop, manual=True)
    assert world.loop.lineage.trainings() == world.loop.lineage.datasets() == []


def test_two_trainings_of_one_loop_never_run_at_once(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(3))
    loop = world.loop
    assert retraining.claim(loop, "first") is not None
    steps.add_images(loop, [GivenImage("more.png", picture("red", np.random.default_rng(4)), "archive", "seed", "red")])
    with pytest.raises(Conflict, match="is training already"):
        retraining.claim(loop, "second")
    assert not retraining.due(loop, manual=True).fire
    assert [t["state"] for t in loop.lineage.trainings()] == ["running"]


def test_callers_that_ask_at_the_same_time_get_one_training_between_them(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(5))
    barrier, found, refused = threading.Barrier(4), [], []

    def ask() -> None:
        barrier.wait()
        try:
            found.append(retraining.claim(world.loop, "race"))
        except Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([key for key in found if key is not None]) == 1
    assert len(found) + len(refused) == 4
    assert len(world.loop.lineage.trainings()) == 1


def test_a_killed_training_is_finished_first_and_registered_once(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(6))
    assert retraining.claim(world.loop, "killed before it began") is not None
    assert steps.train(world.loop) == "1"
    row = world.loop.lineage.trainings()[0]
    world.loop.lineage.end_training(row["training_key"], None, "as if the end had not been recorded")
    steps.train(world.loop, manual=True)
    assert [v.version for v in world.registry.versions()] == ["1"]
    assert world.trainer.calls == 1


def test_labels_that_change_there_and_back_do_not_trigger_for_ever(world: FakeLoop) -> None:
    rng = np.random.default_rng(7)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    picks = round_of_labels(world, "round-1", 10)
    assert steps.train(world.loop) is not None
    (before, changed) = (world.truth[picks[0]], next(x for x in LABELS if x != world.truth[picks[0]]))
    policy = world.loop.settings.trigger.model_copy(update={"min_new_labels": 1})
    loop = replace(world.loop, settings=world.loop.settings.model_copy(update={"trigger": policy}))
    relabel(world, picks[0], changed)
    assert steps.train(loop) is not None
    relabel(world, picks[0], before)
    assert retraining.due(loop).fire
    assert steps.train(loop) is None, "these very labels were trained on before"
    assert not retraining.due(loop).fire, "and they stay looked at"
    assert len(loop.lineage.datasets()) == 3


def test_near_duplicates_of_held_out_samples_are_left_out_of_training_and_named(world: FakeLoop) -> None:
    rng = np.random.default_rng(8)
    give(world, "seed", 3, rng)
    held_out = _textured(rng)
    brighter = np.clip(held_out.astype(np.int16) + 1, 0, 255).astype(np.uint8)
    copy, original = images.encode_png(brighter), images.encode_png(held_out)
    steps.add_images(
        world.loop,
        [
            GivenImage("test.png", original, "archive", "legacy", "red"),
            GivenImage("copy.png", copy, "archive", "seed", "red"),
        ],
    )
    assert steps.train(world.loop, manual=True) is not None
    (version,) = world.loop.lineage.datasets()
    rows = {row.sample_id: row for row in datasets.load(world.blobs, version["key"]).rows}
    assert ids.sample_id(copy) not in rows
    assert rows[ids.sample_id(original)].split is Split.LEGACY
    assert sum(row.split is Split.TRAIN for row in rows.values()) == 9
    (excluded,) = version["excluded"]
    assert excluded.startswith(ids.sample_id(copy))
    assert "near-duplicate" in excluded


def _textured(rng: np.random.Generator) -> np.ndarray:
    """An image with enough edges for a fingerprint to know it by."""
    return np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def test_a_registry_that_was_set_up_anew_is_told_since_its_numbers_name_other_models(world: FakeLoop) -> None:
    rng = np.random.default_rng(15)
    first_model(world, rng)
    (before,) = world.loop.lineage.trainings()
    anew = InMemoryRegistry("colours")
    loop = replace(world.loop, registry=anew)
    give(world, "seed", 2, rng)
    told = (
        rf"its model version 1 is training \w{{16}} in MLflow and was training {before['training_key']} before, as in "
        "an MLflow that was set up anew"
    )
    with pytest.raises(Conflict, match=told):
        steps.train(loop, manual=True)
    assert [v.version for v in anew.versions()] == ["1"]
    rows = {t["training_key"]: t for t in loop.lineage.trainings()}
    (row,) = (t for key, t in rows.items() if key != before["training_key"])
    assert rows[before["training_key"]] == before
    assert (row["state"], row["model_version"]) == ("failed", None)
    assert "restore its database" in row["error"], "it stays to be read, whatever is restarted"
    assert steps.promote(loop) is None, "no model serves by a decision that was made about another"
    assert [d["model_version"] for d in loop.lineage.decisions()] == ["1"]
    assert steps.train(world.loop, manual=True) == "2", "back in its own registry it goes on"


@pytest.mark.parametrize("decided", [True, False])
def test_a_number_that_names_another_training_now_is_no_version_of_ours(world: FakeLoop, decided: bool) -> None:
    give(world, "seed", 3, np.random.default_rng(16))
    version = steps.train(world.loop, manual=True)
    assert version == "1"
    if decided:
        world.loop.lineage.decide(version, Verdict(True, "as decided before MLflow was lost", (), None, 7))
    (kept,) = world.registry.versions_kept
    kept.version = replace(kept.version, training_key="another")
    assert steps.promote(world.loop) is None
    assert world.registry.champion() is None
    (event,) = [event for event in world.loop.work.events() if event["actor"] == "gate"]
    assert "not in the registry any more" in event["detail"]["why"]
    assert not schedule.undecided(world.loop)


# ---------------------------------------------------------------- promote


def test_the_gate_refuses_a_candidate_that_is_worse_and_the_champion_stays(world: FakeLoop) -> None:
    rng = np.random.default_rng(9)
    first_model(world, rng)
    produce(world, 40, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "round-1", 25)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    while (task := world.tool.next_task()) is not None:  # an annotator who has all three colours wrong
        right = LABELS.index(world.truth[world.tool.draft(task).sample_id])
        world.tool.answer(task, LABELS[(right + 1) % 3])
    steps.collect(world.loop)
    second = steps.train(world.loop)
    assert second == "2"
    assert steps.promote(world.loop) == "1"
    first, refused = world.loop.lineage.decisions()
    assert (first["promoted"], refused["promoted"]) == (True, False)
    assert refused["verdict"]["champion_version"] == "1"
    assert any(part["name"] == "legacy" and part["passed"] is False for part in refused["verdict"]["slices"])
    assert world.registry.verdict(world.registry.versions()[1]) is not None
    assert "refused by the gate" in {event["kind"] for event in world.loop.work.events()}


def test_a_decision_is_carried_out_once_and_told_once(world: FakeLoop) -> None:
    told: list[int] = []
    world = replace(world, loop=replace(world.loop, champion_moved=lambda: told.append(1)))
    first_model(world, np.random.default_rng(10))
    for _ in range(3):
        assert steps.promote(world.loop) == "1"
    assert told == [1]
    assert [event["kind"] for event in world.loop.work.events()].count("promoted") == 1


def test_a_decision_that_was_stored_and_not_carried_out_is_carried_out_as_it_was_decided(world: FakeLoop) -> None:
    give(world, "seed", 3, np.random.default_rng(11))
    version = steps.train(world.loop, manual=True)
    assert version is not None
    world.loop.lineage.decide(version, Verdict(True, "as decided before the crash", (), None, 7))
    assert schedule.undecided(world.loop)
    assert steps.promote(world.loop) == version
    kept = world.registry.verdict(world.registry.versions()[0])
    assert kept is not None
    assert (kept.reason, kept.seed) == ("as decided before the crash", 7)
    assert not schedule.undecided(world.loop)


def test_a_candidate_whose_version_was_deleted_from_the_registry_does_not_block_the_next_one(world: FakeLoop) -> None:
    rng = np.random.default_rng(12)
    first_model(world, rng)
    give(world, "seed", 2, rng)
    assert steps.train(world.loop, manual=True) == "2"
    del world.registry.versions_kept[1]
    assert steps.promote(world.loop) == "1"
    gone = world.loop.lineage.decisions()[-1]
    assert (gone["model_version"], gone["promoted"]) == ("2", False)
    assert "not in the registry any more" in gone["reason"]
    assert not schedule.undecided(world.loop)


def test_rolling_back_serves_the_version_before_and_the_gate_does_not_undo_it(world: FakeLoop) -> None:
    rng = np.random.default_rng(13)
    moved: list[int] = []
    world = replace(world, loop=replace(world.loop, champion_moved=lambda: moved.append(1)))
    first_model(world, rng)
    with pytest.raises(Conflict):
        steps.roll_back(world.loop, "nothing before it", "operator")
    give(world, "seed", 4, rng)
    second = steps.train(world.loop, manual=True)
    world.registry.promote(world.registry.versions()[1], "by hand")
    world.loop.lineage.decide(str(second), Verdict(True, "by hand", (), "1", 0))
    world.loop.lineage.applied(str(second))
    assert steps.roll_back(world.loop, "misreads the new packaging", "operator") == "1"
    assert moved == [1, 1]
    assert steps.promote(world.loop) == "1"
    (event,) = [event for event in world.loop.work.events() if event["kind"] == "rolled back"]
    assert (event["actor"], event["detail"]) == ("operator", {"model": "1", "why": "misreads the new packaging"})


def test_a_candidate_is_never_compared_on_samples_the_champion_was_trained_on(world: FakeLoop) -> None:
    rng = np.random.default_rng(14)
    first_model(world, rng)
    seeds = {s.sample_id for s in world.loop.samples.all() if s.role == "seed"}
    produce(world, 40, rng)
    steps.ingest(world.loop)
    picks = round_of_labels(world, "round-1", 20)
    assert steps.train(world.loop) == "2"
    verdict = judging.judge(world.loop, world.registry.versions()[1])
    mined = {part.name: part.n for part in verdict.slices}["mined"]
    in_pool = {s.sample_id for s in world.loop.samples.get(picks).values() if s.role == "pool"}
    assert mined == len(in_pool)
    assert not in_pool & seeds


def test_a_training_leaves_no_files_once_the_registry_holds_its_model(world: FakeLoop) -> None:
    rng = np.random.default_rng(33)
    first_model(world, rng)
    version = world.registry.versions()[-1]
    assert world.registry.fetch(version, world.loop.folder / "elsewhere").is_dir()
    assert not list((world.loop.folder / "trainings").iterdir())

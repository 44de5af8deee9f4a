"""Labels that the user brings, against what annotators, earlier uploads and the audit holdout say of the same image."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from hardloop.core import ids
from hardloop.service import database as db
from hardloop.service import steps
from hardloop.service.intake import GivenImage
from hardloop.service.schedule import Attention, due
from tests.fakes.loops import LABELS, FakeLoop, fake_loop, picture
from tests.service.scenes import first_model, give, produce, round_of_labels


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path)
    yield world
    world.capture.close()


def mined(world: FakeLoop, send: bool = True) -> list[str]:
    """Approved picks that are not of the audit holdout, sent unless told otherwise."""
    rng = np.random.default_rng(0)
    first_model(world, rng)
    produce(world, 60, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "round-1", 10)
    world.loop.work.decide("approved", "reviewer")
    if send:
        steps.send(world.loop)
    return [item["sample_id"] for item in world.loop.work.queue() if item["arm"] != "audit"]


def task_of(world: FakeLoop, sample: str) -> int:
    return next(int(task["task_id"]) for task in world.loop.work.tasks() if task["sample_id"] == sample)


def row_of(world: FakeLoop, sample: str) -> dict[str, Any]:
    return next(row for row in world.loop.work.labels() if row["sample_id"] == sample)


def upload(world: FakeLoop, sample: str, label: str, role: str) -> dict[str, int]:
    image = world.blobs.get(world.loop.samples.get([sample])[sample].image_key)
    return steps.add_images(world.loop, [GivenImage("a.png", image, "archive", role, label)])


def other_than(label: str) -> str:
    return next(name for name in LABELS if name != label)


def label_refusals(world: FakeLoop) -> list[tuple[str, str]]:
    return [(reference, reason) for kind, reference, reason in world.loop.samples.refusals() if kind == "label"]


KNOWN = {"new": 0, "known": 1, "refused": 0}
REFUSED = {"new": 0, "known": 0, "refused": 1}


@pytest.mark.parametrize("role", ["seed", "legacy"])
def test_a_label_is_taken_for_a_sample_whose_own_was_retracted(world: FakeLoop, role: str) -> None:
    sample = mined(world)[0]
    answer = world.tool.answer(task_of(world, sample), "red")
    steps.collect(world.loop)
    world.tool.delete(answer)
    steps.collect(world.loop)
    assert row_of(world, sample)["label"] is None
    assert upload(world, sample, "blue", role) == KNOWN
    row = row_of(world, sample)
    assert (row["label"], row["origin"], row["annotation_ids"], row["used_in"]) == ("blue", role, [], None)
    assert world.loop.samples.get([sample])[sample].role == ("pool" if role == "seed" else "legacy")
    world.tool.answer(task_of(world, sample), "green")
    steps.collect(world.loop)
    assert row_of(world, sample)["label"] == "blue", "no annotation changes what the user brought"


def test_the_same_label_twice_is_known_and_changes_nothing(world: FakeLoop) -> None:
    image = picture("red", np.random.default_rng(1))
    given = [GivenImage("a.png", image, "archive", "seed", "red")]
    assert steps.add_images(world.loop, given) == {"new": 1, "known": 0, "refused": 0}
    before = world.loop.work.labels()
    assert steps.add_images(world.loop, given) == KNOWN
    assert (world.loop.work.labels(), label_refusals(world)) == (before, [])


def test_another_label_for_one_that_was_brought_is_refused_by_name_with_both(world: FakeLoop) -> None:
    image = picture("red", np.random.default_rng(1))
    steps.add_images(world.loop, [GivenImage("a.png", image, "archive", "seed", "red")])
    reference = f"b.png (sample {ids.sample_id(image)})"
    for wrong in ("blue", "green"):
        assert steps.add_images(world.loop, [GivenImage("b.png", image, "archive", "seed", wrong)]) == REFUSED
        why = f"b.png: given as {wrong!r}, but 'red' was brought before, and stays: leave it out"
        assert label_refusals(world) == [(reference, why)], "the newest reason"
    assert [row["label"] for row in world.loop.work.labels()] == ["red"]


def test_a_label_against_the_annotators_is_refused_and_their_own_is_known(world: FakeLoop) -> None:
    sample = mined(world)[0]
    world.answer_all()
    steps.collect(world.loop)
    before, truth = row_of(world, sample), world.truth[sample]
    assert upload(world, sample, truth, "seed") == KNOWN
    assert upload(world, sample, other_than(truth), "seed") == REFUSED
    ((_, reason),) = label_refusals(world)
    assert f"but annotators say {truth!r}: correct the wrong one in Label Studio" in reason
    assert row_of(world, sample) == before


@pytest.mark.parametrize(("first", "second"), [("seed", "legacy"), ("legacy", "seed")])
def test_what_is_there_to_train_on_cannot_measure_and_the_other_way_round(
    world: FakeLoop, first: str, second: str
) -> None:
    image = picture("red", np.random.default_rng(1))
    sample = ids.sample_id(image)
    steps.add_images(world.loop, [GivenImage("a.png", image, "archive", first, "red")])
    assert upload(world, sample, "red", second) == REFUSED
    ((_, reason),) = label_refusals(world)
    assert reason.endswith(f"it is there to {'train' if first == 'seed' else 'measure'} on: leave it out")
    assert world.loop.samples.get([sample])[sample].role == first
    assert row_of(world, sample)["origin"] == first


def test_what_annotators_labelled_to_train_on_cannot_be_held_out_later(world: FakeLoop) -> None:
    sample = mined(world)[0]
    world.answer_all()
    steps.collect(world.loop)
    assert upload(world, sample, world.truth[sample], "legacy") == REFUSED
    assert world.loop.samples.get([sample])[sample].role == "pool"


@pytest.mark.parametrize("role", ["seed", "legacy"])
def test_a_sample_of_the_audit_holdout_takes_no_label_from_the_user(world: FakeLoop, role: str) -> None:
    mined(world)
    audit = world.loop.samples.of_role("audit")
    assert audit
    for sample in audit:
        assert upload(world, sample.sample_id, world.truth[sample.sample_id], role) == REFUSED
    assert {row["origin"] for row in world.loop.work.labels()} == {"seed", "legacy"}
    assert not {s.sample_id for s in audit} & {row["sample_id"] for row in world.loop.work.labels()}
    assert len(label_refusals(world)) == len(audit)
    assert all("it is of the audit holdout, which only annotators label" in why for _, why in label_refusals(world))


def test_one_image_in_two_roles_at_once_keeps_the_first(world: FakeLoop) -> None:
    image = picture("red", np.random.default_rng(1))
    given = [GivenImage(f"{role}.png", image, "archive", role, "red") for role in ("seed", "legacy")]
    assert steps.add_images(world.loop, given) == {"new": 1, "known": 0, "refused": 1}
    assert [(row["origin"], row["label"]) for row in world.loop.work.labels()] == [("seed", "red")]
    assert [reference.split()[0] for reference, _ in label_refusals(world)] == ["legacy.png"]


def test_an_upload_killed_before_its_labels_is_finished_by_repeating_it(
    world: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture("red", np.random.default_rng(1))
    given = [GivenImage("a.png", image, "archive", "legacy", "red")]
    with monkeypatch.context() as patch:
        patch.setattr(world.loop.work, "give_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            steps.add_images(world.loop, given)
    assert world.loop.work.labels() == []
    assert steps.add_images(world.loop, given) == KNOWN
    assert [(row["origin"], row["label"]) for row in world.loop.work.labels()] == [("legacy", "red")]


@pytest.mark.postgres  # SQLite has one writer at a time, so the two never meet there
def test_a_label_brought_while_answers_are_collected_stays(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = db.connect(postgres_url)
    db.migrate(engine)
    world = fake_loop(engine, tmp_path)
    sample = mined(world)[0]
    truth = world.truth[sample]
    world.tool.answer(task_of(world, sample), other_than(truth))
    real, once = db.upsert, iter([True])

    def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Any], **how: Any) -> None:
        if table is db.labels and next(once, False):
            assert upload(world, sample, truth, "seed") == KNOWN
        real(connection, table, rows, **how)

    monkeypatch.setattr(db, "upsert", upsert)
    steps.collect(world.loop)
    assert next(once, None) is None, "the upload came in between"
    row = row_of(world, sample)
    assert (row["label"], row["origin"]) == (truth, "seed")
    world.capture.close()
    engine.dispose()


def test_an_answer_collected_while_a_label_is_brought_is_no_silent_loss(
    world: FakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = mined(world)[0]
    truth = world.truth[sample]
    real = world.loop.samples.hold_out

    def collected_meanwhile(samples: Any) -> None:
        real(samples)
        world.tool.answer(task_of(world, sample), other_than(truth))
        steps.collect(world.loop)

    monkeypatch.setattr(world.loop.samples, "hold_out", collected_meanwhile)
    assert upload(world, sample, truth, "seed") == REFUSED
    assert row_of(world, sample)["label"] == other_than(truth)
    ((_, reason),) = label_refusals(world)
    assert f"given as {truth!r}, but annotators say" in reason


# ---------------------------------------------------------------- work that is then nobody's


@pytest.mark.parametrize("role", ["seed", "legacy"])
def test_an_approved_pick_whose_label_was_brought_is_not_sent_to_people(world: FakeLoop, role: str) -> None:
    sample = mined(world, send=False)[0]
    assert world.loop.work.counts()["approved"] == 10
    assert upload(world, sample, world.truth[sample], role) == KNOWN
    counts = world.loop.work.counts()
    assert (counts["items"], counts["approved"], counts["labelled"]) == (10, 9, 1)
    assert steps.send(world.loop) == 9
    assert sample not in {task["sample_id"] for task in world.loop.work.tasks()}
    quiet = Attention(collected_at=0.0, swept_at=0.0, listed_at=0.0, reread_at=0.0)
    assert ("send",) not in [one.chain for one in due(world.loop, quiet, 1.0, 30.0)]


def test_a_task_whose_label_was_brought_is_open_no_more(world: FakeLoop) -> None:
    sample = mined(world)[0]
    upload(world, sample, world.truth[sample], "seed")
    assert world.loop.work.counts()["open"] == 9
    assert sample not in {item["sample_id"] for item in world.loop.work.open_items()}


def test_a_refused_answer_leaves_its_task_open_and_a_skip_does_not(world: FakeLoop) -> None:
    give(world, "pool", 3, np.random.default_rng(2))
    steps.mine(world.loop, "round-1", 3)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    first, second, third = sorted(world.tool.task_ids())
    refused = world.tool.answer(first, "mauve")
    world.tool.skip(second)
    steps.collect(world.loop)
    assert world.loop.work.counts()["open"] == 2
    assert {item["task_id"] for item in world.loop.work.open_items()} == {first, third}
    world.tool.change(refused, "red")
    steps.collect(world.loop)
    assert {item["task_id"] for item in world.loop.work.open_items()} == {third}


# ---------------------------------------------------------------- what made a label


def test_a_label_names_the_answers_that_are_there_and_is_no_news_while_it_stays(world: FakeLoop) -> None:
    give(world, "pool", 2, np.random.default_rng(3))
    (sample,) = round_of_labels(world, "round-1", 1)
    (task,) = world.tool.task_ids()
    (first,) = row_of(world, sample)["annotation_ids"]
    before = row_of(world, sample)
    second = world.tool.answer(task, world.truth[sample], "ben@example.org")
    assert steps.collect(world.loop)["labels"] == 0
    assert row_of(world, sample) == {**before, "annotation_ids": [first, second]}
    world.tool.delete(first)
    assert steps.collect(world.loop)["labels"] == 0
    assert row_of(world, sample) == {**before, "annotation_ids": [second]}

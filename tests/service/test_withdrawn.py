"""Samples whose image is gone or altered, or that somebody withdraws: the loop goes on without them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from hardloop.core.errors import BadImage, Missing
from hardloop.service import steps
from tests.fakes.loops import FakeLoop, fake_loop
from tests.service.scenes import first_model, give, produce, round_of_labels
from training import datasets


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path)
    yield world
    world.capture.close()


def lose(world: FakeLoop, sample_id: str) -> None:
    """Somebody deletes the image from the bucket."""
    world.blobs.delete(world.loop.samples.get([sample_id])[sample_id].image_key)


def alter(world: FakeLoop, sample_id: str) -> None:
    """Something overwrites the image in the bucket."""
    world.blobs.put(world.loop.samples.get([sample_id])[sample_id].image_key, b"\x89PNG\r\n\x1a\nnot any more")


def role(world: FakeLoop, sample_id: str) -> str:
    return world.loop.samples.get([sample_id])[sample_id].role


def of_role(world: FakeLoop, wanted: str) -> str:
    return world.loop.samples.of_role(wanted)[0].sample_id


def refused(world: FakeLoop) -> dict[str, str]:
    return {reference: reason for kind, reference, reason in world.loop.samples.refusals() if kind == "sample"}


@pytest.mark.parametrize("damage", [lose, alter])
def test_mining_goes_on_without_an_image_that_is_gone_or_altered(world: FakeLoop, damage) -> None:
    rng = np.random.default_rng(0)
    first_model(world, rng)
    produce(world, 20, rng, model_version="elsewhere")
    steps.ingest(world.loop)
    broken = of_role(world, "pool")
    damage(world, broken)
    steps.mine(world.loop, "s1", 19)
    picked = {item["sample_id"] for item in world.loop.work.queue()}
    assert len(picked) >= 8  # the rest are near-duplicates in a space of three colours
    assert broken not in picked
    assert role(world, broken) == "gone"
    assert list(refused(world)) == [broken]
    assert "its image" in refused(world)[broken]


def test_the_gate_goes_on_without_an_image_it_wanted_to_measure_on(world: FakeLoop) -> None:
    rng = np.random.default_rng(1)
    champion = first_model(world, rng)
    produce(world, 30, rng)
    steps.ingest(world.loop)
    round_of_labels(world, "s1", 12)
    version = steps.train(world.loop, manual=True)
    assert version != champion
    broken = of_role(world, "legacy")
    lose(world, broken)
    steps.promote(world.loop)
    (verdict,) = [d["verdict"] for d in world.loop.lineage.decisions() if d["model_version"] == version]
    assert {part["name"]: part["n"] for part in verdict["slices"]}["legacy"] == 59
    assert role(world, broken) == "gone"


def test_a_training_fails_once_over_an_image_that_is_gone_and_the_next_leaves_it_out(world: FakeLoop) -> None:
    rng = np.random.default_rng(2)
    give(world, "seed", 4, rng)
    broken = of_role(world, "seed")
    lose(world, broken)
    real = world.loop.trainer

    def trainer(dataset_key, *rest):  # as training/inputs.py puts it
        rows = datasets.load(world.blobs, dataset_key).rows
        if missing := [row.image_key for row in rows if not world.blobs.exists(row.image_key)]:
            raise BadImage(f"{len(missing)} of {len(rows)} images cannot be trained on")
        return real(dataset_key, *rest)

    object.__setattr__(world.loop, "trainer", trainer)
    with pytest.raises(BadImage, match="cannot be trained on"):
        steps.train(world.loop, manual=True)
    assert role(world, broken) == "gone"
    assert steps.train(world.loop, manual=True) == "1"
    newest = datasets.load(world.blobs, world.loop.lineage.datasets()[-1]["key"])
    assert len(newest.rows) == 11
    assert broken not in {row.sample_id for row in newest.rows}


def test_a_withdrawn_sample_is_neither_mined_nor_sent_nor_trained_on_and_cannot_come_back(world: FakeLoop) -> None:
    rng = np.random.default_rng(3)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "s1", 6)
    world.loop.work.decide("approved", "reviewer")
    unsent, *others = [item["sample_id"] for item in world.loop.work.queue()]
    given = of_role(world, "seed")
    assert steps.withdraw(world.loop, [unsent, given], "asked to by its owner", "reviewer") == 2
    assert steps.withdraw(world.loop, [unsent, given], "asked to by its owner", "reviewer") == 0
    steps.send(world.loop)
    assert {task["sample_id"] for task in world.loop.work.tasks()} == set(others)
    assert world.loop.work.counts()["approved"] == 0
    world.answer_all()
    steps.collect(world.loop)
    steps.train(world.loop, manual=True)
    newest = datasets.load(world.blobs, world.loop.lineage.datasets()[-1]["key"])
    assert {given, unsent}.isdisjoint(row.sample_id for row in newest.rows)
    steps.ingest(world.loop, everything=True)
    steps.mine(world.loop, "s2", 20)
    assert unsent not in {item["sample_id"] for item in world.loop.work.queue(selection_id="s2")}
    assert refused(world) == {unsent: "asked to by its owner", given: "asked to by its owner"}


def test_an_answer_to_a_withdrawn_sample_makes_no_training_row(world: FakeLoop) -> None:
    rng = np.random.default_rng(4)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "s1", 6)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    sent = world.loop.work.tasks()[0]["sample_id"]
    steps.withdraw(world.loop, [sent], "not ours to use", "reviewer")
    world.answer_all()
    steps.collect(world.loop)
    steps.train(world.loop, manual=True)
    newest = datasets.load(world.blobs, world.loop.lineage.datasets()[-1]["key"])
    assert sent not in {row.sample_id for row in newest.rows}


def test_withdrawing_a_sample_nobody_knows_is_refused_and_changes_nothing(world: FakeLoop) -> None:
    give(world, "seed", 1, np.random.default_rng(5))
    known = of_role(world, "seed")
    with pytest.raises(Missing, match="0000"):
        steps.withdraw(world.loop, [known, "0" * 32], "a slip", "reviewer")
    assert role(world, known) == "seed"

"""Samples whose image is gone or altered, or that somebody withdraws: the loop goes on without them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from hardloop.core import ids
from hardloop.core.directory_blobs import DirectoryBlobs
from hardloop.core.errors import BadSettings, Missing, Unavailable
from hardloop.service import schedule, steps
from hardloop.service.intake import GivenImage
from hardloop.service.schedule import Attention, Due
from tests.fakes.loops import FakeLoop, fake_loop, picture
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


def restore(world: FakeLoop, sample_id: str, image: bytes) -> None:
    world.blobs.put(world.loop.samples.get([sample_id])[sample_id].image_key, image, "image/png")


def stored(world: FakeLoop, sample_id: str) -> bytes:
    return world.blobs.get(world.loop.samples.get([sample_id])[sample_id].image_key)


@pytest.mark.parametrize("damage", [lose, alter])
def test_mining_goes_on_without_an_image_that_is_gone_or_altered_and_with_it_once_it_is_back(
    world: FakeLoop, damage
) -> None:
    rng = np.random.default_rng(0)
    first_model(world, rng)
    produce(world, 20, rng, model_version="elsewhere")
    steps.ingest(world.loop)
    broken = of_role(world, "pool")
    image = stored(world, broken)
    damage(world, broken)
    steps.mine(world.loop, "s1", 19)
    picked = {item["sample_id"] for item in world.loop.work.queue()}
    assert len(picked) >= 8  # the rest are near-duplicates in a space of three colours
    assert broken not in picked
    assert list(refused(world)) == [broken]
    assert "its image" in refused(world)[broken]
    restore(world, broken, image)
    steps.mine(world.loop, "s2", 19)
    (prediction,) = [p for p in world.loop.samples.predictions_of(broken) if p.model_version == "1"]
    assert prediction.encoder == world.loop.scorer(world.registry.champion()).encoder


def test_a_task_is_not_made_of_an_image_that_went_after_it_was_picked(world: FakeLoop) -> None:
    rng = np.random.default_rng(6)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    steps.mine(world.loop, "s1", 6)
    world.loop.work.decide("approved", "reviewer")
    broken, *others = [item["sample_id"] for item in world.loop.work.queue()]
    lose(world, broken)
    assert steps.send(world.loop) == len(others)
    assert {task["sample_id"] for task in world.loop.work.tasks()} == set(others)
    assert "no task was made" in refused(world)[broken]
    assert world.loop.work.counts()["approved"] == 0


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


def test_a_dataset_leaves_out_labels_whose_image_is_gone_and_names_them(world: FakeLoop) -> None:
    rng = np.random.default_rng(2)
    give(world, "seed", 4, rng)
    broken = of_role(world, "seed")
    image = stored(world, broken)
    lose(world, broken)
    assert steps.train(world.loop, manual=True) == "1"
    (version,) = world.loop.lineage.datasets()
    assert version["excluded"] == [f"{broken}: its image is gone from the store"]
    assert broken not in {row.sample_id for row in datasets.load(world.blobs, version["key"]).rows}
    restore(world, broken, image)
    assert steps.train(world.loop, manual=True) == "2"
    assert world.loop.lineage.datasets()[-1]["counts"]["train"] == 12


def test_a_store_that_is_another_one_or_refuses_us_takes_nothing_away(world: FakeLoop) -> None:
    """An empty bucket, an unmounted folder, revoked credentials: loud, and all is as it was once that is mended."""
    rng = np.random.default_rng(7)
    champion = first_model(world, rng)
    produce(world, 30, rng)
    steps.ingest(world.loop)
    round_of_labels(world, "s1", 12)
    version = steps.train(world.loop, manual=True)
    samples, real = world.loop.samples.all(), world.loop.blobs

    class Refusing:
        def __getattr__(self, name: str) -> object:
            def refuse(*_: object, **__: object) -> None:
                raise BadSettings("S3 refused the credentials")

            return refuse

    for store, error in ((DirectoryBlobs(world.loop.folder / "elsewhere"), Unavailable), (Refusing(), BadSettings)):
        object.__setattr__(world.loop, "blobs", store)
        with pytest.raises(error):
            steps.promote(world.loop)
        with pytest.raises(error):
            steps.train(world.loop, manual=True)
    object.__setattr__(world.loop, "blobs", real)
    assert world.loop.samples.all() == samples
    assert refused(world) == {} or all("gone from the store" in reason for reason in refused(world).values())
    assert {d["model_version"] for d in world.loop.lineage.decisions()} == {champion}, "nothing was judged meanwhile"
    steps.promote(world.loop)
    assert version in {d["model_version"] for d in world.loop.lineage.decisions()}


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


def test_a_sample_withdrawn_while_the_miner_picks_it_is_not_sent(world: FakeLoop) -> None:
    rng = np.random.default_rng(8)
    first_model(world, rng)
    produce(world, 20, rng)
    steps.ingest(world.loop)
    real, caught = world.loop.miner, []

    def miner(pool, budget, seed):
        selection = real(pool, budget, seed)
        caught.append(selection.picks[0].sample_id)
        steps.withdraw(world.loop, caught, "asked to by its owner", "reviewer")
        return selection

    object.__setattr__(world.loop, "miner", miner)
    steps.mine(world.loop, "s1", 6)
    world.loop.work.decide("approved", "reviewer")
    steps.send(world.loop)
    assert caught[0] not in {task["sample_id"] for task in world.loop.work.tasks()}
    assert world.loop.work.counts()["approved"] == 0


def test_what_was_withdrawn_cannot_be_brought_again(world: FakeLoop) -> None:
    rng = np.random.default_rng(9)
    image = picture("red", rng)
    sample = ids.sample_id(image)
    steps.add_images(world.loop, [GivenImage("a", image, "archive", "seed", "green")])
    steps.withdraw(world.loop, [sample], "labelled wrongly", "reviewer")
    again = [GivenImage("a", image, "archive", "seed", "red")]
    assert steps.add_images(world.loop, again) == {"new": 0, "known": 0, "refused": 1}
    assert steps.add_images(world.loop, [GivenImage("a", image, "shop")]) == {"new": 0, "known": 0, "refused": 1}
    assert role(world, sample) == "gone"
    assert any("was withdrawn" in reason for _, _, reason in world.loop.samples.refusals())


def test_withdrawn_picks_do_not_keep_mining_from_the_rest_of_the_pool(engine: Engine, tmp_path: Path) -> None:
    world = fake_loop(engine, tmp_path, mine="automatic", budget=5)
    give(world, "pool", 6, np.random.default_rng(10))
    steps.mine(world.loop, "s1")
    picked = [item["sample_id"] for item in world.loop.work.queue()]
    steps.withdraw(world.loop, picked, "one bad camera", "reviewer")
    calm = Attention(collected_at=0.0, swept_at=0.0, listed_at=0.0)
    assert world.loop.samples.unasked() >= 5
    assert Due(("mine",)) in schedule.due(world.loop, calm, 1.0, 30.0)
    world.capture.close()

"""What is due without anybody asking: the right steps, as often as needed and not more often."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from hardloop.core.errors import Unavailable
from hardloop.service import database as db
from hardloop.service import retraining, steps
from hardloop.service.schedule import LIST_S, SWEEP_S, Attention, Due, asked, due
from tests.fakes.loops import FakeLoop, fake_loop, picture
from tests.service.scenes import first_model, give, put_capture_file, put_image, record_of

POLL_S = 30.0


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path, mine="manual", review="automatic")
    yield world
    world.capture.close()


def calm(now_s: float = 0.0) -> Attention:
    """The schedule's memory when everything has just been looked at."""
    return Attention(collected_at=now_s, swept_at=now_s, listed_at=now_s, reread_at=now_s)


def chains(found: list[Due]) -> list[tuple[str, ...]]:
    return [one.chain for one in found]


def ask(world: FakeLoop, attention: Attention, now_s: float) -> list[Due]:
    """What is due, all of it queued, as the ticker does."""
    found = due(world.loop, attention, now_s, POLL_S)
    for one in found:
        asked(attention, one, now_s)
    return found


def with_settings(world: FakeLoop, **changed: object) -> FakeLoop:
    return replace(world, loop=replace(world.loop, settings=world.loop.settings.model_copy(update=changed)))


def capture_one(world: FakeLoop, seed: int) -> None:
    image = put_image(world.blobs, picture("red", np.random.default_rng(seed)))
    put_capture_file(world.blobs, [record_of(image)], db.now())


def test_the_first_look_lists_every_capture_file_and_the_next_ones_nothing(world: FakeLoop) -> None:
    attention = Attention()
    assert ask(world, attention, 0.0) == [Due(("ingest",), {"everything": True})]
    assert due(world.loop, attention, 1.0, POLL_S) == []
    assert due(world.loop, attention, LIST_S - 1, POLL_S) == []
    assert ask(world, attention, LIST_S) == [Due(("ingest",), {"everything": True})]


def test_a_new_capture_file_is_due_until_it_has_been_read(world: FakeLoop) -> None:
    attention = calm()
    capture_one(world, 0)
    assert due(world.loop, attention, 1.0, POLL_S) == [Due(("ingest",))]
    assert due(world.loop, attention, 1.5, POLL_S) == [Due(("ingest",))], "asked again until it is done"
    steps.ingest(world.loop)
    assert due(world.loop, attention, 2.0, POLL_S) == []
    capture_one(world, 1)
    assert due(world.loop, attention, 3.0, POLL_S) == [Due(("ingest",))]


def test_files_that_came_late_are_looked_for_once_a_minute(world: FakeLoop) -> None:
    capture_one(world, 2)
    steps.ingest(world.loop)
    attention = calm()
    assert due(world.loop, attention, SWEEP_S - 1, POLL_S) == []
    assert ask(world, attention, SWEEP_S) == [Due(("ingest",))]
    assert due(world.loop, attention, SWEEP_S + 1, POLL_S) == []


def test_what_cannot_be_looked_at_keeps_no_other_step_from_being_due(world: FakeLoop) -> None:
    class Away:
        def keys(self, prefix: str, start_after: str = "") -> list[str]:
            raise Unavailable("the store is away")

    give(world, "seed", 2, np.random.default_rng(11))
    loop = replace(world.loop, blobs=Away())  # type: ignore[arg-type]
    troubles: dict[str, Exception] = {}
    assert due(loop, calm(), 1.0, POLL_S, troubles) == [Due(("train", "promote"))]
    assert {step: str(error) for step, error in troubles.items()} == {"ingest": "the store is away"}
    with pytest.raises(Unavailable, match="the store is away"):
        due(loop, calm(), 1.0, POLL_S)


def test_mining_is_due_when_little_waits_and_the_pool_can_fill_a_budget(world: FakeLoop) -> None:
    world = with_settings(world, mine="automatic", budget=6, low_water=3)
    attention = calm()
    give(world, "pool", 1, np.random.default_rng(3))
    assert due(world.loop, attention, 1.0, POLL_S) == [], "three samples cannot fill a budget of six"
    give(world, "pool", 6, np.random.default_rng(4))
    assert due(world.loop, attention, 1.0, POLL_S) == [Due(("mine",))]
    steps.mine(world.loop, "round-1")
    assert chains(due(world.loop, attention, 2.0, POLL_S)) == [("send",)], "six wait, which is above the low water"
    steps.send(world.loop)
    for _ in range(4):
        task = world.tool.next_task()
        assert task is not None
        world.tool.answer(task, "red")
    steps.collect(world.loop)
    assert Due(("mine",)) in due(world.loop, calm(3.0), 3.0, POLL_S), "two wait, which is below it"
    assert Due(("mine",)) not in due(with_settings(world, mine="manual").loop, calm(3.0), 3.0, POLL_S)


def test_a_pool_that_has_been_asked_about_entirely_is_not_mined_again_and_again(world: FakeLoop) -> None:
    world = with_settings(world, mine="automatic", budget=6, low_water=3)
    give(world, "pool", 4, np.random.default_rng(5))
    for number in range(4):
        steps.mine(world.loop, f"round-{number}", 6)
    steps.send(world.loop)
    world.answer_all() if world.truth else None
    steps.collect(world.loop)
    assert ("mine",) not in chains(due(world.loop, calm(), 1.0, POLL_S))


def test_sending_is_due_for_what_was_approved_and_has_no_task(world: FakeLoop) -> None:
    world = with_settings(world, review="manual")
    give(world, "pool", 3, np.random.default_rng(6))
    steps.mine(world.loop, "round-1", 3)
    assert due(world.loop, calm(), 1.0, POLL_S) == [], "nobody has approved anything"
    world.loop.work.decide("approved", "reviewer")
    assert due(world.loop, calm(), 1.0, POLL_S) == [Due(("send",))]
    steps.send(world.loop)
    assert due(world.loop, calm(), 1.0, POLL_S) == []


def test_answers_are_collected_after_a_hint_at_once_and_otherwise_at_every_poll(world: FakeLoop) -> None:
    attention = calm()
    attention.hinted = True
    assert due(world.loop, attention, POLL_S, POLL_S) == [], "without a task there is nothing to answer"
    give(world, "pool", 2, np.random.default_rng(7))
    steps.mine(world.loop, "round-1", 2)
    steps.send(world.loop)
    attention = calm()
    assert due(world.loop, attention, POLL_S - 1, POLL_S) == []
    assert ask(world, attention, POLL_S) == [Due(("collect",))]
    assert due(world.loop, attention, POLL_S + 1, POLL_S) == []
    attention.hinted = True
    assert ask(world, attention, POLL_S + 2) == [Due(("collect",))]
    assert not attention.hinted
    assert due(world.loop, attention, POLL_S + 3, POLL_S) == []


def test_what_could_not_be_queued_stays_due(world: FakeLoop) -> None:
    attention = Attention()
    listing = Due(("ingest",), {"everything": True})
    assert due(world.loop, attention, 0.0, POLL_S) == [listing]
    assert due(world.loop, attention, 1.0, POLL_S) == [listing], "the daily listing is not lost to a running ingest"
    asked(attention, listing, 1.0)
    give(world, "pool", 2, np.random.default_rng(7))
    steps.mine(world.loop, "round-1", 2)
    steps.send(world.loop)
    attention = calm()
    attention.hinted = True
    assert due(world.loop, attention, 1.0, POLL_S) == [Due(("collect",))]
    assert due(world.loop, attention, 2.0, POLL_S) == [Due(("collect",))], "nor a hint to a running collect"


def test_a_training_is_due_when_the_trigger_fires_or_one_was_interrupted(world: FakeLoop) -> None:
    give(world, "seed", 1, np.random.default_rng(8))
    assert due(world.loop, calm(), 1.0, POLL_S) == [], "three labels of five"
    give(world, "seed", 1, np.random.default_rng(9))
    assert due(world.loop, calm(), 1.0, POLL_S) == [Due(("train", "promote"))]
    retraining.claim(world.loop, "as if killed here")
    assert not retraining.due(world.loop).fire
    assert due(world.loop, calm(), 1.0, POLL_S) == [Due(("train", "promote"))]
    steps.train(world.loop)
    assert due(world.loop, calm(), 1.0, POLL_S) == [Due(("promote",))], "the candidate waits for the gate"
    steps.promote(world.loop)
    assert due(world.loop, calm(), 1.0, POLL_S) == []


def test_a_quiet_loop_with_a_champion_has_nothing_due(world: FakeLoop) -> None:
    first_model(world, np.random.default_rng(10))
    assert due(world.loop, calm(), 1.0, POLL_S) == []

"""A user's own model beside ours: its numbers count before there is a champion, and never as the champion's."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from hardloop.core.errors import BadSettings
from hardloop.service import schedule, steps
from hardloop.service.app import check_labels
from hardloop.service.intake import GivenImage
from hardloop.service.schedule import Attention, Due
from tests.fakes.loops import LABELS, FakeLoop, fake_loop, picture
from tests.service.scenes import first_model

UNSURE, SURE = [0.34, 0.33, 0.33], [0.98, 0.01, 0.01]


def log(world: FakeLoop, count: int, version: str, probabilities: list[float], seed: int) -> list[str]:
    """Predictions of a model of the user's own; the samples' ids."""
    rng = np.random.default_rng(seed)
    return [
        world.capture.log(
            image=picture(LABELS[i % 3], rng), probabilities=probabilities, model_version=version, source="shop"
        ).sample_id
        for i in range(count)
    ]


def test_what_the_users_model_said_steers_mining_before_there_is_a_champion(engine: Engine, tmp_path: Path) -> None:
    alike_or_not = {"near_duplicate_similarity": False, "outlier_damping": 1.0}
    mining = {"method": "margin", "audit_share": 0, "exploration_share": 0, **alike_or_not}
    world = fake_loop(engine, tmp_path, mining=mining)
    sure, unsure = log(world, 20, "theirs", SURE, 0), log(world, 5, "theirs", UNSURE, 1)
    assert world.capture.flush()
    steps.ingest(world.loop)
    pool = {s.sample_id for s in world.loop.samples.of_role("pool")}
    steps.mine(world.loop, "first", budget=len(pool & set(unsure)))
    assert {item["sample_id"] for item in world.loop.work.queue()} == pool & set(unsure)
    assert pool & set(sure)
    assert world.loop.work.selections()[0]["model_version"] == "theirs"
    world.capture.close()


def test_a_foreign_model_of_the_champions_name_is_not_taken_for_it(engine: Engine, tmp_path: Path) -> None:
    world = fake_loop(engine, tmp_path)
    version = first_model(world, np.random.default_rng(9))
    samples = log(world, 12, version, UNSURE, 2)
    assert world.capture.flush()
    steps.ingest(world.loop)
    steps.mine(world.loop, "first")
    champion = world.champion()
    for sample_id, prediction in world.loop.samples.predictions(version).items():
        if sample_id in samples:
            key = world.loop.samples.get([sample_id])[sample_id].image_key
            expected = champion.score([world.blobs.get(key)]).probs_NC[0]
            np.testing.assert_allclose(prediction.probs_C, expected, atol=1e-5)
    world.capture.close()


def test_mining_does_not_go_on_for_ever_over_samples_nobody_would_pick(engine: Engine, tmp_path: Path) -> None:
    world = fake_loop(engine, tmp_path, mine="automatic", low_water=100, budget=10, review="manual")
    rng = np.random.default_rng(3)
    base = picture("red", rng)
    rows = [GivenImage("one", base, "burst")] + [GivenImage(f"{i}", base + bytes(i), "burst") for i in range(1, 40)]
    steps.add_images(world.loop, rows)  # forty files, one picture: at most one is worth asking about
    calm = Attention(collected_at=0.0, swept_at=0.0, listed_at=0.0)
    assert schedule.due(world.loop, calm, 1.0, 30.0) == [Due(("mine",))]
    steps.mine(world.loop, "first")
    assert 0 < len(world.loop.work.queue()) < 10
    assert schedule.due(world.loop, calm, 2.0, 30.0) == []
    steps.add_images(world.loop, [GivenImage(f"new {i}", picture(LABELS[i % 3], rng), "shop") for i in range(30)])
    assert schedule.due(world.loop, calm, 3.0, 30.0) == [Due(("mine",))]


def test_a_loop_keeps_the_labels_it_began_with(engine: Engine, tmp_path: Path) -> None:
    world = fake_loop(engine, tmp_path)
    check_labels(world.loop)
    check_labels(world.loop)
    with pytest.raises(BadSettings, match="began with the labels"):
        check_labels(fake_loop(engine, tmp_path, labels=("green", "red", "blue")).loop)

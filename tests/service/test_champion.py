"""Who serves: candidates that cannot be judged, promotions half done, and a person who rolls back in between."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from hardloop.core.errors import BadModel, Conflict
from hardloop.core.records import Evaluation, ModelVersion
from hardloop.service import judging, steps
from tests.fakes.loops import FakeLoop, fake_loop
from tests.service.scenes import first_model, give


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> FakeLoop:
    return fake_loop(engine, tmp_path)


def train_again(world: FakeLoop, seed: int) -> str:
    give(world, "seed", 3, np.random.default_rng(seed))
    version = steps.train(world.loop, manual=True)
    assert version is not None
    return version


def test_a_candidate_that_cannot_be_read_is_refused_and_the_next_is_judged(world: FakeLoop) -> None:
    first_model(world, np.random.default_rng(0))
    broken = train_again(world, 1)
    whole = train_again(world, 2)
    real = world.registry.evaluation

    def evaluation(version: ModelVersion) -> Evaluation:
        if version.version == broken:
            raise BadModel("evaluation.parquet is not there")
        return real(version)

    object.__setattr__(world.registry, "evaluation", evaluation)
    steps.promote(world.loop)
    decisions = {d["model_version"]: d for d in world.loop.lineage.decisions()}
    assert set(decisions) == {"1", broken, whole}
    assert not decisions[broken]["promoted"]
    assert "cannot be judged: evaluation.parquet is not there" in decisions[broken]["reason"]
    assert all(d["applied_at"] for d in decisions.values())


def test_a_rollback_settles_a_promotion_that_was_killed_half_way_and_stays(world: FakeLoop) -> None:
    first = first_model(world, np.random.default_rng(3))
    second = train_again(world, 4)
    candidate = world.registry.versions()[-1]
    verdict = replace(judging.judge(world.loop, candidate), promote=True)
    world.loop.lineage.decide(second, verdict)
    world.registry.promote(candidate, "killed before it was recorded")
    assert steps.roll_back(world.loop, "it misreads boots", "operator") == first
    assert steps.promote(world.loop) == first
    assert steps.promote(world.loop) == first
    (event,) = [e for e in world.loop.work.events() if e["kind"] == "rolled back"]
    assert event["actor"] == "operator"
    assert event["detail"] == {"model": first, "why": "it misreads boots"}


def test_there_is_nothing_to_roll_back_to_after_the_first_champion(world: FakeLoop) -> None:
    first_model(world, np.random.default_rng(5))
    with pytest.raises(Conflict):
        steps.roll_back(world.loop, "a try", "operator")
    assert steps.promote(world.loop) == "1"

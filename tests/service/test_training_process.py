"""A training in its own process: which of its endings count as an attempt at it."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from sqlalchemy.engine import Engine

from hardloop.core.errors import HardloopError, Interrupted, Unavailable
from hardloop.service import retraining
from hardloop.service.connections import Connections
from hardloop.service.database import connect, migrate
from hardloop.service.training_process import TrainingProcess
from tests.fakes.loops import FakeLoop, fake_loop
from tests.service.scenes import give


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{tmp_path / 'loop.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    """A loop with labels, whose models are trained for real."""
    world = fake_loop(engine, tmp_path)
    give(world, "seed", 4, np.random.default_rng(0))
    connections = Connections(
        config=tmp_path, service_url="", webhook_url="", admin_token="", webhook_secret="", database_url="",
        jobs_database_url="", s3=None, blobs_dir=tmp_path / "blobs", label_studio_url="", label_studio_key="",
        mlflow_url="", predictors={},
    )  # type: ignore[arg-type]  # fmt: skip
    trainer = TrainingProcess(connections, {}, tmp_path / "cache")
    yield replace(world, loop=replace(world.loop, trainer=trainer))
    world.capture.close()


@pytest.mark.parametrize(
    ("ending", "error", "attempts"),
    [(signal.SIGTERM, Unavailable, 0), (signal.SIGINT, Unavailable, 0), (signal.SIGKILL, Interrupted, 1)],
)
def test_only_a_training_that_ended_unasked_counts_as_an_attempt(
    world: FakeLoop, ending: signal.Signals, error: type[HardloopError], attempts: int
) -> None:
    """A stop of the service reaches its trainings too, as SIGTERM to the whole group."""

    def end(*_: object) -> None:
        (training,) = [p for p in psutil.Process().children() if "training" in p.cmdline()]
        os.kill(training.pid, ending)

    row = retraining.claim(world.loop, "a test asked for it")
    assert row is not None
    with pytest.raises(error, match=f"signal {ending.value}" if error is Unavailable else "status -9"):
        retraining.run(world.loop, row, end)
    (row,) = world.loop.lineage.trainings("running")
    assert row["attempts"] == attempts

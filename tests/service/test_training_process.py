"""A training in its own process: which of its endings count as an attempt at it."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from sqlalchemy.engine import Engine

from hardloop.core.errors import Interrupted
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
    ("stopping", "ending", "attempts"),
    [(True, signal.SIGTERM, 0), (False, signal.SIGTERM, 1), (False, signal.SIGKILL, 1)],
)
def test_only_a_training_that_ended_while_the_service_was_not_stopping_counts_as_an_attempt(
    world: FakeLoop, stopping: bool, ending: signal.Signals, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop of the service reaches its trainings too, an instant before it reaches the service's own jobs."""
    monkeypatch.setattr(retraining, "_STOP_S", 1.0)

    def end(*_: object) -> None:
        (training,) = [p for p in psutil.Process().children() if "training" in p.cmdline()]
        os.kill(training.pid, ending)
        if stopping:
            threading.Timer(0.3, world.loop.stopping.set).start()

    row = retraining.claim(world.loop, "a test asked for it")
    assert row is not None
    with pytest.raises(Interrupted, match=f"status -{ending.value}"):
        retraining.run(world.loop, row, end)
    (row,) = world.loop.lineage.trainings("running")
    assert row["attempts"] == attempts

"""Durable jobs on SQLite and PostgreSQL: asked for once, one at a time per lane, resumed after kill -9, plain JSON."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from hardloop.core.errors import BadInput, Conflict, Missing, Unavailable
from hardloop.service import jobs as jobs_module
from hardloop.service import schedule
from hardloop.service.jobs import Job, Jobs
from tests.fakes.loops import FakeLoop, fake_loop
from tests.service.scenes import first_model, give, produce

NEVER_S = 3600.0


def jobs_url(database_url: str, folder: Path) -> str:
    """Where the service keeps its jobs: a file beside an SQLite database, the same PostgreSQL database otherwise."""
    return f"sqlite:///{folder / 'jobs.db'}" if database_url.startswith("sqlite") else database_url


@dataclass
class Running:
    """Jobs that run, and the loops they run on."""

    jobs: Jobs
    worlds: dict[str, FakeLoop]

    @property
    def world(self) -> FakeLoop:
        return self.worlds["colours"]

    def change(self, **parts: object) -> None:
        """Swap parts of the loop `colours` under the running jobs."""
        loop = replace(self.world.loop, **parts)  # type: ignore[arg-type]
        self.worlds["colours"] = replace(self.world, loop=loop)
        self.jobs.loops["colours"] = loop  # type: ignore[index]

    def ended(self, job_id: str, timeout_s: float = 30) -> Job:
        deadline = time.monotonic() + timeout_s
        while (job := self.jobs.job(job_id)).state in ("waiting", "running"):
            assert time.monotonic() < deadline, f"job {job_id} is still {job.state}"
            time.sleep(0.02)
        return job

    def run(self, *chain: str, **arguments: object) -> Job:
        return self.ended(self.jobs.submit("colours", chain, arguments))

    def until(self, true: Callable[[], object], what: str, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.jobs.errors}"
            time.sleep(0.02)


@pytest.fixture
def start(engine: Engine, database_url: str, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(tick_s: float = NEVER_S, **settings: object) -> Running:
        worlds = {name: fake_loop(engine, tmp_path / name, name, **settings) for name in ("colours", "shapes")}
        loops = {name: world.loop for name, world in worlds.items()}
        jobs = Jobs(loops, jobs_url(database_url, tmp_path), tick_s, poll_s=0.2)
        running = Running(jobs, worlds)
        started.append(running)
        jobs.start()
        return running

    yield start
    for running in started:
        running.jobs.stop()
        for world in running.worlds.values():
            world.capture.close()


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    return start()


# ---------------------------------------------------------------- asking


def test_a_chain_runs_in_order_and_its_results_are_told_by_step(running: Running) -> None:
    produce(running.world, 12, np.random.default_rng(0))
    job = running.run("ingest", "mine", budget=4)
    assert job.state == "done"
    assert job.result is not None
    assert job.result["ingest"]["new"] == 12
    assert job.result["mine"] == job.job_id
    assert len(running.world.loop.work.queue(selection_id=job.job_id)) == 4


def test_asking_again_with_the_same_job_id_runs_nothing_twice(running: Running) -> None:
    give(running.world, "pool", 4, np.random.default_rng(1))
    for _ in range(3):
        assert running.jobs.submit("colours", ["mine"], {"budget": 2}, "colours-round-1") == "colours-round-1"
        running.ended("colours-round-1")
    assert [s["selection_id"] for s in running.world.loop.work.selections()] == ["colours-round-1"]
    assert len(running.world.loop.work.queue()) == 2


def test_a_job_id_of_any_length_can_name_a_selection(running: Running) -> None:
    give(running.world, "pool", 4, np.random.default_rng(2))
    names = [f"colours-{'x' * 100}{end}" for end in "ab"]
    for name in names:
        assert running.ended(running.jobs.submit("colours", ["mine"], {"budget": 2}, name)).state == "done"
    assert len(running.world.loop.work.selections()) == 2


def test_what_cannot_be_asked_for_is_refused_by_name(running: Running) -> None:
    with pytest.raises(Missing, match="no loop 'shoes': there are colours, shapes"):
        running.jobs.submit("shoes", ["ingest"])
    with pytest.raises(BadInput, match="unknown step 'bake': there are ingest, mine"):
        running.jobs.submit("colours", ["ingest", "bake"])
    with pytest.raises(BadInput, match="unknown step ''"):
        running.jobs.submit("colours", [])
    with pytest.raises(BadInput, match="different lanes"):
        running.jobs.submit("colours", ["collect", "train"])
    with pytest.raises(Missing, match="no job 'nothing'"):
        running.jobs.job("nothing")


def test_the_same_chain_asked_for_once_is_refused_while_it_runs_and_taken_afterwards(running: Running) -> None:
    go, began = hold_training(running)
    first = running.jobs.submit("colours", ["train"], {"manual": True}, once=True)
    assert began.wait(20)
    with pytest.raises(Conflict, match="train of loop 'colours' waits or runs already"):
        running.jobs.submit("colours", ["train"], {"manual": True}, once=True)
    other = running.jobs.submit("shapes", ["train"], {}, once=True)
    assert running.ended(other).state == "done", "the other loop is not held up"
    go.set()
    assert running.ended(first).result == {"train": "1"}
    running.ended(running.jobs.submit("colours", ["train"], {}, once=True))


def test_answers_are_collected_while_a_model_trains_and_trainings_wait_for_one_another(running: Running) -> None:
    go, began = hold_training(running)
    first = running.jobs.submit("colours", ["train"], {"manual": True})
    assert began.wait(20)
    second = running.jobs.submit("colours", ["train"], {"manual": True})
    assert running.run("collect").state == "done"
    assert (running.jobs.job(first).state, running.jobs.job(second).state) == ("running", "waiting")
    go.set()
    assert running.ended(first).result == {"train": "1"}
    assert running.ended(second).result == {"train": None}, "these labels were trained on"
    assert running.world.trainer.calls == 1


def hold_training(running: Running) -> tuple[threading.Event, threading.Event]:
    """Labels, and a trainer that says when it began and waits for leave to go on."""
    give(running.world, "seed", 3, np.random.default_rng(3))
    go, began = threading.Event(), threading.Event()
    real = running.world.loop.trainer

    def held(*arguments: Any) -> Any:
        began.set()
        assert go.wait(60)
        return real(*arguments)

    running.change(trainer=held)
    return go, began


# ---------------------------------------------------------------- failing


def test_a_failing_step_ends_its_job_with_the_message_and_is_shown_until_it_works_again(running: Running) -> None:
    give(running.world, "pool", 3, np.random.default_rng(4))
    running.run("mine", budget=3)
    running.world.loop.work.decide("approved", "reviewer")
    for _ in range(2):
        running.world.tool.break_after(1)
        job = running.run("send", "collect")
        assert (job.state, job.error) == ("failed", "the annotation tool went away in the middle of a send")
        assert job.result is not None
        assert "collect" not in job.result, "what comes after a failure is not tried"
    assert running.jobs.errors["colours"] == {"send": "the annotation tool went away in the middle of a send"}
    told = [event for event in running.world.loop.work.events() if event["kind"] == "send failed"]
    assert len(told) == 1, "the same trouble is told once"
    assert running.run("send").state == "done"
    assert running.jobs.errors["colours"] == {}


def test_a_fault_of_ours_is_a_failed_job_that_names_the_log_and_not_a_dead_queue(running: Running) -> None:
    def broken() -> Any:
        raise ValueError("a fault of ours")

    running.change(tool=broken)
    job = running.run("collect")
    assert (job.state, job.error) == ("failed", "collect ended with ValueError: a fault of ours; see the service's log")
    assert running.jobs.errors["colours"] == {"collect": "ValueError: a fault of ours"}
    running.change(tool=lambda: running.world.tool)
    assert running.run("collect").state == "done"


def test_what_a_training_failed_with_is_what_its_job_says(running: Running) -> None:
    job = running.run("train", "promote", manual=True)
    assert job.state == "failed"
    assert job.error == "loop 'colours' has no label yet: bring labelled images (role 'seed'), or answer tasks"


def test_while_the_database_is_away_a_failed_step_says_so_in_a_sentence(running: Running, engine: Engine) -> None:
    def away(*_: object) -> None:
        raise engine.dialect.loaded_dbapi.OperationalError("gone\n\taway")

    sa.event.listen(engine, "do_execute", away)
    job = running.run("collect")
    sentence = f"the database {engine.url.render_as_string()} does not answer: gone away"
    assert (job.state, job.error) == ("failed", sentence)
    assert running.jobs.errors["colours"] == {"collect": sentence}, "though no event could be stored"
    sa.event.remove(engine, "do_execute", away)
    assert running.run("collect").state == "done"
    assert running.jobs.errors["colours"] == {}


# ---------------------------------------------------------------- by itself


def test_the_whole_loop_turns_without_anybody_asking(start: Callable[..., Running]) -> None:
    running = start(tick_s=0.1, review="automatic", mine="automatic", budget=10, low_water=1)
    world, rng = running.world, np.random.default_rng(5)
    give(world, "legacy", 20, rng)
    give(world, "seed", 2, rng)
    running.until(lambda: world.loop.registry.champion(), "the first champion")
    produce(world, 40, rng)
    running.until(lambda: len(world.tool.task_ids()) == 10, "the tasks")
    world.answer_all()
    running.jobs.hint("colours")
    running.until(lambda: len(world.loop.lineage.decisions()) == 2, "the second model's verdict")
    assert [t["state"] for t in world.loop.lineage.trainings()] == ["trained", "trained"]
    assert running.jobs.errors == {"colours": {}, "shapes": {}}


class Away:
    """A store that does not answer to a listing."""

    def keys(self, prefix: str, start_after: str = "") -> Any:
        raise Unavailable("the store is away")


def test_trouble_of_the_schedule_is_shown_under_its_step_and_goes_away_with_its_cause(
    start: Callable[..., Running],
) -> None:
    running = start(tick_s=0.05)
    real = running.world.loop.blobs
    running.change(blobs=Away())
    running.until(lambda: running.jobs.errors["colours"].get("ingest") == "the store is away", "the trouble")
    assert running.jobs.errors["shapes"] == {}
    running.change(blobs=real)
    running.until(lambda: running.jobs.errors["colours"] == {}, "the end of it")


def test_the_daily_listing_is_not_lost_to_a_store_that_is_away(running: Running) -> None:
    running.jobs.attention["colours"].listed_at = 0.0
    running.change(blobs=Away())
    assert running.run("ingest").state == "failed"
    assert running.jobs.attention["colours"].listed_at == 0.0
    assert running.run("ingest", everything=True).state == "failed"
    due_in_s = running.jobs.attention["colours"].listed_at + schedule.LIST_S - time.monotonic()
    assert schedule.SWEEP_S - 5 < due_in_s <= schedule.SWEEP_S, "it is due again, in a minute"


def test_answers_are_collected_while_the_store_is_away(start: Callable[..., Running]) -> None:
    running = start(tick_s=0.05, review="automatic")
    give(running.world, "pool", 2, np.random.default_rng(8))
    running.run("mine", "send", budget=2)
    running.until(lambda: running.jobs.attention["colours"].listed_at > 0, "the first listing")
    running.run("ingest")
    running.change(blobs=Away())
    running.until(lambda: "ingest" in running.jobs.errors["colours"], "the trouble")
    running.world.answer_all()
    running.jobs.hint("colours")
    running.until(lambda: running.world.loop.work.counts()["labelled"] == 2, "the answers")
    assert running.jobs.errors["colours"] == {"ingest": "the store is away"}


def test_what_a_step_failed_with_is_not_taken_back_by_a_look_that_went_well(start: Callable[..., Running]) -> None:
    running = start(tick_s=0.05)
    real = running.world.loop.blobs
    running.until(lambda: running.jobs.attention["colours"].listed_at > 0, "the first listing")
    running.run("ingest")
    running.jobs.errors["colours"]["ingest"] = "a file cannot be read"
    running.change(blobs=Away())
    running.until(lambda: running.jobs._unseen["colours"], "the trouble")
    running.change(blobs=real)
    running.until(lambda: not running.jobs._unseen["colours"], "the end of it")
    assert running.jobs.errors["colours"] == {"ingest": "a file cannot be read"}


def test_the_ticker_goes_on_where_finished_jobs_cannot_be_forgotten(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> list[Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(jobs_module.DBOS, "list_workflows", full)
        running = start(tick_s=0.05, review="automatic")
        running.jobs._swept_at = float("-inf")
        shown = {"schedule": "finished jobs cannot be forgotten: OSError: [Errno 28] No space left on device"}
        running.until(lambda: running.jobs.errors == {"colours": shown, "shapes": shown}, "the trouble")
        give(running.world, "pool", 2, np.random.default_rng(9))
        running.run("mine", budget=2)
        running.until(lambda: len(running.world.tool.task_ids()) == 2, "the tasks, sent by the ticker")
        assert running.jobs.alive
    running.until(lambda: running.jobs.errors == {"colours": {}, "shapes": {}}, "the end of it")


def test_finished_jobs_are_forgotten_after_their_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running.run("collect")
    running.jobs._forget_finished()
    assert running.jobs.job(job.job_id).state == "done", "it is kept for days"
    monkeypatch.setattr(jobs_module, "KEEP_FINISHED", timedelta(seconds=-1))
    running.jobs._forget_finished()
    with pytest.raises(Missing):
        running.jobs.job(job.job_id)


# ---------------------------------------------------------------- what lies in the database


def test_nothing_in_the_jobs_database_is_pickled(running: Running, database_url: str, tmp_path: Path) -> None:
    first_model(running.world, np.random.default_rng(6))
    running.run("train", "promote", manual=True)
    running.run("ingest", "mine", budget=2)
    running.change(tool=lambda: 1 / 0)
    running.run("collect")
    engine = sa.create_engine(jobs_url(database_url, tmp_path))
    content, serializers = [], set()
    tables = sa.MetaData()
    tables.reflect(engine, schema=None if engine.dialect.name == "sqlite" else "dbos")
    with engine.connect() as connection:
        for table in tables.tables.values():
            for row in connection.execute(sa.select(table)).mappings():
                content += [row[name] for name in ("inputs", "output", "error") if row.get(name) is not None]
                serializers.add(row.get("serialization", "hardloop_json"))
    engine.dispose()
    for text in content:
        json.loads(text)
    assert serializers == {"hardloop_json"}
    assert len(content) == 3 * 2 + 5, "three jobs' inputs and outputs, and the outputs of five steps"


# ---------------------------------------------------------------- kill -9


def child(database_url: str, folder: Path, point: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "-m",
        "tests.service.jobs_child",
        database_url,
        jobs_url(database_url, folder),
        str(folder),
    ]
    return subprocess.run(
        [*words, point], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=False
    )


@pytest.mark.slow
def test_a_job_whose_process_was_killed_in_a_step_is_finished_by_the_next_process(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    world = fake_loop(engine, tmp_path)
    produce(world, 12, np.random.default_rng(7))
    world.capture.close()
    killed = child(database_url, tmp_path, "mine: stored, the job not told")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = child(database_url, tmp_path, "")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    job = json.loads(resumed.stdout.splitlines()[-1])
    assert job["state"] == "done"
    assert job["result"]["ingest"]["new"] == 12, "the step that had ended was not run again"
    assert job["result"]["mine"] == "resumed"
    (selection,) = world.loop.work.selections()
    assert selection["selection_id"] == "resumed"
    assert len(world.loop.work.queue()) == 6

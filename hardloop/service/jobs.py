"""Durable jobs: chains of steps that survive a crash, one at a time per loop and lane (the one door to DBOS).

A job is a DBOS workflow. What it has finished is not repeated after a crash; the step that was interrupted is, and
every step may be. Nothing is pickled: arguments and results are JSON.
"""

import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, SetEnqueueOptions, SetWorkflowID
from dbos import error as dbos_errors
from dbos._serialization import Serializer

from hardloop.core import ids
from hardloop.core.errors import BadInput, Conflict, HardloopError, Missing, Unavailable
from hardloop.service import database as db
from hardloop.service import schedule, steps
from hardloop.service.loop import Loop

log = logging.getLogger("hardloop.jobs")

# Bumped when a workflow's steps change, since a half-finished workflow continues under the code it began with.
APPLICATION_VERSION = "1"
KEEP_FINISHED = timedelta(days=2)
_SWEEP_S = 3600.0  # finished jobs cost nothing but room
STEPS = ("ingest", "mine", "send", "collect", "train", "promote")
_LANES = {"train": "training", "promote": "training"}  # so that answers are collected while a model trains


@dataclass(frozen=True, slots=True)
class Job:
    """One job as asked for. state: waiting, running, done or failed. result: by step, when done."""

    job_id: str
    state: str
    result: Mapping[str, Any] | None
    error: str | None


class _Json(Serializer):
    """JSON for everything DBOS stores; errors keep their name and message."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=_plain)

    def deserialize(self, serialized_data: str) -> Any:
        data = json.loads(serialized_data)
        if isinstance(data, dict) and set(data) == {"error", "message"}:
            return HardloopError(f"{data['error']}: {data['message']}")
        return data

    def name(self) -> str:
        return "hardloop_json"


def _plain(value: object) -> Any:
    if isinstance(value, BaseException):
        return {"error": type(value).__name__, "message": str(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


class Jobs:
    """The jobs of one service process. There is one per process, since DBOS is a singleton.

    errors: by loop and step, why it failed the last time or could not even be looked for; under "schedule" what is in
    the way of all steps.
    """

    def __init__(
        self,
        loops: Mapping[str, Loop],
        database_url: str,
        tick_s: float,
        poll_s: float,
        executor: str = "service",
    ) -> None:
        self.loops = loops
        self.tick_s = tick_s
        self.poll_s = poll_s
        self.errors: dict[str, dict[str, str]] = {name: {} for name in loops}
        self._unseen: dict[str, dict[str, str]] = {name: {} for name in loops}
        self.progress: dict[str, dict[str, Any]] = {}
        self.attention = {name: schedule.Attention() for name in loops}
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick_for_ever, name="ticker", daemon=True)
        self._swept_at = time.monotonic()
        url = _prepared(database_url)
        config: DBOSConfig = {
            "name": "hardloop",
            "system_database_url": url,
            "executor_id": executor,
            "application_version": APPLICATION_VERSION,
            "serializer": _Json(),
            "log_level": "WARNING",
            "enable_otlp": False,
        }
        DBOS(config=config)

    def start(self) -> None:
        """Take up what a crash interrupted, then look for work on every tick."""
        _install(self)
        DBOS.launch()
        for loop in self.loops:
            for lane in ("steps", "training"):
                DBOS.register_queue(_queue(loop, lane), global_concurrency=1, polling_interval_sec=0.2)
        self._ticker.start()

    def stop(self, timeout_s: float = 20.0) -> None:
        """Let the running steps end, at most `timeout_s`; what does not end in time is taken up at the next start."""
        self._stopping.set()
        for loop in self.loops.values():
            loop.stopping.set()
        self._ticker.join(timeout_s)
        DBOS.destroy(workflow_completion_timeout_sec=int(timeout_s))
        _install(None)

    @property
    def alive(self) -> bool:
        """Whether work is looked for. Where not, nothing happens any more that nobody asks for."""
        return self._ticker.is_alive()

    def hint(self, loop: str) -> None:
        """Answers may be waiting: look at the next tick instead of the next poll."""
        self.attention[loop].hinted = True

    def submit(
        self, loop: str, chain: Sequence[str], arguments: Mapping[str, Any] | None = None, job_id: str | None = None,
        once: bool = False,
    ) -> str:  # fmt: skip
        """Queue a chain of steps of one lane. Asking again with the same job id changes nothing.

        once: refuse with Conflict while the same chain waits or runs already.
        Raises Missing for an unknown loop, BadInput for an unknown step.
        """
        if loop not in self.loops:
            raise Missing(f"no loop {loop!r}: there are {', '.join(sorted(self.loops))}")
        unknown = [step for step in chain if step not in STEPS]
        if unknown or not chain:
            raise BadInput(f"unknown step {unknown[0] if unknown else ''!r}: there are {', '.join(STEPS)}")
        lanes = {_LANES.get(step, "steps") for step in chain}
        if len(lanes) > 1:
            raise BadInput(f"steps {', '.join(chain)} belong to different lanes: ask for them one after another")
        name = job_id or f"{chain[0]}-{uuid.uuid4().hex}"
        options = SetEnqueueOptions(deduplication_id="+".join(chain) if once else None)
        try:
            with SetWorkflowID(name), options:
                DBOS.enqueue_workflow(_queue(loop, lanes.pop()), run_chain, loop, list(chain), dict(arguments or {}))
        except dbos_errors.DBOSQueueDeduplicatedError:
            raise Conflict(f"{' and '.join(chain)} of loop {loop!r} waits or runs already") from None
        return name

    def job(self, job_id: str) -> Job:
        """How a job is. Raises Missing."""
        status = DBOS.get_workflow_status(job_id)
        if status is None:
            raise Missing(f"no job {job_id!r}: jobs are kept for {KEEP_FINISHED.days} days")
        if status.status == "SUCCESS":
            result: dict[str, Any] = DBOS.retrieve_workflow(job_id).get_result()
            failed = result.get("failed")
            return Job(job_id, "failed" if failed else "done", result, failed)
        if status.status in ("PENDING", "ENQUEUED", "DELAYED"):
            return Job(job_id, "running" if status.status == "PENDING" else "waiting", None, None)
        return Job(job_id, "failed", None, f"the job ended as {status.status}")

    def run_step(self, loop: str, step: str, arguments: Mapping[str, Any], job_id: str) -> Any:
        """Run one step now, in this thread; its outcome is remembered as the loop's last error of that step."""
        context = self.loops[loop]

        def progress(what: str, done: int, total: int) -> None:
            self.progress[loop] = {"step": step, "what": what, "done": done, "total": total}

        try:
            outcome = _call(context, step, arguments, job_id, progress)
        except Exception as error:
            if step == "ingest" and arguments.get("everything"):
                # What was not listed stays due, but a listing of everything is too dear for every tick.
                self.attention[loop].listed_at = time.monotonic() - schedule.LIST_S + schedule.SWEEP_S
            self._failed(context, step, error)
            raise
        finally:
            self.progress.pop(loop, None)
        self.errors[loop].pop(step, None)
        if step == "collect" and arguments.get("everything"):
            self.attention[loop].reread_at = time.monotonic()
        return outcome

    def _failed(self, loop: Loop, step: str, error: Exception) -> None:
        message = _told(error)
        before, self.errors[loop.name][step] = self.errors[loop.name].get(step), message
        if message == before:
            return
        log.warning("loop %s, %s: %s", loop.name, step, message, exc_info=not isinstance(error, HardloopError))
        try:
            loop.work.event("service", f"{step} failed", {"why": message})
        except Exception as unstored:  # the database may be what is away
            log.warning("loop %s: no event was stored of it: %s", loop.name, _told(unstored))

    def _tick_for_ever(self) -> None:
        # Nothing may end this thread: nothing would be ingested, collected or trained any more, and nobody told.
        while not self._stopping.wait(self.tick_s):
            in_the_way = self._sweep()
            for name in self.loops:
                try:
                    self._note(name, in_the_way | self._look(name))
                except Exception as error:
                    self._note(name, {"schedule": error})

    def _look(self, loop: str) -> dict[str, Exception]:
        """Queue what is due in a loop. Returns, by step, what was in the way; the next tick looks for it again."""
        now_s = time.monotonic()
        troubles: dict[str, Exception] = {}
        for due in schedule.due(self.loops[loop], self.attention[loop], now_s, self.poll_s, troubles):
            try:
                self.submit(loop, due.chain, due.arguments, once=True)
                schedule.asked(self.attention[loop], due, now_s)
            except Conflict:
                pass  # it waits or runs already, and stays due
            except Exception as error:
                troubles[due.chain[0]] = error
        return troubles

    def _note(self, loop: str, troubles: Mapping[str, Exception]) -> None:
        """Show what is in the way now, and take back what was; what a step itself failed with is left as it is."""
        shown, before = self.errors[loop], self._unseen[loop]
        now = self._unseen[loop] = {step: _told(error) for step, error in troubles.items()}
        for step, message in before.items():
            if now.get(step) != message and shown.get(step) == message:
                shown.pop(step, None)  # the step may have succeeded just now
        for step, message in now.items():
            if before.get(step) != message:
                error = troubles[step]
                unforeseen = None if isinstance(error, HardloopError) else error
                log.warning("loop %s, looking for %s: %s", loop, step, message, exc_info=unforeseen)
            shown.setdefault(step, message)

    def _sweep(self) -> dict[str, Exception]:
        """Forget what finished long ago, from time to time. Returns what was in the way; the next tick tries again."""
        if time.monotonic() - self._swept_at <= _SWEEP_S:
            return {}
        try:
            self._forget_finished()
        except Exception as error:
            return {"schedule": Unavailable(f"finished jobs cannot be forgotten: {_told(error)}")}
        self._swept_at = time.monotonic()
        return {}

    def _forget_finished(self) -> None:
        before = (db.now() - KEEP_FINISHED).isoformat()
        old = DBOS.list_workflows(completed_before=before, load_input=False, load_output=False, limit=10_000)
        DBOS.delete_workflows([workflow.workflow_id for workflow in old])


_installed: Jobs | None = None


def _install(jobs: Jobs | None) -> None:
    global _installed  # DBOS calls module functions, by name, after a crash
    _installed = jobs


@DBOS.workflow(name="run_chain")
def run_chain(loop: str, chain: list[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run steps in order; stop at the first that fails. The next tick, or the user, asks again."""
    results: dict[str, Any] = {}
    for step in chain:
        outcome = run_one(loop, step, arguments, str(DBOS.workflow_id))
        if "failed" in outcome:
            return {**results, "failed": outcome["failed"]}
        results[step] = outcome["result"]
    return results


@DBOS.step(name="run_one")
def run_one(loop: str, step: str, arguments: dict[str, Any], job_id: str) -> dict[str, Any]:
    """One step of a loop; a failure is a result, so that DBOS never has to store an exception."""
    if _installed is None or loop not in _installed.loops:
        return {"failed": f"loop {loop!r} is not in this service's settings any more"}
    try:
        return {"result": _installed.run_step(loop, step, arguments, job_id)}
    except HardloopError as error:
        return {"failed": str(error)}
    except Exception as error:
        return {"failed": f"{step} ended with {type(error).__name__}: {error}; see the service's log"}


def _call(
    loop: Loop, step: str, arguments: Mapping[str, Any], job_id: str, progress: Callable[[str, int, int], None]
) -> Any:
    if step == "ingest":
        return steps.ingest(loop, bool(arguments.get("everything")), progress)
    if step == "mine":
        return steps.mine(loop, _selection_id(job_id), arguments.get("budget"), progress)
    if step == "send":
        return steps.send(loop)
    if step == "collect":
        return dict(steps.collect(loop, bool(arguments.get("everything")), bool(arguments.get("deleted"))))
    if step == "train":
        return steps.train(loop, bool(arguments.get("manual")), progress)
    return steps.promote(loop)


def _told(error: Exception) -> str:
    """An error in words for the status. What DBOS lets through of its own database would hold whole statements."""
    if isinstance(error, HardloopError):
        return str(error)
    if isinstance(error, sa.exc.DBAPIError):
        return f"the jobs' database does not answer: {db.reason(error)}"
    return f"{type(error).__name__}: {error}"


def _selection_id(job_id: str) -> str:
    """The job's own id where it fits the column; a job has at most one selection."""
    return job_id if len(job_id) <= 64 else ids.digest(job_id)


def _queue(loop: str, lane: str) -> str:
    return f"{loop}/{lane}"


def _prepared(url: str) -> str:
    """The address as DBOS wants it; an SQLite file is put into WAL mode, which DBOS leaves to us."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = str(parsed.database)
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=wal")
        return url
    engine = db.connect(url)
    engine.connect().close()  # DBOS would wait for a database that is away, without a word
    engine.dispose()
    return parsed.set(drivername="postgresql").render_as_string(hide_password=False)

"""The service with a bomb: `python -m tests.service.bombs DATA_DIR POINT` kills itself with SIGKILL at one point.

Only this test program knows of bombs: they are wrapped around the loop's ports and tables from outside.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from hardloop.service import connections as known
from hardloop.service import settings as configuration
from hardloop.service.app import build
from hardloop.service.database import connect, migrate
from hardloop.service.loop import Loop
from hardloop.service.wiring import build_loops


def explode() -> None:
    """What kill -9, the out-of-memory killer or a power cut do: no handler, no cleanup."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, method: str, when: Callable[..., bool] = lambda *a, **k: True) -> None:
    """Explode instead of calling."""
    real = getattr(owner, method)

    def call(*arguments: Any, **named: Any) -> Any:
        if when(*arguments, **named):
            explode()
        return real(*arguments, **named)

    object.__setattr__(owner, method, call)


def after(owner: Any, method: str, when: Callable[..., bool] = lambda *a, **k: True) -> None:
    """Explode when the call has done its work, before anybody learns of it."""
    real = getattr(owner, method)

    def call(*arguments: Any, **named: Any) -> Any:
        answer = real(*arguments, **named)
        if when(*arguments, **named):
            explode()
        return answer

    object.__setattr__(owner, method, call)


def _capture_file(*arguments: Any, **named: Any) -> bool:
    return len(arguments) > 2


def _in_the_middle_of_training(loop: Loop) -> None:
    real = loop.trainer

    def train(dataset_key: str, recipe: str, seed: int, folder: Path, progress: Any) -> Any:
        def watched(what: str, done: int, total: int) -> None:
            if what == "training" and done >= 2:
                explode()
            progress(what, done, total)

        return real(dataset_key, recipe, seed, folder, watched)

    object.__setattr__(loop, "trainer", train)


def _predictions_not_sent(loop: Loop) -> None:
    real = loop.tool

    def tool() -> Any:
        made = real()
        before(made, "predict")
        return made

    object.__setattr__(loop, "tool", tool)


def _tasks_not_recorded(loop: Loop) -> None:
    before(loop.work, "add_tasks", lambda project, tasks: bool(tasks))


POINTS: dict[str, Callable[[Loop], None]] = {
    "ingest: images read, nothing stored": lambda loop: before(loop.samples, "add", _capture_file),
    "ingest: a file stored, the cursor not moved": lambda loop: after(loop.samples, "add", _capture_file),
    "mine: picked, nothing stored": lambda loop: before(loop.work, "add_selection"),
    "mine: stored, the job not told": lambda loop: after(loop.work, "add_selection"),
    "send: tasks made, no predictions": _predictions_not_sent,
    "send: all made, nothing recorded": _tasks_not_recorded,
    "collect: answers read, nothing stored": lambda loop: before(loop.work, "collect", lambda s, c: bool(s)),
    "collect: stored, the job not told": lambda loop: after(loop.work, "collect", lambda s, c: bool(s)),
    "train: labels frozen, nothing begun": lambda loop: after(loop.lineage, "claim_training"),
    "train: in the middle": _in_the_middle_of_training,
    "train: registered, not recorded": lambda loop: after(loop.registry, "register"),
    "promote: decided, not carried out": lambda loop: after(loop.lineage, "decide"),
    "promote: carried out, not recorded": lambda loop: before(loop.lineage, "applied"),
}


def main(data_dir: Path, point: str) -> None:
    """Serve, with at most one bomb."""
    connections = known.read(data_dir)
    settings = configuration.load(connections.config)
    engine = connect(connections.database_url.get_secret_value())
    migrate(engine)
    loops = build_loops(settings, connections, engine)
    if point:
        for loop in loops.values():
            POINTS[point](loop)
    address = urlsplit(connections.service_url)
    uvicorn.run(build(settings, connections, loops), host="127.0.0.1", port=address.port or 80, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")

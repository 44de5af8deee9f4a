"""The service process: `python -m hardloop.service.app DATA_DIR` (started and supervised by `stack.py`)."""

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from hardloop.core.errors import BadSettings, HardloopError
from hardloop.service import connections as known
from hardloop.service import settings as configuration
from hardloop.service.api import create_app
from hardloop.service.connections import Connections
from hardloop.service.database import connect, migrate
from hardloop.service.jobs import Jobs
from hardloop.service.loop import Loop
from hardloop.service.settings import Settings
from hardloop.service.wiring import build_loops


def build(settings: Settings, connections: Connections, loops: dict[str, Loop] | None = None) -> FastAPI:
    """The application over a migrated database; its jobs run while the application does."""
    engine = connect(connections.database_url.get_secret_value())
    migrate(engine)
    built = loops if loops is not None else build_loops(settings, connections, engine)
    for loop in built.values():
        check_labels(loop)
    jobs = Jobs(
        built,
        connections.jobs_database_url.get_secret_value(),
        settings.tick_s,
        settings.poll_s,
    )
    app = create_app(jobs, connections.admin_token.get_secret_value(), connections.webhook_secret.get_secret_value())

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(jobs.start)
        try:
            yield
        finally:
            await run_in_threadpool(jobs.stop)

    app.router.lifespan_context = running
    return app


def check_labels(loop: Loop) -> None:
    """Refuse labels other than those the loop began with: its stored probabilities are in their order.

    Raises BadSettings naming what changed.
    """
    now = json.dumps(loop.settings.labels, ensure_ascii=False)
    before = loop.samples.cursor("labels")
    if not before:
        loop.samples.move_cursor("labels", now)
    elif before != now:
        raise BadSettings(
            f"loop {loop.name!r} began with the labels {before} and is now given {now}: its predictions and models are "
            "in that order; give the labels back as they were, or begin a loop of another name"
        )


def main(data_dir: Path) -> None:
    """Serve until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        connections = known.read(data_dir)
        settings = configuration.load(connections.config)
        app = build(settings, connections)
    except HardloopError as error:
        sys.exit(f"hardloop: {error}")
    address = urlsplit(connections.service_url)
    uvicorn.run(app, host=address.hostname or "127.0.0.1", port=address.port or 80, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

"""A loop's predictor process: `python -m hardloop.service.predictor DATA_DIR LOOP` (supervised by `stack.py`)."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from feedback.capture import Capture
from feedback.champion import CurrentModel
from feedback.scoring import ServerSettings
from feedback.server import create_app
from hardloop.core import images
from hardloop.core.errors import HardloopError, Missing
from hardloop.core.ports import Registry
from hardloop.service import connections as known
from hardloop.service import settings as configuration
from hardloop.service.connections import Connections
from hardloop.service.settings import LoopSettings
from hardloop.service.wiring import build_registry


def build(loop: LoopSettings, connections: Connections) -> tuple[FastAPI, Capture]:
    """The predictor of one loop over its registry's champion, capturing into the loop's store."""
    capture = Capture(connections.blobs(), loop.name, loop.labels, loop.capture)
    settings = ServerSettings(
        poll_s=5.0,
        reload_secret=connections.webhook_secret,
        # What the rest of the loop accepts: an image that can be uploaded and trained on can also be asked about.
        max_image_bytes=images.MAX_BYTES,
        max_pixels=images.MAX_PIXELS,
    )
    return create_app(_champion_of(build_registry(loop, connections)), capture, settings), capture


def _champion_of(registry: Registry) -> CurrentModel:
    def current() -> tuple[str, Callable[[Path], Path]] | None:
        version = registry.champion()
        if version is None:
            return None
        return version.version, lambda folder: registry.fetch(version, folder)

    return current


def main(data_dir: Path, name: str) -> None:
    """Serve until told to stop, then bring what was captured to the store."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        connections = known.read(data_dir)
        settings = configuration.load(connections.config)
        loop = next((loop for loop in settings.loops if loop.name == name), None)
        if loop is None:
            raise Missing(f"no loop {name!r} in {connections.config}")
        app, capture = build(loop, connections)
    except HardloopError as error:
        sys.exit(f"hardloop: {error}")
    address = urlsplit(connections.predictors[name])
    with capture:
        uvicorn.run(app, host=address.hostname or "127.0.0.1", port=address.port or 80, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])

"""A training in a process of its own: its memory goes back, and answers are collected while it works."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hardloop.core import errors
from hardloop.core.errors import Busy, HardloopError, Interrupted
from hardloop.core.ports import Progress
from hardloop.core.records import TrainedModel
from hardloop.service.children import clean_environment
from hardloop.service.connections import Connections

_ORPHAN_S = 10.0  # a training whose service was killed ends by itself well within this


class TrainingProcess:
    """`ports.Trainer` by `python -m training`. settings: the recipe's own. cache: where prepared images are kept."""

    def __init__(self, connections: Connections, settings: Mapping[str, object], cache: Path) -> None:
        self._connections = connections
        self._settings = dict(settings)
        self._cache = cache

    def __call__(self, dataset_key: str, recipe: str, seed: int, folder: Path, progress: Progress) -> TrainedModel:
        """See `ports.Trainer`."""
        deadline = time.monotonic() + _ORPHAN_S
        while True:
            try:
                return self._run(dataset_key, recipe, seed, folder, progress)
            except Busy:
                # The training of a service that was killed a moment ago still holds the folder.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _run(self, dataset_key: str, recipe: str, seed: int, folder: Path, progress: Progress) -> TrainedModel:
        folder.mkdir(parents=True, exist_ok=True)
        job, result = folder.parent / f"{folder.name}.job.json", folder.parent / f"{folder.name}.result.json"
        content = {
            "store": self._store(),
            "dataset_key": dataset_key,
            "recipe": recipe,
            "settings": self._settings,
            "seed": seed,
            "folder": str(folder),
            "result": str(result),
            "cache": str(self._cache),
            "end_with": os.getpid(),
        }
        job.write_text(json.dumps(content, indent=2), encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, "-m", "training", "--job", str(job)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=clean_environment(**self._secrets()),
            text=True,
        ) as process:
            assert process.stdout is not None
            last: dict[str, object] = {}
            try:
                for line in process.stdout:
                    last = _told(line) or last
                    if "progress" in last:
                        progress(str(last["progress"]), int(str(last["done"])), int(str(last["total"])))
            except BaseException:
                process.kill()
                raise
        if "error" in last:
            raise _error(str(last["error"]), str(last.get("message", "")))
        if process.returncode != 0 or "result" not in last:
            raise Interrupted(
                f"the training ended with status {process.returncode} and no result: see the service's log; "
                "it is tried again"
            )
        model = _model(result)
        for path in (job, result):  # kept where it failed, for whoever looks into it
            path.unlink()
        return model

    def _store(self) -> dict[str, str]:
        s3 = self._connections.s3
        if s3 is None:
            return {"kind": "directory", "root": str(self._connections.blobs_dir)}
        names = {"access_key_env": "HARDLOOP_S3_ACCESS_KEY", "secret_key_env": "HARDLOOP_S3_SECRET_KEY"}
        return {"kind": "s3", "url": s3.url, "bucket": s3.bucket, "region": s3.region, **names}

    def _secrets(self) -> dict[str, str]:
        s3 = self._connections.s3
        if s3 is None:
            return {}
        secret = s3.secret_key.get_secret_value()
        return {"HARDLOOP_S3_ACCESS_KEY": s3.access_key, "HARDLOOP_S3_SECRET_KEY": secret}


def _told(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}  # a library's own print
    return found if isinstance(found, dict) else {}


def _error(name: str, message: str) -> HardloopError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, HardloopError):
        return kind(message)
    return HardloopError(f"{name}: {message}")


def _model(path: Path) -> TrainedModel:
    content = json.loads(path.read_text(encoding="utf-8"))
    return TrainedModel(content["folder"], tuple(content["labels"]), content["metrics"], content["params"])

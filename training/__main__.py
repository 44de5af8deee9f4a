"""`python -m training --job job.json`: one training in a process of its own, for the service.

The job file is JSON (fields: `Job`). Standard output carries one JSON object a line: {"progress", "done", "total"}
while it works; at the end {"result": PATH}, or {"error": CLASS, "message": TEXT}. The exit code is 0, or that of the
error in `EXIT_CODES`.
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hardloop.core import errors
from hardloop.core.blobs import DirectoryBlobs, S3Blobs, S3Settings
from hardloop.core.ports import BlobStore
from training.checkpoints import write_atomically

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.Leakage, 3),
    (errors.ExportMismatch, 4),
    (errors.Conflict, 5),
    (errors.Unavailable, 6),
    (errors.HardloopError, 2),
)
_UNEXPECTED = 1
_ORPHANED = 7
_PARENT_CHECK_S = 0.5


class S3Store(BaseModel):
    """A bucket. The credentials are read from the two environment variables named here, never from the job file."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["s3"]
    url: str
    bucket: str
    region: str = "us-east-1"
    access_key_env: str
    secret_key_env: str

    def blobs(self) -> BlobStore:
        """The store. Raises BadSettings naming a variable that is not set."""
        for name in (self.access_key_env, self.secret_key_env):
            if not os.environ.get(name):
                raise errors.BadSettings(f"environment variable {name}, which the job names for the store, is not set")
        access, secret = os.environ[self.access_key_env], os.environ[self.secret_key_env]
        return S3Blobs(S3Settings(self.url, self.bucket, access, secret, self.region))


class DirectoryStore(BaseModel):
    """A folder that stands in for a bucket."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["directory"]
    root: Path

    def blobs(self) -> BlobStore:
        """The store."""
        return DirectoryBlobs(self.root)


class Job(BaseModel):
    """One training.

    result: where the outcome is written, as JSON of `records.TrainedModel`. threads: CPU threads for torch. end_with:
    id of the process to end with, so that a killed service leaves no training behind; None: run on regardless.
    """

    model_config = ConfigDict(extra="forbid")

    store: Annotated[S3Store | DirectoryStore, Field(discriminator="kind")]
    dataset_key: str
    recipe: str
    settings: dict[str, object] = {}
    seed: int
    folder: Path
    result: Path
    cache: Path | None = None
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    end_with: int | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run one job; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    parser.add_argument("--job", type=Path, required=True, help="the job file, JSON")
    path: Path = parser.parse_args(arguments).job
    try:
        job = read_job(path)
        if job.end_with is not None:
            threading.Thread(target=_end_with, args=(job.end_with,), daemon=True).start()
        _say(result=str(run(job)))
    except errors.HardloopError as error:
        _say(error=type(error).__name__, message=str(error))
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except Exception as error:
        traceback.print_exc()  # to standard error, the service's log; the line below is what a person sees
        _say(error=type(error).__name__, message=f"the training failed unexpectedly: {error}")
        return _UNEXPECTED
    return 0


def read_job(path: Path) -> Job:
    """The job of a file. Raises BadInput naming the field that is wrong."""
    try:
        return Job.model_validate_json(path.read_bytes())
    except OSError as error:
        raise errors.BadInput(f"job file {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise errors.BadInput(f"job file {path}, {where}: {first['msg']}") from None


def run(job: Job) -> Path:
    """Train, write the result file and return its path."""
    # Here, not above: a job file with a mistake is refused in milliseconds instead of after torch's 1.6 s.
    import torch

    from training.trainer import train

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    blobs = job.store.blobs()
    model = train(
        blobs,
        job.dataset_key,
        job.recipe,
        job.seed,
        job.folder,
        lambda what, done, total: _say(progress=what, done=done, total=total),
        settings=job.settings,
        cache=job.cache,
    )
    write_atomically(job.result, json.dumps(asdict(model), indent=2, sort_keys=True).encode() + b"\n")
    return job.result


def _say(**line: str | int) -> None:
    print(json.dumps(line), flush=True)


def _end_with(parent: int) -> None:
    """End this process when its parent is no longer the given one; the checkpoint lets the next one continue."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(_ORPHANED)


if __name__ == "__main__":
    sys.exit(main())

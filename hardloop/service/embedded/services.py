"""The embedded services of one data folder, started together, watched, and stopped together."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hardloop.core.blobs import S3Settings
from hardloop.core.errors import BadSettings, Conflict
from hardloop.core.ports import Progress
from hardloop.service.embedded import label_studio_server, mlflow_server, seaweedfs
from hardloop.service.embedded.label_studio_server import LabelStudioEndpoint
from hardloop.service.embedded.place import Place, Running, Stopped
from hardloop.service.embedded.private_files import Secrets, private_folder, read_private, write_private
from hardloop.service.supervisor import ChildStatus, Supervisor

_LOCK_WAIT_S = 20.0  # after kill -9 of the last owner its children still get their grace to end


class Service(StrEnum):
    """What can be embedded; each is left out where the user brings their own."""

    S3 = "s3"
    LABEL_STUDIO = "label_studio"
    MLFLOW = "mlflow"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the started services answer; None for those that were not asked for.

    blobs_dir: the folder of the directory-backed store, where an S3 server was asked for and this platform has none;
    `notes` says so in words.
    """

    s3: S3Settings | None = None
    blobs_dir: Path | None = None
    label_studio: LabelStudioEndpoint | None = None
    mlflow_url: str | None = None
    notes: tuple[str, ...] = ()


class EmbeddedServices:
    """Starts, watches and stops the services of one data folder. A context manager; leaving it stops them.

    They end with this process however it ends. One process at a time owns a data folder.
    """

    def __init__(self, data_dir: Path, *, bucket: str = "hardloop", restart: bool = True) -> None:
        """bucket: made in the embedded S3 server. restart: start a service again when it crashes."""
        self.data_dir = data_dir.resolve()
        self.bucket = bucket
        self.endpoints = Endpoints()
        self._restart = restart
        self._lock: IO[str] | None = None
        self._called_off = threading.Event()
        self._running: dict[str, Running] = {}
        self._supervisor = Supervisor(self._write_state)
        self._mutex = threading.Lock()

    def start(
        self,
        which: Collection[Service] = tuple(Service),
        progress: Progress = lambda *_: None,
        artifacts: S3Settings | None = None,
    ) -> Endpoints:
        """Start what is asked for, all at once, and return when everything answers.

        artifacts: a bucket of the user's own for MLflow's artifacts, where S3 is not among the embedded services.
        Raises Unavailable where one of them does not come up (none runs then), Conflict where another process owns the
        data folder, BadSettings where that cannot be used.
        """
        if self._lock is not None:
            raise Conflict(f"the embedded services of {self.data_dir} are started already: stop them first")
        private_folder(self.data_dir)
        self._lock = _own(self.data_dir, progress)
        self._called_off.clear()
        try:
            self._start_all(frozenset(which), progress, artifacts)
        except BaseException:
            self.stop()
            raise
        if self._restart:
            self._supervisor.watch({name: running.child for name, running in self._running.items()})
        self._write_state()
        return self.endpoints

    def stop(self) -> None:
        """Stop everything and let go of the data folder. May be called any number of times, from any thread."""
        self._called_off.set()
        self._supervisor.stop()
        with self._mutex:
            running, self._running = dict(self._running), {}
        # All at once: the slowest one decides, not the sum.
        with ThreadPoolExecutor(max_workers=max(1, len(running))) as pool:
            list(pool.map(Running.stop, running.values()))
        if self._lock is not None:
            self._write_state()
            self._lock.close()
            self._lock = None

    def status(self) -> Mapping[str, ChildStatus]:
        """How each started service is now, by name."""
        with self._mutex:
            running = dict(self._running)
        return {name: self._supervisor.status(name, one.child) for name, one in running.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _start_all(self, which: frozenset[Service], progress: Progress, artifacts: S3Settings | None) -> None:
        assert self._lock is not None
        place = Place(
            self.data_dir,
            Secrets(self.data_dir / "secrets.json"),
            _known_ports(self.data_dir / "services.json"),
            (self._lock.fileno(),),
            self._called_off,
        )
        told = _until(self._called_off, progress)
        found: dict[str, object] = {}
        jobs: list[Callable[[], None]] = []
        if which & {Service.S3, Service.MLFLOW}:
            jobs.append(lambda: self._start_stores(which, place, told, found, artifacts))
        if Service.LABEL_STUDIO in which:
            jobs.append(lambda: self._start_label_studio(place, told, found))
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="start") as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and not future.exception() for future in futures):
                    place.call_off()
        _raise_first(futures)
        self.endpoints = Endpoints(**found)  # type: ignore[arg-type]

    def _start_stores(
        self,
        which: frozenset[Service],
        place: Place,
        progress: Progress,
        found: dict[str, object],
        s3: S3Settings | None,
    ) -> None:
        """S3 first: MLflow keeps its artifacts there."""
        if Service.S3 in which:
            if reason := seaweedfs.why_unavailable():
                found["blobs_dir"] = place.folder("blobs")
                found["notes"] = (f"{reason}: blobs are kept in the folder {place.folder('blobs')}",)
            else:
                running, s3 = seaweedfs.start(place, self.bucket, progress)
                self._started(seaweedfs.NAME, running, progress)
                found["s3"] = s3
        if Service.MLFLOW in which:
            running, found["mlflow_url"] = mlflow_server.start(place, s3, progress)
            self._started(mlflow_server.NAME, running, progress)

    def _start_label_studio(self, place: Place, progress: Progress, found: dict[str, object]) -> None:
        running, found["label_studio"] = label_studio_server.start(place, progress)
        self._started(label_studio_server.NAME, running, progress)

    def _started(self, name: str, running: Running, progress: Progress) -> None:
        with self._mutex:
            self._running[name] = running
        progress(f"{name}: answers on port {running.ports[0]}", 1, 1)

    def _write_state(self) -> None:
        """services.json: what runs now, and the ports to ask for next time."""
        path = self.data_dir / "services.json"
        with self._mutex:
            running = dict(self._running)
        ports = _known_ports(path) | {name: list(one.ports) for name, one in running.items()}
        services = {
            name: {
                "url": f"http://127.0.0.1:{one.ports[0]}",
                "pid": one.child.pid,
                "log": str(one.child.command.log),
                "restarts": self._supervisor.status(name, one.child).restarts,
            }
            for name, one in running.items()
        }
        owner = os.getpid() if running else None
        write_private(path, {"pid": owner, "at": datetime.now(UTC).isoformat(), "services": services, "ports": ports})


def _own(data_dir: Path, progress: Progress) -> IO[str]:
    """The open lock file of a data folder. Children's watchdogs keep it open too: it is free once they are gone."""
    path = data_dir / "services.lock"
    try:
        file = path.open("a")
    except OSError as error:
        raise BadSettings(f"cannot write {path}: {error.strerror}") from None
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                owner = read_private(data_dir / "services.json").get("pid")
                raise Conflict(
                    f"the data folder {data_dir} is in use by process {owner}: stop that one or choose another folder"
                ) from None
            progress("waiting for the last owner of the data folder to end", 0, 1)
            time.sleep(0.5)


def _known_ports(path: Path) -> dict[str, list[int]]:
    ports = read_private(path).get("ports", {})
    return {str(name): [int(port) for port in some] for name, some in ports.items()}


def _until(called_off: threading.Event, progress: Progress) -> Progress:
    """Progress that ends the thread it is called in once the start is called off; one call at a time."""
    mutex = threading.Lock()

    def report(what: str, done: int, total: int) -> None:
        if called_off.is_set():
            raise Stopped
        with mutex:
            progress(what, done, total)

    return report


def _raise_first(futures: Collection[Future[None]]) -> None:
    """Raise what went wrong first; a thread that was merely called off is not the reason."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, Stopped)):
        raise error

"""Everything that runs, started and stopped together: embedded services, the service, one predictor per loop."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from pydantic import SecretStr

from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.core.errors import BadSettings
from hardloop.core.ports import Progress
from hardloop.service import connections as known
from hardloop.service.children import Child, Command, clean_environment
from hardloop.service.connections import Connections, S3Connection
from hardloop.service.embedded import EmbeddedServices, Endpoints, Service
from hardloop.service.embedded.free_ports import free_ports, give_back, is_free
from hardloop.service.embedded.private_files import Secrets
from hardloop.service.settings import Settings
from hardloop.service.supervisor import Supervisor
from hardloop.service.wiring import predictor_addresses


class Stack:
    """One installation on this machine. A context manager; leaving it leaves no process behind.

    What the settings give an address for is the user's own: it is used and never started, stopped or reconfigured.
    """

    def __init__(self, settings: Settings, config: Path) -> None:
        self.settings = settings
        self._config = config.resolve()
        self._embedded = EmbeddedServices(settings.data_dir, bucket=settings.store.bucket)
        self._supervisor = Supervisor()
        self.children: dict[str, Child] = {}
        self._ports: list[int] = []

    def start(self, progress: Progress) -> Connections:
        """Start what is missing and return where everything answers. Raises as its parts do; nothing runs then."""
        try:
            endpoints = self._embedded.start(self._missing(), progress, self._own_bucket())
            for note in endpoints.notes:
                progress(note, 1, 1)
            connections = self._connect(endpoints)
            known.write(self.settings.data_dir, connections)
            self._start_children(connections, progress)
        except BaseException:
            self.stop()
            raise
        self._supervisor.watch(self.children)
        return connections

    def stop(self) -> None:
        """Stop our processes, then the servers they use. May be called any number of times."""
        self._supervisor.stop()
        for child in reversed(self.children.values()):
            child.stop()
        self.children.clear()
        give_back(self._ports)
        self._ports.clear()
        self._embedded.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _missing(self) -> list[Service]:
        own = {
            Service.S3: self.settings.store.url,
            Service.LABEL_STUDIO: self.settings.label_studio.url,
            Service.MLFLOW: self.settings.mlflow.url,
        }
        return [service for service, url in own.items() if not url]

    def _own_bucket(self) -> S3Settings | None:
        connection = self._own_s3()
        return connection.settings() if connection else None

    def _own_s3(self) -> S3Connection | None:
        store = self.settings.store
        if store.url is None:
            return None
        return S3Connection(
            url=store.url,
            bucket=store.bucket,
            access_key=store.access_key,
            secret_key=store.secret_key,
            region=store.region,
            label_studio_url=store.url_for_label_studio or store.url,
        )

    def _connect(self, endpoints: Endpoints) -> Connections:
        settings, data_dir = self.settings, self.settings.data_dir
        ours = Secrets(data_dir / "secrets.json")
        s3 = self._own_s3()
        if endpoints.s3 is not None:
            e = endpoints.s3
            s3 = S3Connection(
                url=e.url, bucket=e.bucket, access_key=e.access_key, secret_key=SecretStr(e.secret_key),
                region=e.region, label_studio_url=e.url,
            )  # fmt: skip
        if s3 is not None:
            S3Blobs(s3.settings()).ensure_bucket()
        studio = endpoints.label_studio
        port, *predictor_ports = self._take_ports()
        predictors = dict(zip((loop.name for loop in settings.loops), predictor_ports, strict=True))
        service_url = f"http://{settings.host}:{port}"
        return Connections(
            config=self._config,
            service_url=service_url,
            webhook_url=(settings.webhook_url or service_url).rstrip("/"),
            admin_token=SecretStr(ours.get("admin_token")),
            webhook_secret=SecretStr(ours.get("webhook_secret")),
            database_url=SecretStr(settings.database_url or f"sqlite:///{data_dir / 'hardloop.db'}"),
            jobs_database_url=SecretStr(settings.database_url or f"sqlite:///{data_dir / 'jobs.db'}"),
            s3=s3,
            blobs_dir=endpoints.blobs_dir,
            label_studio_url=(studio.url if studio else str(settings.label_studio.url)).rstrip("/"),
            label_studio_key=SecretStr(studio.token) if studio else settings.label_studio.api_key,
            mlflow_url=(endpoints.mlflow_url or str(settings.mlflow.url)).rstrip("/"),
            predictors=predictor_addresses(settings, predictors),
        )

    def _take_ports(self) -> list[int]:
        """The service's port, then one for each predictor; the same as last time where they are free."""
        wanted = self.settings.port
        if wanted and not is_free(wanted):
            raise BadSettings(f"port {wanted} is taken by another program: set `port` to a free one, or to 0")
        self._ports = free_ports(len(self.settings.loops) + (0 if wanted else 1))
        return [wanted, *self._ports] if wanted else list(self._ports)

    def _start_children(self, connections: Connections, progress: Progress) -> None:
        token = connections.admin_token.get_secret_value()
        self._run(
            "service",
            ["-m", "hardloop.service.app", str(self.settings.data_dir)],
            _answers(f"{connections.service_url}/api/v1/loops", {"Authorization": f"Bearer {token}"}, 200),
            progress,
        )
        for loop, address in connections.predictors.items():
            self._run(
                f"predictor-{loop}",
                ["-m", "hardloop.service.predictor", str(self.settings.data_dir), loop],
                _answers(f"{address}/healthz", {}, 200),
                progress,
            )

    def _run(self, name: str, arguments: list[str], healthy: Callable[[Child], bool], progress: Progress) -> None:
        data_dir = self.settings.data_dir
        # MLflow's client takes the user's credentials from its own variables.
        ours = {k: v for k, v in os.environ.items() if k.startswith(("HARDLOOP_", "MLFLOW_TRACKING_"))}
        command = Command(
            name=name,
            argv=[sys.executable, *arguments],
            log=data_dir / "logs" / f"{name}.log",
            healthy=healthy,
            environment=clean_environment(**ours, PYTHONUNBUFFERED="1"),
            folder=data_dir,
            start_s=120.0,
            grace_s=25.0,
        )
        self.children[name] = child = Child(command)
        child.start(lambda gone: progress(f"{name}: starting", int(gone), int(command.start_s)))
        progress(f"{name}: answers", 1, 1)


def _answers(address: str, headers: dict[str, str], status: int) -> Callable[[Child], bool]:
    def check(_: Child) -> bool:
        return httpx.get(address, headers=headers, timeout=5.0, trust_env=False).status_code == status

    return check

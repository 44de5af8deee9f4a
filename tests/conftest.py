"""Fixtures that every room's tests share: real servers, one of each per session, started when first asked for."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import psycopg
import pytest
from minio import Minio

from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.service.embedded import EmbeddedServices, LabelStudioEndpoint, Service
from hardloop.service.embedded.seaweedfs import why_unavailable
from tests import servers
from tests.lacking import lacking

# A shell's background job ignores SIGINT and hands that down; the programs we interrupt must start as a person's do.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests that load the runtime by themselves report to nobody either (see tests/test_no_telemetry.py).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Settings]:
    """A real SeaweedFS; its bucket is nobody's in particular: tests take `s3`."""
    if reason := why_unavailable():
        lacking("SeaweedFS", f"{reason}; use Linux x86-64 with `pip install 'hardloop[dev]'`")
    with EmbeddedServices(tmp_path_factory.mktemp("s3"), bucket="shared") as services:
        found = services.start([Service.S3]).s3
        assert found is not None
        yield found


@pytest.fixture
def s3(s3_server: S3Settings) -> Iterator[S3Settings]:
    """A fresh, empty bucket on the session's SeaweedFS; it is removed with what it holds after the test."""
    settings = replace(s3_server, bucket=f"test-{token_hex(6)}")
    S3Blobs(settings).ensure_bucket()
    yield settings
    # SeaweedFS removes a bucket with its contents and so gives its volumes free, of which there are not many.
    Minio(
        endpoint=urlsplit(settings.url).netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        secure=False,
        region=settings.region,
    ).remove_bucket(bucket_name=settings.bucket)


@pytest.fixture
def blobs(s3: S3Settings) -> S3Blobs:
    """The blob store on the fresh bucket of `s3`."""
    return S3Blobs(s3)


@pytest.fixture(scope="session")
def juicefs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Settings]:
    """A real JuiceFS gateway, the second S3 server: it knows no create-once."""
    with servers.juicefs_gateway(tmp_path_factory.mktemp("juicefs")) as settings:
        yield settings


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioEndpoint]:
    """A real Label Studio: .url .username .password .token of its administrator. Tests make projects of their own."""
    with EmbeddedServices(tmp_path_factory.mktemp("label-studio")) as services:
        found = services.start([Service.LABEL_STUDIO]).label_studio
        assert found is not None
        yield found


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server with artifacts in a folder. Tests use experiment names of their own."""
    with EmbeddedServices(tmp_path_factory.mktemp("mlflow")) as services:
        found = services.start([Service.MLFLOW]).mlflow_url
        assert found is not None
        yield found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a real PostgreSQL server without a database: tests take `postgres_url`."""
    with servers.postgres() as address:
        yield address


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh database, as SQLAlchemy spells it: `postgresql+psycopg://user:password@127.0.0.1:port/name`."""
    name = f"test_{token_hex(6)}"
    admin = f"{postgres_server.replace('+psycopg', '')}/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield f"{postgres_server}/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium or Chrome, for Playwright's `executable_path`."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    applications = [Path(f"/Applications/{name}.app/Contents/MacOS/{name}") for name in ("Chromium", "Google Chrome")]
    found = [path for name in names if (path := shutil.which(name))]
    found += [str(path) for path in applications if path.exists()]
    if not found:
        lacking("Chromium", "install it, e.g. `apt-get install chromium`")
    return found[0]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets that lies beside the checkout; read only."""
    folder = _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        lacking("the folder ../shared/data", "it lies beside the checkout on the project's machines")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where torch sees no accelerator: the one lack that is never a failure."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("an accelerator is not on this machine: run on one with `-m gpu`")

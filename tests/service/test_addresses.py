"""What `hardloop up` prints: everything a person needs in a terminal, and no secret into a log."""

import io
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from hardloop.service.addresses import show
from hardloop.service.connections import Connections, S3Connection
from hardloop.service.settings import Settings

LOOP = {"name": "shoes", "labels": ["boot", "sandal"]}
SECRETS = {"the-token", "the-password", "the-secret-key"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def connections(tmp_path: Path) -> Connections:
    s3 = S3Connection(
        url="http://s3:9000", bucket="photos", access_key="the-access-key", secret_key=SecretStr("the-secret-key"),
        region="us-east-1", label_studio_url="http://s3:9000",
    )  # fmt: skip
    (tmp_path / "secrets.json").write_text(json.dumps({"label_studio_password": "the-password"}))
    return Connections(
        config=tmp_path, service_url="http://service", webhook_url="http://service",
        admin_token=SecretStr("the-token"), webhook_secret=SecretStr("hook"), database_url=SecretStr("sqlite://"),
        jobs_database_url=SecretStr("sqlite://"), s3=s3, blobs_dir=None, label_studio_url="http://labels",
        label_studio_key=SecretStr("key"), mlflow_url="http://mlflow", predictors={"shoes": "http://predictor"},
    )  # fmt: skip


def said(connections: Connections, data_dir: Path, **settings: object) -> str:
    return show(connections, Settings(loops=(LOOP,), data_dir=data_dir, **settings))  # type: ignore[arg-type]


def test_in_a_terminal_the_logins_of_what_was_started_here_are_shown(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    told = said(connections, tmp_path)
    assert "token: the-token" in told
    assert "login admin@hardloop.localhost, password the-password" in told
    assert "  export HARDLOOP_S3_URL=http://s3:9000 HARDLOOP_S3_BUCKET=photos\n" in told
    assert "  export HARDLOOP_S3_ACCESS_KEY=the-access-key HARDLOOP_S3_SECRET_KEY=the-secret-key\n" in told


def test_elsewhere_the_files_that_hold_the_secrets_are_named_instead(connections: Connections, tmp_path: Path) -> None:
    told = said(connections, tmp_path)
    assert not [secret for secret in SECRETS if secret in told]
    for address in ("http://service", "http://predictor", "http://labels", "http://mlflow", "http://s3:9000"):
        assert address in told
    assert "  export HARDLOOP_S3_URL=http://s3:9000 HARDLOOP_S3_BUCKET=photos\n" in told
    assert str(tmp_path / "connections.json") in told
    assert str(tmp_path / "secrets.json") in told


def test_a_secret_that_the_user_brought_is_never_shown(
    connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    told = said(
        connections, tmp_path, store={"url": "http://s3:9000", "secret_key": "the-secret-key"},
        label_studio={"url": "http://labels"},
    )  # fmt: skip
    assert "the-token" in told, "it was made here"
    assert "the-secret-key" not in told
    assert "the-password" not in told
    assert "  export HARDLOOP_S3_URL=http://s3:9000 HARDLOOP_S3_BUCKET=photos\n" in told
    assert "  export HARDLOOP_S3_ACCESS_KEY=… HARDLOOP_S3_SECRET_KEY=…   (your own)\n" in told


def test_a_folder_for_a_store_needs_no_secret(connections: Connections, tmp_path: Path) -> None:
    told = said(connections.model_copy(update={"s3": None, "blobs_dir": tmp_path / "blobs"}), tmp_path)
    assert f"  export HARDLOOP_S3_URL=file://{tmp_path}/blobs\n" in told

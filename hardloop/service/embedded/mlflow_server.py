"""MLflow's tracking server as a child: its database is a SQLite file, its artifacts lie in S3 or in a folder."""

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx

from hardloop.core.blobs import S3Settings
from hardloop.core.ports import Progress
from hardloop.service.children import Check, Child, Command, clean_environment
from hardloop.service.embedded.place import Place, Running, start_on_free_ports

NAME = "mlflow"


def start(place: Place, s3: S3Settings | None, progress: Progress) -> tuple[Running, str]:
    """Start it on the data folder; returns its address. Artifacts go into the bucket `s3` names, else into a folder.

    Clients reach artifacts through the server alone, so they need no credentials of the bucket. Raises Unavailable.
    """
    folder = place.folder(NAME)
    database = folder / "mlflow.db"
    artifacts = f"s3://{s3.bucket}/mlflow" if s3 else place.folder(f"{NAME}/artifacts").as_uri()
    variables = {
        "HOME": str(folder),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes for nothing we use
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    if s3:
        variables |= {
            "MLFLOW_S3_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_DEFAULT_REGION": s3.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def command(ports: Sequence[int]) -> Command:
        (port,) = ports
        return Command(
            name="MLflow",
            argv=[
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", artifacts,
            ],
            log=place.log(NAME),
            healthy=_answers(port, database),
            environment=clean_environment(**variables),
            folder=folder,
            start_s=180.0,
            locks=place.locks,
        )  # fmt: skip

    running = start_on_free_ports(place, NAME, 1, command, progress)
    return running, f"http://127.0.0.1:{running.ports[0]}"


def _answers(port: int, database: Path) -> Check:
    """Healthy: answers with the creation time, in milliseconds, that the default experiment has in our own database."""

    def check(_: Child) -> bool:
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get"
        answer = httpx.get(address, params={"experiment_id": "0"}, timeout=5.0, trust_env=False).raise_for_status()
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5.0)) as connection:
            ours = connection.execute("SELECT creation_time FROM experiments WHERE experiment_id = 0").fetchone()
        return bool(int(answer.json()["experiment"]["creation_time"]) == ours[0])

    return check

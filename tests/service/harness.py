"""A real service process on real servers, for tests that kill it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from pydantic import SecretStr

from feedback.capture import Capture, CapturePolicy
from hardloop.core import ids
from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.service import connections as known
from hardloop.service.client import Client
from hardloop.service.connections import Connections, S3Connection
from hardloop.service.embedded import LabelStudioEndpoint
from hardloop.service.embedded.free_ports import free_ports
from tests.fakes.loops import LABELS, picture

T = TypeVar("T")

_SETTINGS = """
data_dir = "data"
port = 0
tick_s = 0.2
poll_s = 1.0

[[loops]]
name = "{name}"
labels = ["red", "green", "blue"]
budget = 12
mine = "manual"
{review}

[loops.capture]
take_all = true
audit_share = 0.1
exploration_share = 0.0

[loops.trigger]
min_new_labels = 6
debounce_s = 0.5
cooldown_s = 0

[loops.gate]
min_mined = 5
"""


def wait_for(found: Callable[[], T], what: str, timeout_s: float = 90, told: Callable[[], str] = str) -> T:
    """Ask until the answer is true; fails the test, with what `told` says, when time runs out."""
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}\n{told()}"
        time.sleep(0.1)
    return answer


@dataclass
class World:
    """One loop of its own on the session's servers, and a service process that may be killed and started again."""

    name: str
    folder: Path
    connections: Connections
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    truth: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(
        cls, name: str, folder: Path, s3: S3Settings, studio: LabelStudioEndpoint, mlflow_url: str,
        webhooks: bool = True, automatic: bool = False,
    ) -> "World":  # fmt: skip
        """Settings and connections in a folder; nothing runs yet. webhooks: whether they can reach the service."""
        config = folder / "hardloop.toml"
        review = 'review = "automatic"' if automatic else ""
        config.write_text(_SETTINGS.format(name=name, review=review))
        data_dir = folder / "data"
        port, nowhere = free_ports(2)
        connections = Connections(
            config=config,
            service_url=f"http://127.0.0.1:{port}",
            webhook_url=f"http://127.0.0.1:{port if webhooks else nowhere}",
            admin_token=SecretStr("test-token"),
            webhook_secret=SecretStr("test-secret"),
            database_url=SecretStr(f"sqlite:///{data_dir / 'hardloop.db'}"),
            jobs_database_url=SecretStr(f"sqlite:///{data_dir / 'jobs.db'}"),
            s3=S3Connection(
                url=s3.url, bucket=s3.bucket, access_key=s3.access_key, secret_key=SecretStr(s3.secret_key),
                region=s3.region, label_studio_url=s3.url,
            ),
            blobs_dir=None,
            label_studio_url=studio.url,
            label_studio_key=SecretStr(studio.token),
            mlflow_url=mlflow_url,
            predictors={},
        )  # fmt: skip
        known.write(data_dir, connections)
        return cls(name, folder, connections)

    # ------------------------------------------------------------ the process

    def start(self, bomb: str = "", wait: bool = True) -> None:
        """Start the service; `bomb` names the point at which it kills itself with SIGKILL (see bombs.py)."""
        assert self.process is None or self.process.poll() is not None
        log = (self.folder / "service.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.service.bombs", str(self.folder / "data"), bomb],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        log.close()
        if wait:
            self.until(self._answers, "the service to answer", 60)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True  # the bomb went off while starting: the caller looks at that
        try:
            return httpx.get(f"{self.connections.service_url}/healthz", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def died(self, timeout_s: float = 90) -> int:
        """Wait until the process has ended by itself; its return code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9, now."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)

    def log(self) -> str:
        """What the service wrote."""
        return (self.folder / "service.log").read_text(errors="replace")[-8000:]

    @property
    def client(self) -> Client:
        """The service's API."""
        return Client(self.connections, timeout_s=60)

    def get(self, path: str) -> Any:
        """GET below the loop."""
        return self.client.get(f"/loops/{self.name}/{path}".rstrip("/"))

    def until(self, found: Callable[[], T], what: str, timeout_s: float = 90) -> T:
        """Ask until the answer is true; fails the test, with the service's log, when time runs out."""
        return wait_for(found, what, timeout_s, self.log)

    # ------------------------------------------------------------ what people and production do

    def upload(self, role: str, per_class: int) -> None:
        """Labelled images through the API."""
        labels = [label for label in LABELS for _ in range(per_class)]
        files = [("files", (f"{role}-{i}.png", picture(label, self.rng))) for i, label in enumerate(labels)]
        taken = self.client.post(
            f"/loops/{self.name}/images", files=files, data={"role": role, "labels": str(labels).replace("'", '"')}
        )
        assert taken == {"new": len(labels), "known": 0, "refused": 0}

    def first_model(self) -> str:
        """Seed and legacy labels, a training, and its promotion."""
        self.upload("legacy", 10)
        self.upload("seed", 2)
        job = self.client.run(self.name, {"steps": ["train", "promote"], "manual": True}, key="first")
        assert job["state"] == "done", job
        return str(job["result"]["promote"])

    def ask_to_mine(self) -> None:
        """Submit the round's mining job, always the same one."""
        body = {"steps": ["mine"], "budget": 12}
        self.client.post(f"/loops/{self.name}/jobs", body, headers={"Idempotency-Key": "round-1"})

    def blobs(self) -> S3Blobs:
        """The loop's bucket."""
        assert self.connections.s3 is not None
        return S3Blobs(self.connections.s3.settings())

    def capture(self, count: int, model_version: str = "1") -> None:
        """Predictions from production, half sure of themselves."""
        policy = CapturePolicy(take_all=True, audit_share=0.1, exploration_share=0.0)
        with Capture(self.blobs(), self.name, LABELS, policy, model_version, strict=True) as capture:
            for _ in range(count):
                label = LABELS[self.rng.integers(3)]
                image = picture(label, self.rng, clear=0.35)
                self.truth[ids.sample_id(image)] = label
                capture.log(image=image, probabilities=self.rng.dirichlet([2.0, 2.0, 2.0]), source="line-1")
            assert capture.flush(30)

    def studio(self) -> httpx.Client:
        """Label Studio's own API, as its administrator."""
        key = self.connections.label_studio_key.get_secret_value()
        return httpx.Client(
            base_url=self.connections.label_studio_url,
            headers={"Authorization": f"Token {key}"},
            timeout=60,
            trust_env=False,
        )

    def studio_tasks(self) -> list[dict[str, Any]]:
        """Every task of the loop's project with its annotations, as Label Studio holds them."""
        tasks = self.get("tasks")
        with self.studio() as http:
            query = {"project": tasks[0]["project_id"], "fields": "all", "page_size": 500}
            return list(http.get("/api/tasks", params=query).raise_for_status().json()["tasks"])

    def answer(self, task: dict[str, Any], label: str | None = None) -> int:
        """Answer a task as an annotator would, truthfully unless told; the annotation's id."""
        label = label or self.truth[task["data"]["sample_id"]]
        value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        with self.studio() as http:
            made = http.post(f"/api/tasks/{task['id']}/annotations/", json={"result": [value], "lead_time": 1.0})
            return int(made.raise_for_status().json()["id"])

"""`hardloop up` as a real process: a loop from the first unlabelled image to a model that answers, and a clean end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from hardloop.core import ids
from hardloop.core.errors import Unavailable
from hardloop.service import connections as known
from hardloop.service.client import Client
from hardloop.service.connections import Connections
from tests.fakes.loops import LABELS, picture

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = """
port = 0
tick_s = 0.3
poll_s = 2.0

[[loops]]
name = "colours"
labels = ["red", "green", "blue"]
budget = 24
mine = "manual"

[loops.capture]
take_all = true
audit_share = 0.0
"""


class Up:
    """`hardloop up` in a folder, and what a user does beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "up.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hardloop", "up"], cwd=self.folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.until(lambda: "for your own model server" in self.said() or self.process.poll() is not None, "up", 300)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return (self.folder / "up.log").read_text(errors="replace")

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hardloop", *words], cwd=self.folder, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout

    def logs(self) -> str:
        return (self.folder / ".hardloop" / "logs" / "service.log").read_text(errors="replace")[-4000:]

    def until(self, true: Callable[[], Any], what: str, timeout_s: float = 90) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := true()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}\n{self.said()[-4000:]}"
            time.sleep(0.1)
        return found

    @property
    def connections(self) -> Connections:
        return known.read(self.folder / ".hardloop")

    def get(self, path: str) -> Any:
        return Client(self.connections).get(f"/loops/colours{path}")

    def family(self) -> list[psutil.Process]:
        """Every process that has to do with the folder: by its command line, working folder or variables."""
        found, name = [], str(self.folder)
        for process in psutil.process_iter():
            try:
                facts = [*process.cmdline(), process.cwd(), *process.environ().values()]
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            # The test runner itself names the folder in a variable of its own.
            if process.pid != psutil.Process().pid and any(name in fact for fact in facts):
                found.append(process)
        return found

    def all_gone(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while left := self.family():
            told = [(p.pid, " ".join(command(p))[:200]) for p in left]
            assert time.monotonic() < deadline, f"still there after {within_s} s: {told}"
            time.sleep(0.2)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    (tmp_path / "hardloop.toml").write_text(SETTINGS)
    up = Up(tmp_path)
    yield up
    if up.process is not None and up.process.poll() is None:
        up.process.kill()
        up.process.wait(10)


def test_a_user_without_a_model_gets_one_and_everything_is_there_after_a_restart(up: Up) -> None:
    up.start()
    connections = up.connections
    told = up.said()
    for address in (connections.service_url, connections.label_studio_url, connections.mlflow_url):
        assert address in told
    assert connections.predictors["colours"] in told
    assert "export HARDLOOP_S3_URL=" in told
    assert "champion none yet" in up.run("status")
    assert httpx.get(f"{connections.predictors['colours']}/readyz", trust_env=False).status_code == 503

    # 1. Images without labels, picked without a model.
    rng = np.random.default_rng(0)
    truth: dict[str, str] = {}
    files = []
    for number in range(36):
        image = picture(LABELS[number % 3], rng)
        truth[ids.sample_id(image)] = LABELS[number % 3]
        files.append(("files", (f"{number}.png", image)))
    taken = Client(connections).post("/loops/colours/images", files=files, data={"role": "pool"})
    assert taken == {"new": 36, "known": 0, "refused": 0}
    assert "next: hardloop queue list colours" in up.run("mine", "colours")
    assert len(json.loads(up.run("queue", "list", "colours", "--json", "--limit", "100"))) == 24
    assert up.run("queue", "approve", "colours") == "approved 24\n"

    # 2. People answer in Label Studio; the service hears of it.
    tasks = up.until(lambda: len(up.get("/tasks")) == 24 and up.get("/tasks"), "the tasks")
    headers = {"Authorization": f"Token {connections.label_studio_key.get_secret_value()}"}
    with httpx.Client(base_url=connections.label_studio_url, headers=headers, timeout=60, trust_env=False) as studio:
        for task in tasks:
            value = {"choices": [truth[task["sample_id"]]]}
            body = {"result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}]}
            studio.post(f"/api/tasks/{task['task_id']}/annotations/", json=body).raise_for_status()
    up.until(lambda: len(up.get("/labels")) == 24, "the labels")
    assert {row["sample_id"]: row["label"] for row in up.get("/labels")} == {
        t["sample_id"]: truth[t["sample_id"]] for t in tasks
    }
    assert len(up.get("/webhooks")) >= 24, "Label Studio's hints arrive"

    # 3. The first model, and its answers.
    assert up.run("train", "colours").startswith("version 1 was trained; version 1 serves\nthe gate: ")
    answer = up.until(lambda: predicted(up, picture("green", rng)), "the predictor to load the champion", 30)
    assert answer["model_version"] == "1"
    assert answer["label"] == "green"
    assert "champion 1" in up.run("status")

    # 4. kill -9 of our own processes: each is started again, and nothing has happened twice.
    for module in ("hardloop.service.app", "hardloop.service.predictor"):
        (process,) = [p for p in up.family() if module in command(p) and "watchdog" not in " ".join(command(p))]
        process.kill()
        up.until(lambda dead=process: not dead.is_running(), f"{module} to be gone")
    answer = up.until(lambda: predicted(up, picture("red", rng)), "the predictor to answer again")
    assert (answer["model_version"], answer["label"]) == ("1", "red")
    assert "champion 1" in up.until(lambda: answers(up), "the service to answer again")
    assert len(up.get("/trainings")) == 1
    assert len(up.get("/tasks")) == 24

    # 5. Ctrl-C ends everything, and the next start finds everything.
    assert up.process is not None
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 130
    up.all_gone(1)
    up.start()
    status = up.run("status")
    assert "champion 1" in status
    assert "24 answered" in status
    answer = up.until(lambda: predicted(up, picture("red", rng)), "the predictor to load the champion again", 60)
    assert (answer["model_version"], answer["label"]) == ("1", "red")
    assert up.connections.admin_token == connections.admin_token
    assert len(up.get("/trainings")) == 1

    # 6. Even kill -9 leaves nothing behind.
    assert len(up.family()) > 5
    assert up.process is not None
    up.process.kill()
    up.process.wait(10)
    up.all_gone(15)


def command(process: psutil.Process) -> list[str]:
    """A process's command line; nothing for one that has just ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def answers(up: Up) -> str:
    """What `hardloop status` says, "" while the service is being started again."""
    try:
        up.get("")
    except Unavailable:
        return ""
    return up.run("status")


def predicted(up: Up, image: bytes) -> dict[str, Any] | None:
    """The predictor's answer, None before it has a model, or while it is being started again."""
    address = f"{up.connections.predictors['colours']}/predict"
    try:
        answer = httpx.post(address, content=image, headers={"Content-Type": "image/png"}, timeout=10, trust_env=False)
    except httpx.TransportError:
        return None
    if answer.status_code == 503:
        return None
    assert answer.status_code == 200, answer.text
    return dict(answer.json())

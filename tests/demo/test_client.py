"""The service's client: a job is waited for, through a restart, and what the loop says of its work is passed on."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from hardloop.core.errors import Unavailable
from hardloop.service import client as module
from hardloop.service.client import Client


class Service:
    """A job that is done after so many looks; the loop's progress at each look; looks at which nobody answers."""

    def __init__(self, looks: int, progress: list[Any], away: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.looks, self.progress, self.away = looks, progress, away
        self.looked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/loops/demo":
            return httpx.Response(200, json={"progress": self.progress.pop(0)})
        if request.url.path == "/api/v1/loops/demo/jobs":
            return httpx.Response(202, json={"job_id": "j", "state": "waiting"})
        self.looked += 1
        if self.looked in self.away:
            raise httpx.ConnectError("restarting")
        return httpx.Response(200, json={"job_id": "j", "state": "done" if self.looked >= self.looks else "running"})


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_LOOK_S", 0.0)


def client(service: Service) -> Client:
    connections = SimpleNamespace(service_url="http://service", admin_token=SecretStr("token"))
    return Client(connections, transport=httpx.MockTransport(service))  # type: ignore[arg-type]


def step(done: int) -> dict[str, Any]:
    return {"step": "train", "what": "training", "done": done, "total": 3}


def test_the_loops_progress_is_passed_on_whenever_it_changes():
    heard: list[tuple[str, int, int]] = []
    service = Service(5, [None, step(1), step(1), step(3), None])
    job = client(service).run("demo", {}, progress=lambda *said: heard.append(said))
    assert job["state"] == "done"
    assert heard == [("training", 1, 3), ("training", 3, 3)]


def test_nobody_asks_for_progress_that_nobody_wants():
    assert client(Service(2, [])).run("demo", {})["state"] == "done"


def test_a_service_that_is_away_for_a_moment_is_waited_for_and_one_that_stays_away_is_not(monkeypatch):
    assert client(Service(4, [], away={2, 3})).run("demo", {})["state"] == "done"
    monkeypatch.setattr(module, "_RESTART_S", -1.0)
    with pytest.raises(Unavailable, match="does not answer"):
        client(Service(4, [], away={2})).run("demo", {})

"""A turn of the loop: what it waits for, what it does without picks, and what breaks a link."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from hardloop.core.errors import Unavailable
from hardloop.core.records import Verdict
from hardloop.service.demo import evidence
from hardloop.service.demo.links import Links
from hardloop.service.demo.loop_api import LoopApi
from hardloop.service.demo.report import Link, wilson
from hardloop.service.demo.turn import Turn

IDLE = {"samples": {"pool": 7, "audit": 2}, "champion": "1", "progress": None}
IDLE["queue"] = {"items": 5, "queued": 0, "approved": 0, "rejected": 0}


class Service:
    """Answers of the service by path, as the demo's client gives them. posted: paths that were posted to."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"status": IDLE, **answers}
        self.posted: list[str] = []

    def run(self, loop: str, body: Mapping[str, Any], key: str | None = None, progress: Any = None) -> dict[str, Any]:
        return {"state": "done", "result": {"mine": "s1"}}

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        self.posted.append(path)
        return {"changed": 1}

    def get(self, path: str) -> Any:
        kind = path.removeprefix("/loops/demo").strip("/").partition("?")[0] or "status"
        answer = self.answers[kind]
        return answer(path) if callable(answer) else answer


class Production:
    """A predictor that answers everything, and counts what it was told to count."""

    def __init__(self, serving: str = "1", **images: int) -> None:
        self.answered, self._serving = 0, serving
        self._stats = {"capture": {"pending": 0, "written": 0, "taken": {}}, "images": images}

    def send(self, traffic: Any, version: str, progress: Any) -> None:
        self.answered += len(traffic)

    def serving(self) -> str:
        return self._serving

    def stats(self) -> dict[str, Any]:
        return self._stats


def turn(service: Service, **parts: Any) -> Turn:
    found = object.__new__(Turn)
    found.api = LoopApi(service, "demo", lambda *_: None)  # type: ignore[arg-type]
    found.lines = SimpleNamespace(say=lambda text: None)  # type: ignore[assignment]
    found.options = SimpleNamespace(budget=3, rounds=2)  # type: ignore[assignment]
    found.parts = SimpleNamespace(stream=range(10))  # type: ignore[assignment]
    found.links, found.served, found.labels_used = Links(), ["1"], 20
    for name, part in parts.items():
        setattr(found, name, part)
    return found


def link(watching: Turn, name: str) -> Link:
    return next(link for link in watching.links.told() if link.name == name)


def picks(*samples: str, predicted: int = 0) -> list[dict[str, Any]]:
    return [{"sample_id": s, "receipt": {"predicted": predicted, "reasons": ["new"]}} for s in samples]


def page_of(items: list[dict[str, Any]]) -> Any:
    def queue(path: str) -> dict[str, Any]:
        after = int(path.partition("after=")[2] or 0)
        return {"items": items[after : after + 1000], "next": after + 1000 if after + 1000 < len(items) else None}

    return queue


SHORT = [
    {"selection_id": "s0", "shortfall": ["no"]},
    {"selection_id": "s1", "shortfall": ["2 were eligible", "no audit"]},
]


def test_a_round_without_picks_asks_nobody_waits_for_nothing_and_says_so():
    service = Service(queue=page_of([]), selections=SHORT)
    watching = turn(
        service, production=Production(), arena=SimpleNamespace(accuracy=lambda version: wilson(90 + int(version), 100))
    )
    found = watching.round(2)
    assert service.posted == []
    assert (found.number, found.streamed, found.picked, found.tasks_pushed, found.labels_new) == (2, 5, 0, 0, 0)
    assert (found.labels_used, found.model_version, found.served_version) == (20, "1", "1")
    assert found.accuracy == found.served_accuracy == wilson(91, 100)
    assert not found.verdict.promoted
    assert found.notes == ("0 of 3 were picked; 2 were eligible; no audit",)
    assert [link.name for link in watching.links.told() if link.happened] == ["stream"]


def test_fewer_picks_than_the_budget_are_told_with_the_miners_reasons():
    watching = turn(Service(queue=page_of(picks("a", "b")), selections=SHORT))
    items, notes = watching._mine(1)
    assert (len(items), notes) == (2, ("2 of 3 were picked; 2 were eligible; no audit",))
    assert turn(Service(queue=page_of(picks("a", "b", "c"))))._mine(1)[1] == ()


def test_picks_beyond_a_page_of_the_queue_are_read_too():
    items = picks(*map(str, range(2500)))
    assert turn(Service(queue=page_of(items)))._mine(1) == (items, ())


def decision(promoted: bool = False) -> dict[str, Any]:
    return {"model_version": "2", "promoted": promoted, "reason": "no better", "applied_at": "2026-11-23"}


@pytest.mark.parametrize("stored", [None, Verdict(True, "no better", (), None, 0), Verdict(False, "x", (), None, 0)])
def test_a_verdict_that_mlflow_does_not_hold_breaks_the_gates_link(stored):
    service = Service(decisions=[decision()])
    watching = turn(service, arena=SimpleNamespace(verdict=lambda version: stored))
    watching._decide(1, "2")
    assert not link(watching, "gate").happened
    assert link(watching, "gate").evidence.startswith("round 1: MLflow holds")
    right = Verdict(False, "no better", (), None, 0)
    watching = turn(service, arena=SimpleNamespace(verdict=lambda version: right))
    watching._decide(1, "2")
    assert link(watching, "gate") == Link(name="gate", happened=True, evidence="MLflow holds of version 2: no better")
    assert (link(watching, "promote").happened, link(watching, "promote").evidence) == (
        False,
        "version 2 was kept back, as all before it",
    )


def test_a_champion_made_of_a_part_of_the_labels_is_waited_for_as_well():
    waited: list[str] = []
    watching = turn(
        Service(decisions=[decision()], status=IDLE | {"champion": "3"}),
        arena=SimpleNamespace(verdict=lambda version: Verdict(False, "no better", (), None, 0)),
        wait_until_served=waited.append,
    )
    watching._decide(1, "2")
    assert waited == ["3"]


def test_a_model_served_by_a_server_that_was_started_again_is_no_reload():
    watching = turn(Service(), production=Production("2", **{"1": 40, "2": 2}))
    watching.production.answered = 42
    watching.wait_until_served("2")
    assert link(watching, "reload").happened
    assert "in the running server: it counts 42 of the 42 images" in link(watching, "reload").evidence
    watching.production.answered = 90
    watching.wait_until_served("2")
    assert not link(watching, "reload").happened
    assert "by a server that was started again: it counts 42 of the 90 images" in link(watching, "reload").evidence


def test_one_task_without_pre_annotation_breaks_the_link_whatever_the_other_rounds_show():
    picked = [*picks("a", "b"), *picks("c", predicted=-1)]
    watching = turn(Service())
    watching._held(1, picked, evidence.Audit(3, 2, 0, 0), 3, 0)
    assert link(watching, "send").happened, "of the third the model said nothing"
    watching._held(2, picked, evidence.Audit(3, 1, 0, 0), 3, 0)
    watching._held(3, picked, evidence.Audit(3, 2, 0, 0), 3, 0)
    assert not link(watching, "send").happened
    assert link(watching, "send").evidence.startswith(
        "round 2: 3 tasks in Label Studio, 1 of them with a pre-annotation"
    )


def test_one_answer_that_became_no_label_breaks_the_link_and_a_skip_does_not():
    whole = evidence.Audit(3, 3, 0, 0)
    watching = turn(Service())
    watching._held(1, picks("a", "b", "c"), whole, labels=2, skipped=1)
    assert link(watching, "collect") == Link(
        name="collect", happened=True, evidence="2 labels from 3 picks, of which 1 were skipped"
    )
    watching._held(2, picks("a", "b", "c"), whole, labels=2, skipped=0)
    watching._held(3, picks("a", "b", "c"), whole, labels=3, skipped=0)
    assert not link(watching, "collect").happened
    assert link(watching, "collect").evidence.startswith("round 2: 2 labels from 3 picks")


def test_what_does_not_happen_ends_the_waiting_with_the_services_errors(monkeypatch):
    monkeypatch.setattr("hardloop.service.demo.loop_api._PATIENCE_S", 0.0)
    watching = turn(Service(status=IDLE | {"errors": {"send": "Label Studio is away"}}))
    with pytest.raises(Unavailable, match=r"waited 0 s for rain; the service's errors: .*Label Studio is away"):
        watching.api.wait(lambda: False, "rain")


def test_a_training_that_failed_ends_the_waiting_with_its_reason():
    failed = {"state": "failed", "error": "one class only", "dataset_number": 1, "model_version": None}
    with pytest.raises(Unavailable, match="a training failed: one class only"):
        turn(Service(trainings=[failed], labels=[])).api.training_of({"a"})

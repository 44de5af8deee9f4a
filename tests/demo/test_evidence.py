"""What the demo counts as shown: every round's own training, and what Label Studio and MLflow themselves hold."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hardloop.core.records import Verdict
from hardloop.service.demo import evidence, measure
from hardloop.service.demo.run import Turn
from hardloop.service.settings import load
from hardloop.service.settings_file import demo_file


def task(number: int, sample: str, *answers: int, predictions: int = 1) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"sample_id": sample},
        "annotations": [{"id": i} for i in answers],
        "predictions": [{"id": i} for i in range(predictions)],
    }


def collected(annotation: int, sample: str, deleted: object = None) -> dict[str, Any]:
    return {"annotation_id": annotation, "sample_id": sample, "deleted_at": deleted}


def test_a_round_without_fault_has_a_task_a_pre_annotation_and_an_answer_for_each_sample():
    tasks = [task(1, "a", 10), task(2, "b", 11), task(3, "of another round", 9)]
    found = evidence.audit(tasks, {"a", "b"}, [collected(10, "a"), collected(11, "b")])
    assert found == evidence.Audit(tasks=2, pre_annotated=2, duplicates=0, lost=0)


def test_a_second_task_and_a_second_answer_of_a_sample_are_duplicates():
    assert evidence.audit([task(1, "a"), task(2, "a")], {"a"}, []).duplicates == 1
    twice = [collected(10, "a"), collected(11, "a")]
    assert evidence.audit([task(1, "a", 10, 11)], {"a"}, twice).duplicates == 1
    replaced = [collected(10, "a", "2026-11-23"), collected(11, "a")]
    assert evidence.audit([task(1, "a", 11)], {"a"}, replaced).duplicates == 0


def test_an_answer_that_only_label_studio_has_is_lost_and_a_task_without_prediction_is_counted():
    found = evidence.audit([task(1, "a", 10), task(2, "b", 11, predictions=0)], {"a", "b"}, [collected(10, "a")])
    assert (found.lost, found.pre_annotated) == (1, 1)


def label(sample: str, used_in: int | None, text: str | None = "boot") -> dict[str, Any]:
    return {"sample_id": sample, "used_in": used_in, "label": text}


def training(dataset: int, state: str, version: str | None = None) -> dict[str, Any]:
    return {"dataset_number": dataset, "state": state, "model_version": version}


def test_a_rounds_training_is_the_one_that_took_account_of_all_its_labels():
    first, early, whole = training(1, "trained", "1"), training(2, "trained", "2"), training(3, "trained", "3")
    part = [label("a", 2), label("b", None)]
    assert evidence.training_of({"a", "b"}, part, [first, early]) is None, "it began on a part of the round"
    every = [label("a", 3), label("b", 3), label("seed", 1)]
    assert evidence.training_of({"a", "b"}, every, [first, early, training(3, "running")]) is None
    assert evidence.training_of({"a", "b"}, every, [first, early, whole]) is whole
    assert evidence.training_of({"a", "b"}, [*every, label("a", None, None)], [whole]) is whole, "no label, no wait"
    assert evidence.training_of({"a"}, [], [whole]) is None


def test_labels_bought_are_those_of_the_dataset_and_not_the_gates_own():
    dataset = {"counts": {"train": 30, "holdout": 4, "legacy": 50}, "excluded": ["x: too near y"]}
    assert evidence.labels_in(dataset) == 35


@pytest.mark.parametrize(("budget", "age_s"), [(1, 60.0), (200, 200.0), (10_000, 300.0)])
def test_the_trigger_waits_for_a_whole_round_and_for_less_only_when_it_gets_old(tmp_path, budget, age_s):
    path = tmp_path / "hardloop.toml"
    path.write_text(demo_file("demo", ["a", "b"], budget, "linear-probe", 0))
    trigger = load(path).loops[0].trigger
    assert (trigger.min_new_labels, trigger.max_age_s) == (budget, age_s)


# ---------------------------------------------------------------- the watching itself


class Service:
    """Answers of the service by path, as the demo's client gives them."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def run(self, loop: str, body: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        return {"state": "done", "result": {"mine": "s1"}}

    def get(self, path: str) -> Any:
        kind = path.removeprefix("/loops/demo").strip("/").partition("?")[0] or "status"
        answer = self.answers[kind]
        return answer(path) if callable(answer) else answer


def turn(service: Service, **parts: Any) -> Turn:
    found = object.__new__(Turn)
    found.client = service  # type: ignore[assignment]
    found.lines = lambda *_: None  # type: ignore[assignment]
    found.options = SimpleNamespace(budget=2500)  # type: ignore[assignment]
    found.evidence, found.broken, found.served = {}, {}, ["1"]
    for name, part in parts.items():
        setattr(found, name, part)
    return found


def test_picks_beyond_a_page_of_the_queue_are_read_too():
    items = [{"sample_id": str(i), "receipt": {"reasons": ["new"]}} for i in range(2500)]

    def queue(path: str) -> dict[str, Any]:
        after = int(path.partition("after=")[2] or 0)
        return {"items": items[after : after + 1000], "next": after + 1000 if after + 1000 < 2500 else None}

    assert turn(Service(queue=queue))._mine(1) == items


def decision(promoted: bool = False) -> dict[str, Any]:
    return {"model_version": "2", "promoted": promoted, "reason": "no better", "applied_at": "2026-11-23"}


@pytest.mark.parametrize("stored", [None, Verdict(True, "no better", (), None, 0), Verdict(False, "x", (), None, 0)])
def test_a_verdict_that_mlflow_does_not_hold_breaks_the_gates_link(stored):
    service = Service(decisions=[decision()], status={"champion": "1"})
    watching = turn(service, arena=SimpleNamespace(verdict=lambda version: stored))
    watching._decided("2")
    assert "MLflow holds" in watching.broken["gate"]
    right = Verdict(False, "no better", (), None, 0)
    watching = turn(service, arena=SimpleNamespace(verdict=lambda version: right))
    watching._decided("2")
    assert (watching.broken, watching.evidence) == ({}, {"gate": "MLflow holds of version 2: no better"})


def test_a_champion_made_of_a_part_of_the_labels_is_waited_for_as_well():
    waited: list[str] = []
    watching = turn(
        Service(decisions=[decision()], status={"champion": "3"}),
        arena=SimpleNamespace(verdict=lambda version: Verdict(False, "no better", (), None, 0)),
        _wait_until_served=waited.append,
    )
    watching._decided("2")
    assert waited == ["3"]


def test_one_task_without_pre_annotation_breaks_the_link_whatever_the_other_rounds_show():
    picked = [{"sample_id": s, "receipt": {"predicted": p}} for s, p in (("a", 0), ("b", 2), ("c", -1))]
    watching = turn(Service())
    watching._pre_annotated(1, picked, evidence.Audit(3, 2, 0, 0))
    assert watching.broken == {}, "of the third the model said nothing"
    watching._pre_annotated(2, picked, evidence.Audit(3, 1, 0, 0))
    watching._pre_annotated(3, picked, evidence.Audit(3, 2, 0, 0))
    assert watching.broken["send"].startswith("round 2: 3 tasks in Label Studio, 1 of them with a pre-annotation")


class Measured(measure.Arena):
    """An arena whose models were measured before: random's accuracy grows by a hundredth with every label."""

    def __init__(self, first: int, stream: int, ours: Mapping[str, float]) -> None:
        self._parts = SimpleNamespace(seed=range(first), stream=range(stream))  # type: ignore[assignment]
        self._seed, self._ours = 0, ours

    def _random_hits(self, points: Any, progress: Any) -> Any:
        return np.stack([[np.arange(1000) < 10 * labels for labels, _ in points]] * 2)

    def _hits_of(self, version: str) -> Any:
        return np.arange(1000) < 1000 * self._ours[version]


def test_the_random_curve_begins_at_the_first_labels_so_that_random_can_be_ahead(round_with):
    arena = Measured(20, 300, {"2": 0.25, "3": 0.70})
    rounds = [
        round_with(1, 100, labels_used=40, model_version="2", accuracy=measure.report.wilson(25, 100)),
        round_with(1, 280, labels_used=60, model_version="3", accuracy=measure.report.wilson(70, 100)),
    ]
    compared = arena.compare(rounds, lambda *_: None)
    assert [p.labels for p in compared.curve] == [20, 40, 60, 90, 120, 180, 240]
    assert compared.curve[0].accuracy.value == pytest.approx(0.20)
    saved = [r.labels_saved for r in compared.rounds]
    assert [(s.value, s.at_least) for s in saved if s] == [(-15, False), (10, False)]
    assert [round(r.random_accuracy.value, 2) for r in compared.rounds if r.random_accuracy] == [0.40, 0.60]
    assert compared.gain is not None
    assert compared.gain.value == pytest.approx(-2.5), "rounds are compared at their own labels, not at the start"


def test_rounds_that_brought_no_label_share_one_point_of_the_curve(round_with):
    arena = Measured(20, 100, {"2": 0.4, "3": 0.4})
    rounds = [round_with(1, 160, labels_used=40, model_version=v) for v in ("2", "3")]
    assert [p.labels for p in arena.compare(rounds, lambda *_: None).curve] == [20, 40, 60, 80, 120]

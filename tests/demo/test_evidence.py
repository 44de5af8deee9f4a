"""What the demo counts as shown: every round's own training, and what Label Studio and MLflow themselves hold."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from hardloop.core.errors import Unavailable
from hardloop.service.demo import evidence, measure
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


@pytest.mark.parametrize(
    ("budget", "enough", "age_s"), [(2, 1, 60.0), (40, 10, 60.0), (200, 50, 200.0), (10_000, 2500, 300.0)]
)
def test_the_trigger_waits_for_a_quarter_of_a_round_and_for_less_only_when_it_gets_old(tmp_path, budget, enough, age_s):
    path = tmp_path / "hardloop.toml"
    path.write_text(demo_file("demo", ["a", "b"], budget, "linear-probe", 0))
    trigger = load(path).loops[0].trigger
    assert (trigger.min_new_labels, trigger.max_age_s) == (enough, age_s)


def test_what_label_studio_does_not_give_is_said_in_a_sentence():
    nowhere = SimpleNamespace(label_studio_url="http://127.0.0.1:9", label_studio_key=SecretStr("key"))
    with pytest.raises(
        Unavailable, match=r"Label Studio at http://127\.0\.0\.1:9 did not list the tasks of project 3 \("
    ):
        evidence.tasks_of(nowhere, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("taken", "happened"),
    [
        ({"low_confidence": 9, "disagreement": 2, "audit": 4}, True),
        ({"small_margin": 1, "disagreement": 1}, True),
        ({"audit": 4, "exploration": 2}, False),
        ({"low_confidence": 9, "small_margin": 9, "audit": 4}, False),
        ({"disagreement": 3}, False),
    ],
)
def test_draws_alone_are_no_capture_of_what_the_model_is_unsure_of(taken, happened):
    found, said = evidence.captured({"written": 12, "taken": taken})
    assert found is happened
    for name in ("low_confidence", "small_margin", "disagreement"):
        assert f"{name.replace('_', ' ')} {taken.get(name, 0)}" in said
    assert not evidence.captured({"written": 0, "taken": taken})[0], "nothing reached the store"


def test_a_server_that_forgot_images_it_answered_was_started_again():
    assert evidence.same_process({"images": {"1": 30, "2": 12}}, 42)[0]
    assert evidence.same_process({"images": {"2": 12}}, 42) == (
        False,
        "it counts 12 of the 42 images answered since the demo began",
    )


# ---------------------------------------------------------------- beside random picking


@pytest.mark.parametrize(("seconds_each", "seeds"), [(1.0, 5), (20.0, 5), (25.0, 4), (35.0, 3), (400.0, 2)])
def test_no_random_baseline_is_begun_when_time_is_up_but_two_always_are(seconds_each, seeds):
    now = [0.0]
    for _ in measure.affordable_seeds(5, 80.0, lambda: now[0]):
        now[0] += seconds_each
    assert now[0] == seeds * seconds_each


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
    assert compared.seeds == 2
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

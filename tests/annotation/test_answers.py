"""Answers are untrusted JSON: each becomes an annotation or a refusal that says why."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annotation.answers import read_annotation, read_task
from annotation.label_schema import LabelSchema
from hardloop.core.records import Annotation, RefusedAnnotation, TaskState

SCHEMA = LabelSchema(("cat", "dog", "owl"))
NAMES = {7: "anna@example.org"}
SAMPLE = "0123456789abcdef" * 2
THEN = datetime(2026, 1, 2, tzinfo=UTC)


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "id": 5,
        "result": SCHEMA.result("dog"),
        "was_cancelled": False,
        "completed_by": 7,
        "updated_at": "2026-11-23T07:02:29.075940Z",
        "lead_time": 1.5,
        **changes,
    }


def part(**changes: Any) -> list[dict[str, Any]]:
    return [{**SCHEMA.result("dog")[0], **changes}]


def read(value: Any) -> Annotation | RefusedAnnotation:
    return read_annotation(value, 3, THEN, SCHEMA, NAMES)


def test_a_good_answer_is_read_in_full() -> None:
    assert read(raw()) == Annotation(
        annotation_id=5,
        task_id=3,
        annotator="anna@example.org",
        label="dog",
        skipped=False,
        updated_at=datetime(2026, 11, 23, 7, 2, 29, 75940, tzinfo=UTC),
        origin="manual",
        lead_time_s=1.5,
    )


def test_a_skip_has_no_label_even_with_a_filled_in_or_broken_result() -> None:
    for result in (SCHEMA.result("dog"), [], None, [{"x": 1}]):
        answer = read(raw(was_cancelled=True, result=result))
        assert isinstance(answer, Annotation)
        assert (answer.label, answer.skipped) == (None, True)


@pytest.mark.parametrize("origin", ["manual", "prediction", "prediction-changed"])
def test_the_origin_is_kept(origin: str) -> None:
    answer = read(raw(result=part(origin=origin)))
    assert isinstance(answer, Annotation)
    assert answer.origin == origin


def test_an_unknown_origin_counts_as_manual() -> None:
    for origin in ("robot", None, 3, ["prediction"]):
        answer = read(raw(result=part(origin=origin)))
        assert isinstance(answer, Annotation)
        assert answer.origin == "manual"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"result": part(value={"choices": ["fish"]})}, "label 'fish' is not one of the loop's 3 labels"),
        ({"result": part(value={"choices": ["cat", "dog"]})}, "2 labels were chosen"),
        ({"result": part() + part()}, "2 parts"),
        ({"result": []}, "empty"),
        ({"result": part(value={"choices": []})}, "empty"),
        ({"result": part(value={})}, "empty"),
        ({"result": part(value=None)}, "empty"),
        ({"result": None}, "expected a list"),
        ({"result": "dog"}, "expected a list"),
        ({"result": {"choices": ["dog"]}}, "expected a list"),
        ({"result": ["dog"]}, "expected a choice"),
        ({"result": part(from_name="mood")}, "'mood'"),
        ({"result": part(type="rectanglelabels")}, "'rectanglelabels'"),
        ({"result": part(value={"choices": [["dog"]]})}, "a list of 1"),
        ({"result": part(value={"choices": [1]})}, "label 1"),
        ({"result": part(value={"choices": ["DOG"]})}, "'DOG'"),
        ({"was_cancelled": "yes"}, "was_cancelled"),
        ({"id": None}, "no number"),
        ({"id": True}, "no number"),
        ({"id": 2**63}, "no number"),
        ({"result": part(value={"choices": ["x" * 10_000_000]})}, "is not one of"),
        ({"result": part() * 1_000_000}, "1000000 parts"),
        ({"result": part(value={"choices": [10**6000]})}, "a huge number"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_short_reason(changes: dict[str, Any], complaint: str) -> None:
    refused = read(raw(**changes))
    assert isinstance(refused, RefusedAnnotation)
    assert complaint in refused.reason
    assert len(refused.reason) < 300
    assert (refused.task_id, refused.annotator) == (3, "anna@example.org")
    assert refused.annotation_id == (0 if "id" in changes else 5)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (7, "anna@example.org"),
        (8, "user 8"),
        ({"id": 7, "email": "bo@example.org"}, "bo@example.org"),
        ({"id": 7, "email": ""}, "anna@example.org"),
        ({"id": 7, "email": "bo\0@example.org"}, "anna@example.org"),
        ({"id": 9}, "user 9"),
        (None, "unknown"),
        (True, "unknown"),
        ("anna", "unknown"),
    ],
)
def test_the_annotator_is_named_where_that_can_be_told(who: Any, expected: str) -> None:
    assert read(raw(completed_by=who)).annotator == expected


@pytest.mark.parametrize("time", [-1, float("nan"), float("inf"), 10**400, True, "3", None])
def test_an_impossible_lead_time_is_none(time: Any) -> None:
    answer = read(raw(lead_time=time))
    assert isinstance(answer, Annotation)
    assert answer.lead_time_s is None


@pytest.mark.parametrize("moment", [None, 5, "", "yesterday", "2026-11-23T07:02:29", "0001-01-01T00:00:00+20:00"])
def test_an_unreadable_moment_falls_back_to_the_tasks(moment: Any) -> None:
    assert read(raw(updated_at=moment)).updated_at == THEN


def test_moments_of_other_zones_are_turned_to_utc() -> None:
    moved = read(raw(updated_at="2026-11-23T09:02:29.075940+02:00")).updated_at
    assert moved == datetime(2026, 11, 23, 7, 2, 29, 75940, tzinfo=UTC)
    assert moved.tzinfo is UTC


def task(**changes: Any) -> dict[str, Any]:
    return {
        "id": 3,
        "data": {"sample_id": SAMPLE, "image": "x"},
        "updated_at": "2026-11-23T07:02:29Z",
        "annotations": [raw(), raw(id=6, result=[])],
        **changes,
    }


def test_a_task_has_its_good_answers_and_its_refused_ones() -> None:
    state = read_task(task(), SCHEMA, NAMES)
    assert state is not None
    assert (state.task_id, state.sample_id) == (3, SAMPLE)
    assert [a.annotation_id for a in state.annotations] == [5]
    assert [a.annotation_id for a in state.refused] == [6]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"image": "x"}},
        {"data": {"sample_id": 5}},
        {"data": {"sample_id": ""}},
        {"data": {"sample_id": SAMPLE[:-1]}},
        {"data": {"sample_id": SAMPLE + "0"}},
        {"data": {"sample_id": SAMPLE + "\n"}},
        {"data": {"sample_id": SAMPLE.upper()}},
        {"data": {"sample_id": "\0" + SAMPLE[1:]}},
        {"data": {"sample_id": "０" * 32}},
        {"data": None},
        {"id": "3"},
        {"updated_at": None},
    ],
)
def test_a_task_that_is_not_ours_is_none(changes: dict[str, Any]) -> None:
    assert read_task(task(**changes), SCHEMA, NAMES) is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_near_answers = st.builds(
    lambda base, path, value: {**base, path: value},
    st.just(raw()),
    st.sampled_from(["id", "result", "was_cancelled", "completed_by", "updated_at", "lead_time"]),
    _json,
)
_near_results = st.builds(
    lambda path, value: raw(result=part(**{path: value})),
    st.sampled_from(["from_name", "to_name", "type", "value", "origin"]),
    _json | st.builds(lambda inner: {"choices": inner}, _json),
)


@given(_json | _near_answers | _near_results)
@example({"id": 1, "updated_at": "9999-12-31T23:59:59-23:59"})
def test_whatever_comes_back_is_an_answer_of_the_loop_or_a_refusal(value: Any) -> None:
    answer = read(value)
    if isinstance(answer, Annotation):
        assert (answer.label in SCHEMA.labels) != answer.skipped
        assert answer.annotation_id > 0
    else:
        assert answer.reason
    assert answer.updated_at.utcoffset() is not None


@given(_json | st.builds(lambda data, answers: task(data=data, annotations=answers), _json, _json))
def test_whatever_task_comes_back_is_a_task_of_ours_or_none(value: Any) -> None:
    assert isinstance(read_task(value, SCHEMA, NAMES), TaskState | None)

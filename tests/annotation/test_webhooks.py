"""A webhook is a hint, from a caller who must show the secret, in a body that may be anything."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation.webhooks import MAX_BODY_BYTES, SECRET_HEADER, Hint, parse_hint
from hardloop.core.errors import BadInput, Forbidden

SECRET = "correct horse"
HEADERS = {SECRET_HEADER: SECRET}


def hint(message: Any) -> Hint:
    return parse_hint(HEADERS, json.dumps(message).encode(), SECRET)


def test_a_created_annotation_names_its_project_task_and_number() -> None:
    message = {"action": "ANNOTATION_CREATED", "project": {"id": 4}, "task": {"id": 8}, "annotation": {"id": 15}}
    assert hint(message) == Hint("ANNOTATION_CREATED", True, 4, (8,), (15,))


def test_deleted_annotations_come_as_a_list_of_numbers() -> None:
    message = {"action": "ANNOTATIONS_DELETED", "project": {"id": 4}, "annotations": [{"id": 15}, {"id": 16}]}
    assert hint(message) == Hint("ANNOTATIONS_DELETED", True, 4, (), (15, 16))


def test_an_action_we_do_not_know_has_no_effect() -> None:
    assert hint({"action": "PROJECT_EXPLODED", "project": {"id": 4}}) == Hint("PROJECT_EXPLODED", False, 4)


def test_header_names_match_in_any_case() -> None:
    body = b'{"action": "TASKS_DELETED"}'
    assert parse_hint({SECRET_HEADER.upper(): SECRET}, body, SECRET).relevant
    assert parse_hint({SECRET_HEADER.lower(): SECRET}, body, SECRET).relevant


@pytest.mark.parametrize("headers", [{}, {SECRET_HEADER: ""}, {SECRET_HEADER: "Correct horse"}, {"X-Other": SECRET}])
def test_without_the_secret_the_body_is_not_even_looked_at(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden, match="X-Hardloop-Secret"):
        parse_hint(headers, b"\xff not json", SECRET)


def test_no_secret_of_ours_lets_nobody_in() -> None:
    with pytest.raises(Forbidden):
        parse_hint({SECRET_HEADER: ""}, b'{"action": "TASKS_DELETED"}', "")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"7", b'{"action": 5}', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000],
)
def test_a_body_that_is_no_message_is_bad_input(body: bytes) -> None:
    with pytest.raises(BadInput, match="webhook"):
        parse_hint(HEADERS, body, SECRET)


def test_a_body_over_the_limit_is_bad_input_and_one_at_the_limit_is_read() -> None:
    start = b'{"action": "TASKS_DELETED", "x": "'
    body = start + b"x" * (MAX_BODY_BYTES - len(start) - 2) + b'"}'
    assert parse_hint(HEADERS, body, SECRET).relevant
    with pytest.raises(BadInput, match="at most"):
        parse_hint(HEADERS, body + b" ", SECRET)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"action": st.text()}, optional=dict.fromkeys(("project", "task", "annotations"), _json)))
def test_any_message_is_a_hint_whose_numbers_are_numbers(message: dict[str, Any]) -> None:
    found = hint(message)
    numbers = (*found.task_ids, *found.annotation_ids)
    assert all(isinstance(n, int) and 0 < n < 2**63 for n in numbers)
    assert found.project_id is None or found.project_id > 0


@given(st.binary(max_size=200))
def test_any_bytes_are_a_hint_or_bad_input(body: bytes) -> None:
    with contextlib.suppress(BadInput):
        parse_hint(HEADERS, body, SECRET)

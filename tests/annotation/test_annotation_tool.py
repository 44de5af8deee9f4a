"""One contract for the port, passed by the fake and by the real Label Studio."""

import secrets
from collections.abc import Iterator, Mapping
from typing import Protocol

import httpx
import pytest

from annotation.label_studio import LabelStudioTool
from annotation.label_studio_accounts import LabelStudioAnnotator, create_annotator
from annotation.label_studio_api import LabelStudioSettings
from hardloop.core.errors import BadInput
from hardloop.core.ports import AnnotationTool
from hardloop.core.records import Prediction, TaskDraft, TaskState
from tests.fakes.annotation_tool import InMemoryAnnotationTool

LABELS = ("cat", "dog", "owl")
A, B, C, D = (letter * 32 for letter in "abcd")  # sample ids


class People(Protocol):
    """What annotators do, in either tool."""

    def next_task(self) -> int | None: ...
    def answer(self, task_id: int, label: str) -> int: ...
    def skip(self, task_id: int) -> int: ...
    def change(self, annotation_id: int, label: str) -> None: ...
    def delete(self, annotation_id: int) -> None: ...
    def delete_task(self, task_id: int) -> None: ...
    def predictions(self, task_id: int) -> list[Prediction]: ...


def draft(sample: str, rank: int = 1, prediction: Prediction | None = None) -> TaskDraft:
    return TaskDraft(sample, f"s3://bucket/images/{sample}.png", rank, f"why {sample}", "selection-1", prediction)


def by_sample(states: tuple[TaskState, ...]) -> Mapping[str, TaskState]:
    return {state.sample_id: state for state in states}


class AnnotationToolContract:
    """Subclasses give `tool` (an empty project) and `people` (who work in it)."""

    def test_send_makes_one_task_per_sample_and_answers_for_exactly_those(self, tool: AnnotationTool) -> None:
        first = tool.send([draft(A), draft(B, 2)])
        second = tool.send([draft(B), draft(C, 2)])
        assert set(first) == {A, B}
        assert set(second) == {B, C}
        assert second[B] == first[B]
        assert tool.task_ids() == set(first.values()) | set(second.values())
        assert len(tool.task_ids()) == 3

    def test_send_of_nothing_does_nothing(self, tool: AnnotationTool) -> None:
        assert tool.send([]) == {}
        assert tool.task_ids() == frozenset()

    def test_sending_twice_changes_nothing(self, tool: AnnotationTool, people: People) -> None:
        drafts = [draft(A, 1, Prediction("1", "cat", 0.4)), draft(B, 2, Prediction("1", "dog", 0.6))]
        assert tool.send(drafts) == tool.send(drafts)
        assert len(tool.task_ids()) == 2
        for task_id in tool.task_ids():
            assert len(people.predictions(task_id)) == 1

    def test_a_send_that_cannot_be_right_is_refused_before_anything_is_made(self, tool: AnnotationTool) -> None:
        with pytest.raises(BadInput, match="twice"):
            tool.send([draft(A), draft(B), draft(A, 2)])
        with pytest.raises(BadInput, match="'fish'"):
            tool.send([draft(A), draft(B, 2, Prediction("1", "fish", 0.5))])
        with pytest.raises(BadInput, match="score"):
            tool.send([draft(A, 1, Prediction("1", "cat", 1.5))])
        with pytest.raises(BadInput, match="model version"):
            tool.send([draft(A, 1, Prediction("", "cat", 0.5))])
        with pytest.raises(BadInput, match="rank"):
            tool.send([draft(A, 0)])
        assert tool.task_ids() == frozenset()

    def test_annotators_get_the_first_rank_first_whatever_the_scores(
        self, tool: AnnotationTool, people: People
    ) -> None:
        scores = {C: 0.1, A: 0.9, B: 0.5}
        ranks = {C: 3, A: 1, B: 2}
        ids = tool.send([draft(s, ranks[s], Prediction("1", "cat", scores[s])) for s in scores])
        order = []
        while (task_id := people.next_task()) is not None:
            order.append(task_id)
            people.answer(task_id, "cat")
        assert order == [ids[A], ids[B], ids[C]]

    def test_an_answer_its_change_and_its_deletion_are_each_seen(self, tool: AnnotationTool, people: People) -> None:
        ids = tool.send([draft(A), draft(B, 2)])
        start = tool.changes("")
        assert {s: t.annotations for s, t in by_sample(start.tasks).items()} == {A: (), B: ()}

        number = people.answer(ids[A], "cat")
        created = tool.changes(start.cursor)
        (answer,) = by_sample(created.tasks)[A].annotations
        assert (answer.annotation_id, answer.task_id, answer.label) == (number, ids[A], "cat")
        assert not answer.skipped
        assert "@" in answer.annotator

        people.change(number, "dog")
        updated = tool.changes(created.cursor)
        (answer,) = by_sample(updated.tasks)[A].annotations
        assert (answer.annotation_id, answer.label) == (number, "dog")

        people.delete(number)
        deleted = tool.changes(updated.cursor)
        assert by_sample(deleted.tasks)[A].annotations == ()

    def test_every_change_since_any_cursor_is_reported(self, tool: AnnotationTool, people: People) -> None:
        ids = tool.send([draft(s, r) for r, s in enumerate((A, B, C, D), start=1)])
        cursor = tool.changes("").cursor
        for sample in (D, B, C, A):
            people.answer(ids[sample], "owl")
        later = by_sample(tool.changes(cursor).tasks)
        assert {s: [a.label for a in t.annotations] for s, t in later.items()} == {s: ["owl"] for s in (A, B, C, D)}
        assert by_sample(tool.changes("").tasks).keys() == ids.keys()

    def test_a_skip_is_no_label(self, tool: AnnotationTool, people: People) -> None:
        ids = tool.send([draft(A, 1, Prediction("1", "cat", 0.4))])
        number = people.skip(ids[A])
        (answer,) = by_sample(tool.changes("").tasks)[A].annotations
        assert (answer.annotation_id, answer.label, answer.skipped) == (number, None, True)

    def test_a_label_the_loop_does_not_have_is_refused_with_its_reason(
        self, tool: AnnotationTool, people: People
    ) -> None:
        ids = tool.send([draft(A)])
        number = people.answer(ids[A], "fish")
        state = by_sample(tool.changes("").tasks)[A]
        assert state.annotations == ()
        (refused,) = state.refused
        assert (refused.annotation_id, refused.task_id) == (number, ids[A])
        assert "'fish'" in refused.reason
        people.change(number, "owl")
        state = by_sample(tool.changes("").tasks)[A]
        assert [a.label for a in state.annotations] == ["owl"]
        assert state.refused == ()

    def test_a_new_version_replaces_the_predictions_of_the_old(self, tool: AnnotationTool, people: People) -> None:
        ids = tool.send([draft(A, 1, Prediction("1", "cat", 0.4)), draft(B, 2, Prediction("1", "dog", 0.6))])
        for _ in range(2):
            tool.predict({ids[A]: Prediction("2", "owl", 0.75)})
            assert people.predictions(ids[A]) == [Prediction("2", "owl", 0.75)]
        assert people.predictions(ids[B]) == [Prediction("1", "dog", 0.6)]

    def test_a_deleted_task_leaves_the_ids_and_a_later_send_makes_it_anew(
        self, tool: AnnotationTool, people: People
    ) -> None:
        ids = tool.send([draft(A), draft(B, 2)])
        people.delete_task(ids[A])
        assert tool.task_ids() == {ids[B]}
        tool.predict({ids[A]: Prediction("1", "cat", 0.5), ids[B]: Prediction("1", "dog", 0.5)})
        assert people.predictions(ids[B]) == [Prediction("1", "dog", 0.5)]
        again = tool.send([draft(A)])
        assert again[A] not in (ids[A], ids[B])
        assert tool.task_ids() == {ids[B], again[A]}

    def test_a_task_whose_sample_id_is_none_is_not_taken_for_ours(self, tool: AnnotationTool) -> None:
        tool.send([draft("somebody's own"), draft(A, 2)])
        assert by_sample(tool.changes("").tasks).keys() == {A}

    def test_a_cursor_from_elsewhere_is_refused(self, tool: AnnotationTool) -> None:
        with pytest.raises(BadInput, match="cursor"):
            tool.changes("yesterday")

    def test_an_empty_project_has_no_changes_and_its_cursor_can_be_used(self, tool: AnnotationTool) -> None:
        empty = tool.changes("")
        assert empty.tasks == ()
        ids = tool.send([draft(A)])
        assert by_sample(tool.changes(empty.cursor).tasks)[A].task_id == ids[A]

    def test_a_task_has_an_address_for_people(self, tool: AnnotationTool) -> None:
        ids = tool.send([draft(A)])
        assert tool.task_url(ids[A]).endswith(f"/projects/{tool.project_id}/data?task={ids[A]}")


class TestInMemory(AnnotationToolContract):
    @pytest.fixture
    def tool(self) -> InMemoryAnnotationTool:
        return InMemoryAnnotationTool(LABELS)

    @pytest.fixture
    def people(self, tool: InMemoryAnnotationTool) -> InMemoryAnnotationTool:
        return tool

    def test_a_broken_send_leaves_a_part_that_the_next_one_completes(self, tool: InMemoryAnnotationTool) -> None:
        drafts = [draft(s, r) for r, s in enumerate((A, B, C), start=1)]
        tool.break_after(2)
        with pytest.raises(Exception, match="went away"):
            tool.send(drafts)
        assert len(tool.task_ids()) == 2
        assert len(tool.send(drafts)) == 3
        assert len(tool.task_ids()) == 3


class _LabelStudioPeople:
    """An annotator with an account of its own; tasks and predictions are looked at as the administrator."""

    def __init__(self, annotator: LabelStudioAnnotator, admin: httpx.Client) -> None:
        self._annotator, self._admin = annotator, admin
        self.skip, self.change, self.delete = annotator.skip, annotator.change, annotator.delete

    def next_task(self) -> int | None:
        task = self._annotator.next_task()
        return task.task_id if task else None

    def answer(self, task_id: int, label: str) -> int:
        number = self._annotator.answer(task_id, label)
        assert number is not None
        return number

    def delete_task(self, task_id: int) -> None:
        self._admin.delete(f"/api/tasks/{task_id}/").raise_for_status()

    def predictions(self, task_id: int) -> list[Prediction]:
        task = self._admin.get(f"/api/tasks/{task_id}/").raise_for_status().json()
        return [
            Prediction(p["model_version"], p["result"][0]["value"]["choices"][0], p["score"])
            for p in task["predictions"]
        ]


@pytest.mark.real
class TestLabelStudio(AnnotationToolContract):
    @pytest.fixture
    def tool(self, label_studio) -> Iterator[LabelStudioTool]:
        settings = LabelStudioSettings(url=label_studio.url, api_key=label_studio.token)
        tool = LabelStudioTool(settings, LABELS, f"contract-{secrets.token_hex(4)}")
        yield tool
        tool.close()

    @pytest.fixture
    def people(self, label_studio, tool: LabelStudioTool) -> Iterator[_LabelStudioPeople]:
        account = create_annotator(label_studio.url, label_studio.token, "contract@example.org", "quite-long-pass-77")
        annotator = LabelStudioAnnotator(label_studio.url, account.api_key, tool.project_id, tool.schema)
        admin = httpx.Client(base_url=label_studio.url, headers={"Authorization": f"Token {label_studio.token}"})
        yield _LabelStudioPeople(annotator, admin)
        annotator.close()
        admin.close()

"""Another project, a server set up anew or a clock put back: no answer is taken back or lost for that."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from annotation.label_schema import LabelSchema
from annotation.label_studio import LabelStudioTool
from annotation.label_studio_accounts import LabelStudioAnnotator, create_annotator
from annotation.label_studio_api import LabelStudioSettings
from hardloop.core.errors import Conflict
from hardloop.core.records import TaskDraft
from hardloop.service import steps
from hardloop.service.embedded import LabelStudioEndpoint
from hardloop.service.jobs import Jobs, _call
from hardloop.service.schedule import LIST_S, Attention, Due, asked, due
from hardloop.service.work import VANISHED
from tests.fakes.annotation_tool import InMemoryAnnotationTool
from tests.fakes.loops import LABELS, FakeLoop, fake_loop
from tests.service.scenes import give, round_of_labels


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path, mine="manual", review="automatic")
    give(world, "pool", 6, np.random.default_rng(0))
    yield world
    world.capture.close()


def labels(world: FakeLoop) -> dict[str, str | None]:
    return {row["sample_id"]: row["label"] for row in world.loop.work.labels()}


def moved_to(world: FakeLoop, tool: InMemoryAnnotationTool) -> FakeLoop:
    return replace(world, tool=tool, loop=replace(world.loop, tool=lambda: tool))


def quiet(*_: object) -> None:
    """Nobody watches."""


# ---------------------------------------------------------------- another project


def test_another_project_takes_back_no_answer_and_gets_no_task(world: FakeLoop) -> None:
    picked = round_of_labels(world, "round-1", 4)
    steps.mine(world.loop, "round-2", 4)
    before = labels(world)
    assert before == {sample: world.truth[sample] for sample in picked}
    cursor = world.loop.samples.cursor("annotations")
    other = InMemoryAnnotationTool(LABELS, project_id=2)
    elsewhere = moved_to(world, other)
    for step in (steps.collect, steps.send):
        with pytest.raises(Conflict, match=r"are in project 1 .* is project 2: set label_studio.project_id to 1 "):
            step(elsewhere.loop)
    assert labels(world) == before
    assert world.loop.samples.cursor("annotations") == cursor
    assert other.task_ids() == frozenset(), "nothing was sent there"
    assert steps.send(world.loop) == 4, "back in its own project it goes on"
    world.answer_all()
    assert steps.collect(world.loop)["labels"] == 4


def test_an_empty_server_with_the_same_project_number_takes_back_no_answer(world: FakeLoop) -> None:
    round_of_labels(world, "round-1", 6)
    steps.mine(world.loop, "round-2", 4)
    before = labels(world)
    anew = InMemoryAnnotationTool(LABELS, project_id=1)
    for step in (steps.collect, steps.send):
        with pytest.raises(Conflict, match="all 6 tasks are gone from project 1, as in a Label Studio that was set up"):
            step(moved_to(world, anew).loop)
    assert (labels(world), anew.task_ids()) == (before, frozenset())


def test_a_server_whose_numbers_mean_other_samples_overwrites_no_answer(world: FakeLoop) -> None:
    picked = round_of_labels(world, "round-1", 3)
    before = labels(world)
    answers = world.loop.work.annotations()
    anew = InMemoryAnnotationTool(LABELS, project_id=1)
    others = [s.sample_id for s in world.loop.samples.all() if s.sample_id not in picked]
    sent = anew.send([TaskDraft(sample, "s3://x/y.png", 1, "why", "s") for sample in others[:3]])
    assert set(sent.values()) == {1, 2, 3}
    for task in sent.values():
        anew.answer(task, "blue")
    with pytest.raises(Conflict, match="of project 1 is another's"):
        steps.collect(moved_to(world, anew).loop)
    assert (labels(world), world.loop.work.annotations()) == (before, answers)
    with pytest.raises(Conflict, match="task 2 of project 1 is another's"):
        world.loop.work.add_tasks(1, {others[0]: 2})
    assert len(world.loop.work.tasks()) == 3


def test_a_few_deleted_tasks_are_a_person_deleting(world: FakeLoop) -> None:
    picked = round_of_labels(world, "round-1", VANISHED - 1)
    for task in world.tool.task_ids():
        world.tool.delete_task(task)
    assert steps.collect(world.loop)["deleted_tasks"] == VANISHED - 1
    assert labels(world) == dict.fromkeys(picked)


def test_all_tasks_deleted_on_purpose_are_taken_back_when_a_person_says_so(world: FakeLoop) -> None:
    picked = round_of_labels(world, "round-1", VANISHED)
    for task in world.tool.task_ids():
        world.tool.delete_task(task)
    with pytest.raises(Conflict, match='collect once with "deleted": true'):
        steps.collect(world.loop)
    assert _call(world.loop, "collect", {"deleted": True}, "job", quiet)["deleted_tasks"] == VANISHED
    assert labels(world) == dict.fromkeys(picked)
    assert steps.collect(world.loop)["deleted_tasks"] == 0, "from then on as ever"


def test_a_project_given_up_lets_the_loop_go_on_in_another(world: FakeLoop) -> None:
    first = round_of_labels(world, "round-1", 4)
    other = InMemoryAnnotationTool(LABELS, project_id=2)
    other._task_numbers = iter(range(1, 100))  # the same numbers, as on another server
    other._answer_numbers = iter(range(100, 200))
    elsewhere = moved_to(world, other)
    assert steps.collect(elsewhere.loop, deleted=True)["deleted_tasks"] == 4
    second = round_of_labels(elsewhere, "round-2", 4)
    expected: dict[str, str | None] = {sample: world.truth[sample] for sample in second}
    assert labels(world) == {**dict.fromkeys(first), **expected}


@pytest.mark.real
def test_a_real_label_studio_that_answers_from_another_project_takes_back_no_answer(
    world: FakeLoop, label_studio: LabelStudioEndpoint
) -> None:
    settings = LabelStudioSettings(url=label_studio.url, api_key=SecretStr(label_studio.token))
    name = f"other-{secrets.token_hex(4)}"
    own, other = (LabelStudioTool(settings, LABELS, f"{name}-{place}") for place in ("own", "other"))
    home, away = (replace(world.loop, tool=lambda tool=tool: tool) for tool in (own, other))  # type: ignore[misc]
    account = create_annotator(label_studio.url, label_studio.token, f"{name}@example.org", "quite-long-pass-77")
    person = LabelStudioAnnotator(label_studio.url, account.api_key, own.project_id, own.schema)
    steps.mine(home, "round-1", VANISHED)
    assert steps.send(home) == VANISHED
    for task in own.task_ids():
        person.answer(task, "red")
    assert steps.collect(home)["labels"] == VANISHED
    where = f"project {own.project_id} of Label Studio, and what answers now is project {other.project_id}"
    for everything in (False, True):
        with pytest.raises(Conflict, match=where):
            steps.collect(away, everything)
    assert list(labels(world).values()) == ["red"] * VANISHED
    assert steps.collect(home, everything=True)["unchanged"] == VANISHED
    own._api.act(own.project_id, "delete_tasks", sorted(own.task_ids()))
    with pytest.raises(Conflict, match=f"all {VANISHED} tasks are gone from project {own.project_id}"):
        steps.collect(home)
    assert steps.collect(home, deleted=True)["deleted_tasks"] == VANISHED
    assert list(labels(world).values()) == [None] * VANISHED


# ---------------------------------------------------------------- a clock put back


def test_reading_everything_finds_what_the_cursor_passed_over(world: FakeLoop) -> None:
    steps.mine(world.loop, "round-1", 3)
    steps.send(world.loop)
    early, late, _ = sorted(world.tool.task_ids())
    world.tool.answer(late, "red")
    steps.collect(world.loop)
    world.tool.answer(early, "green")
    world.tool._tasks[early].moved = 0  # stamped before the cursor: the server's clock was put back
    assert steps.collect(world.loop)["new"] == 0
    assert _call(world.loop, "collect", {"everything": True}, "job", quiet)["new"] == 1
    assert sorted(label for label in labels(world).values() if label) == ["green", "red"]


def test_all_answers_are_read_at_the_start_and_once_a_day_until_it_succeeds(world: FakeLoop) -> None:
    steps.mine(world.loop, "round-1", 2)
    steps.send(world.loop)
    attention = Attention(listed_at=0.0, swept_at=0.0)
    full, usual = Due(("collect",), {"everything": True}), Due(("collect",))
    assert due(world.loop, attention, 0.0, 30.0) == [full]
    asked(attention, full, 0.0)
    assert due(world.loop, attention, 29.0, 30.0) == [], "at the usual pace, though it may have failed"
    assert due(world.loop, attention, 30.0, 30.0) == [full]
    attention.reread_at = 31.0
    assert due(world.loop, attention, 60.0, 30.0) == [usual]
    attention.listed_at = attention.swept_at = attention.collected_at = LIST_S
    assert due(world.loop, attention, LIST_S + 30.5, 30.0) == [usual]
    assert due(world.loop, attention, LIST_S + 31.0, 30.0) == [full]


def test_a_full_reading_counts_as_done_when_it_has_succeeded(world: FakeLoop) -> None:
    round_of_labels(world, "round-1", VANISHED)
    jobs = object.__new__(Jobs)  # without DBOS, of which there is one per process
    jobs.loops, jobs.errors, jobs.progress = {"colours": world.loop}, {"colours": {}}, {}
    jobs.attention = {"colours": Attention()}
    tasks = dict(world.tool._tasks)
    world.tool._tasks.clear()
    with pytest.raises(Conflict):
        jobs.run_step("colours", "collect", {"everything": True}, "job")
    assert jobs.attention["colours"].reread_at == float("-inf")
    world.tool._tasks.update(tasks)
    jobs.run_step("colours", "collect", {}, "job")
    assert jobs.attention["colours"].reread_at == float("-inf"), "only what is new was read"
    jobs.run_step("colours", "collect", {"everything": True}, "job")
    assert jobs.attention["colours"].reread_at > 0


class _Rows:
    """The calls of `LabelStudioApi` that reading changes makes, over rows whose times a test chooses."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, number: int, at: str) -> None:
        self.rows.append({"id": number, "data": {"sample_id": f"{number:032x}"}, "updated_at": at, "annotations": []})

    def newest_update(self, _project: int) -> str:
        return max((str(row["updated_at"]) for row in self.rows), default="")

    def tasks(self, _project: int, filters: list[dict[str, str]], *_: object, **__: object) -> list[dict[str, object]]:
        since = filters[0]["value"] if filters else ""
        return [row for row in self.rows if str(row["updated_at"]) >= since]


def test_the_adapter_reads_what_a_clock_put_back_hid_from_an_empty_cursor() -> None:
    rows = _Rows()
    tool = object.__new__(LabelStudioTool)
    tool._api, tool._project_id, tool._names, tool._schema = rows, 1, {}, LabelSchema(LABELS)  # type: ignore[assignment]
    rows.add(1, "2026-11-23T10:00:00.000000Z")
    cursor = tool.changes("").cursor
    rows.add(2, "2026-11-23T09:58:00.000000Z")  # the clock was two minutes fast and was put right
    assert [task.task_id for task in tool.changes(cursor).tasks] == [1]
    assert {task.task_id for task in tool.changes("").tasks} == {1, 2}
    rows.rows.pop(0)
    assert tool.changes("").cursor == "2026-11-23T09:58:00.000000Z", "and the reading position goes back with it"

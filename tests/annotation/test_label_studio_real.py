"""The real Label Studio at its worst: killed senders, lost replies, racing processes, annotators at work meanwhile."""

import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr

from annotation.label_schema import LabelSchema, label_config
from annotation.label_studio import LabelStudioTool
from annotation.label_studio_accounts import LabelStudioAnnotator, create_annotator
from annotation.label_studio_api import ImageStorage, LabelStudioSettings
from annotation.label_studio_project import mark
from annotation.webhooks import SECRET_HEADER, parse_hint
from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.core.errors import BadInput, BadSettings, Forbidden, Missing, Unavailable
from hardloop.core.ids import image_key, sample_id
from hardloop.core.records import Prediction, TaskDraft
from hardloop.service.embedded import EmbeddedServices, Service, label_studio_server
from tests.annotation.wire import listener, proxy

pytestmark = pytest.mark.real

LABELS = ("T-shirt & <top>", 'the "other" one', "ängström €5")
PASSWORD = "quite-long-pass-77"


@pytest.fixture
def loop() -> str:
    return f"real-{secrets.token_hex(4)}"


@pytest.fixture
def make_tool(label_studio, loop: str) -> Iterator[Callable[..., LabelStudioTool]]:
    made: list[LabelStudioTool] = []

    def make(labels: tuple[str, ...] = LABELS, settle_s: float = 10.0, **settings: object) -> LabelStudioTool:
        given = {"url": label_studio.url, "api_key": label_studio.token, **settings}
        made.append(LabelStudioTool(LabelStudioSettings.model_validate(given), labels, loop, settle_s=settle_s))
        return made[-1]

    yield make
    for tool in made:
        tool.close()


@pytest.fixture
def admin(label_studio) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=label_studio.url, headers={"Authorization": f"Token {label_studio.token}"}, timeout=30
    ) as client:
        yield client


def annotator(label_studio, tool: LabelStudioTool, name: str = "real") -> LabelStudioAnnotator:
    account = create_annotator(label_studio.url, label_studio.token, f"{name}@example.org", PASSWORD)
    return LabelStudioAnnotator(label_studio.url, account.api_key, tool.project_id, tool.schema)


def drafts(count: int, *, version: str | None = "1", start: int = 0) -> list[TaskDraft]:
    return [
        TaskDraft(
            sample_id=f"{n:032x}",
            image_uri=f"s3://bucket/{n}.png",
            rank=n + 1,
            reason=f"unsure <b>between</b> two & more, number {n}",
            selection_id="selection-1",
            prediction=Prediction(version, LABELS[n % 3], (n % 100) / 100) if version else None,
        )
        for n in range(start, start + count)
    ]


def holdings(admin: httpx.Client, project_id: int) -> list[dict]:
    """Every task of the project with its predictions and annotations, read by another way than the tool's."""
    query = {"project": project_id, "page_size": 5000, "fields": "all", "resolve_uri": "false"}
    return admin.get("/api/tasks", params=query).raise_for_status().json()["tasks"]


def assert_whole(admin: httpx.Client, tool: LabelStudioTool, count: int, version: str = "1") -> None:
    """One task per sample, one prediction per task, and that the right one."""
    tasks = holdings(admin, tool.project_id)
    assert Counter(t["data"]["sample_id"] for t in tasks) == Counter(f"{n:032x}" for n in range(count))
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == version
        assert prediction["result"][0]["value"]["choices"] == [LABELS[int(task["data"]["sample_id"], 16) % 3]]


# ---------------------------------------------------------------- the project


def test_a_loop_finds_its_project_again_and_other_loops_get_others(make_tool, loop, label_studio, admin) -> None:
    first = make_tool()
    assert make_tool().project_id == first.project_id
    project = admin.get(f"/api/projects/{first.project_id}/").json()
    assert mark(loop) in project["description"]
    admin.patch(f"/api/projects/{first.project_id}/", json={"title": "renamed by somebody"}).raise_for_status()
    assert make_tool().project_id == first.project_id
    settings = LabelStudioSettings(url=label_studio.url, api_key=label_studio.token)
    other = LabelStudioTool(settings, LABELS, f"{loop}-x")
    assert other.project_id != first.project_id


def test_processes_that_start_together_end_in_one_project(make_tool, loop, admin) -> None:
    with ThreadPoolExecutor(4) as pool:
        tools = [future.result() for future in [pool.submit(make_tool) for _ in range(4)]]
    assert len({tool.project_id for tool in tools}) == 1
    projects = admin.get("/api/projects/", params={"page_size": 1000}).json()["results"]
    assert len([p for p in projects if mark(loop) in (p["description"] or "")]) == 1


def test_a_new_label_is_added_to_our_project_and_what_people_changed_in_it_stays(make_tool, admin) -> None:
    tool = make_tool(LABELS[:2])
    own = label_config(tool.schema).replace('showInline="true"', 'showInline="false"')
    admin.patch(f"/api/projects/{tool.project_id}/", json={"label_config": own}).raise_for_status()
    make_tool(LABELS[:2])
    assert admin.get(f"/api/projects/{tool.project_id}/").json()["label_config"] == own
    wider = make_tool(LABELS)
    assert wider.project_id == tool.project_id
    assert wider.send(drafts(3)).keys() == {f"{n:032x}" for n in range(3)}
    offered = admin.get(f"/api/projects/{tool.project_id}/").json()["parsed_label_config"]["label"]["labels"]
    assert tuple(offered) == LABELS


def test_a_project_given_by_number_is_used_under_its_own_names_and_left_as_it_is(make_tool, admin, label_studio):
    config = label_config(LabelSchema(LABELS, control="answer", image="photo", image_field="picture"))
    made = admin.post("/api/projects/", json={"title": "given", "label_config": config}).json()
    tool = make_tool(project_id=made["id"])
    ids = tool.send(drafts(2))
    with_names = annotator(label_studio, tool)
    with_names.answer(ids[f"{0:032x}"], LABELS[2])
    (state,) = [s for s in tool.changes("").tasks if s.annotations]
    assert state.annotations[0].label == LABELS[2]
    after = admin.get(f"/api/projects/{made['id']}/").json()
    assert (after["label_config"], after["description"]) == (config, made["description"])
    assert holdings(admin, made["id"])[0]["data"]["picture"].startswith("s3://")


def test_a_given_project_that_does_not_fit_is_refused_with_everything_that_is_wrong(make_tool, admin) -> None:
    config = (
        '<View><Text name="text" value="$text"/><Choices name="c" toName="text" choice="multiple">'
        '<Choice value="x"/></Choices></View>'
    )
    made = admin.post("/api/projects/", json={"title": "misfit", "label_config": config}).json()
    with pytest.raises(BadSettings, match=r"0 Image tags.*\(text\).*project_id") as refusal:
        make_tool(project_id=made["id"])
    assert str(made["id"]) in str(refusal.value)
    with pytest.raises(Missing, match="999999"):
        make_tool(project_id=999_999)


def test_a_deleted_project_is_missing_and_a_restart_makes_a_new_one(make_tool, admin) -> None:
    tool = make_tool()
    tool.send(drafts(1))
    admin.delete(f"/api/projects/{tool.project_id}/").raise_for_status()
    for call in (lambda: tool.send(drafts(2)), lambda: tool.changes(""), tool.task_ids):
        with pytest.raises(Missing, match="deleted"):
            call()
    assert make_tool().project_id != tool.project_id


# ---------------------------------------------------------------- tokens and servers


def test_a_personal_access_token_works_and_survives_the_loss_of_its_access_token(make_tool, admin) -> None:
    personal = admin.post("/api/token/").raise_for_status().json()["token"]
    tool = make_tool(api_key=personal)
    ids = tool.send(drafts(2))
    auth = tool._api._http.auth
    auth._access = "expired.access.token"
    assert tool.task_ids() == set(ids.values())
    assert auth._access != "expired.access.token"


def test_wrong_tokens_of_both_kinds_are_told_as_such(make_tool) -> None:
    with pytest.raises(BadSettings, match="refused the token"):
        make_tool(api_key="0" * 40)
    with pytest.raises(BadSettings, match="personal access token"):
        make_tool(api_key="eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQwMDAwMDAwMDB9.c2lnbmF0dXJl")


def test_an_absent_server_is_unavailable_and_names_its_address() -> None:
    settings = LabelStudioSettings(url="http://127.0.0.1:9", api_key="0" * 40)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9.*Is it running"):
        LabelStudioTool(settings, LABELS, "absent")


def test_a_busy_server_is_asked_again(make_tool, label_studio) -> None:
    with proxy(label_studio.url) as wire:
        tool = make_tool(url=wire.url)
        left = iter(range(2))
        wire.fault = lambda method, path: "503" if method == "GET" and next(left, None) is not None else "pass"
        assert tool.task_ids() == frozenset()


# ---------------------------------------------------------------- sending survives


def test_a_reply_lost_after_an_import_doubles_nothing(make_tool, label_studio, admin) -> None:
    with proxy(label_studio.url) as wire:
        tool = make_tool(url=wire.url)
        wire.fault = lambda method, path: "lose reply" if method == "POST" and "import" in path else "pass"
        ids = tool.send(drafts(30))
        assert len(ids) == 30
        assert wire.count("POST", f"/api/projects/{tool.project_id}/import") >= 2  # tasks once, predictions at least
        assert [p for m, p in wire.seen if m == "POST"].count(f"/api/projects/{tool.project_id}/import") == 1
    assert_whole(admin, tool, 30)


def test_an_import_that_never_arrives_is_unavailable_and_the_next_send_completes_it(
    make_tool, label_studio, admin
) -> None:
    with proxy(label_studio.url) as wire:
        tool = make_tool(url=wire.url, settle_s=1.0)
        wire.fault = lambda method, path: "lose request" if method == "POST" and "import" in path else "pass"
        with pytest.raises(Unavailable, match="of 5 tasks imported, 0 are"):
            tool.send(drafts(5))
        wire.fault = lambda method, path: "pass"
        tool.send(drafts(5))
    assert_whole(admin, tool, 5)


SENDER = """
import sys
from annotation.label_studio import LabelStudioTool
from annotation.label_studio_api import LabelStudioSettings
from tests.annotation.test_label_studio_real import LABELS, drafts
url, token, loop = sys.argv[1:]
tool = LabelStudioTool(LabelStudioSettings(url=url, api_key=token), LABELS, loop)
tool.send(drafts(40))
"""


@pytest.mark.parametrize(
    ("step", "when"),
    [("/import", "lose reply"), ("/import/predictions", "lose request"), ("/import/predictions", "lose reply")],
    ids=["after the tasks were made", "before the predictions", "after the predictions"],
)
def test_a_sender_killed_in_the_middle_and_started_again_doubles_and_loses_nothing(
    make_tool, label_studio, admin, loop, step, when
) -> None:
    tool = make_tool()
    reached, dead = threading.Event(), threading.Event()

    def fault(method: str, path: str) -> str:
        if method != "POST" or not path.endswith(step) or dead.is_set():
            return "pass"
        reached.set()
        if when == "lose request":
            dead.wait(30)
        return when

    with proxy(label_studio.url) as wire:
        wire.fault = fault
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-c", SENDER, wire.url, label_studio.token, loop]
        sender = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": root})
        assert reached.wait(60)
        sender.kill()
        assert sender.wait(30) == -signal.SIGKILL
        dead.set()
    time.sleep(2.0)  # let the server finish what the dead sender had asked for
    ids = make_tool().send(drafts(40))
    assert len(ids) == 40
    assert_whole(admin, tool, 40)


def test_senders_that_race_settle_on_one_task_per_sample(make_tool, admin) -> None:
    tools = [make_tool() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda tool: tool.send(drafts(40, version=None)), tools))
    settled = tools[0].send(drafts(40, version=None))
    tasks = holdings(admin, tools[0].project_id)
    assert Counter(t["data"]["sample_id"] for t in tasks) == Counter(f"{n:032x}" for n in range(40))
    assert {t["id"] for t in tasks} == set(settled.values())


def test_of_doubled_tasks_the_one_somebody_answered_is_kept(make_tool, admin, label_studio) -> None:
    tool = make_tool()
    first = tool.send(drafts(1))[f"{0:032x}"]
    copy = holdings(admin, tool.project_id)[0]["data"]
    answer = admin.post(
        f"/api/projects/{tool.project_id}/import", params={"return_task_ids": "true"}, json=[{"data": copy}]
    )
    (second,) = answer.json()["task_ids"]
    annotator(label_studio, tool).answer(second, LABELS[0])
    assert tool.send(drafts(1)) == {f"{0:032x}": second}
    assert tool.task_ids() == {second}
    assert first != second


def test_sending_while_four_people_annotate_loses_nothing(make_tool, label_studio, admin) -> None:
    tool = make_tool()
    tool.send(drafts(40))
    people = [annotator(label_studio, tool, f"busy{n}") for n in range(4)]
    stop = threading.Event()
    given: list[dict[int, str]] = [{} for _ in people]

    def work(number: int) -> None:
        person, mine = people[number], given[number]
        while not stop.is_set():
            task = person.next_task()
            if task is None:
                time.sleep(0.05)
                continue
            label = LABELS[task.task_id % 3]
            if person.answer(task.task_id, label) is not None:
                mine[task.task_id] = label

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        cursor, seen = "", {}
        for part in range(5):
            tool.send(drafts(40, start=40 * part))
            tool.send(drafts(40 * (part + 1)))
            changes = tool.changes(cursor)
            seen |= {state.task_id: state for state in changes.tasks}
            cursor = changes.cursor
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    seen |= {state.task_id: state for state in tool.changes(cursor).tasks}
    assert_whole(admin, tool, 200)
    answered = {(number, task) for number, mine in enumerate(given) for task in mine}
    assert len(answered) >= 20, "the annotators hardly worked; the test says nothing"
    by_cursor = {(a.annotator, t, a.label) for t, s in seen.items() for a in s.annotations}
    assert by_cursor == {
        (f"busy{n}@example.org", t, label) for n, mine in enumerate(given) for t, label in mine.items()
    }
    by_server = sum(len(t["annotations"]) for t in holdings(admin, tool.project_id))
    assert by_server == len(answered)


def test_sending_a_hundred_to_a_project_of_ten_thousand_stays_fast(make_tool) -> None:
    tool = make_tool()
    tool._api.import_tasks(tool.project_id, [tool._data(draft) for draft in drafts(10_000, version=None)])
    started = time.monotonic()
    assert len(tool.send(drafts(100, version=None, start=5_000))) == 100
    assert len(tool.send(drafts(100, version=None, start=10_000))) == 100
    assert time.monotonic() - started < 20.0  # 1.5 s alone; the bound is for a busy machine
    assert len(tool.task_ids()) == 10_100


# ---------------------------------------------------------------- predictions


def test_predictions_of_a_doubled_or_foreign_version_are_cleared_and_the_project_names_the_new_one(
    make_tool, admin
) -> None:
    tool = make_tool()
    ids = tool.send(drafts(3))
    task = ids[f"{0:032x}"]
    row = {"task": task, "result": tool.schema.result(LABELS[1]), "score": 0.3, "model_version": "1"}
    admin.post(f"/api/projects/{tool.project_id}/import/predictions", json=[row, row]).raise_for_status()
    tool.predict({number: Prediction("2", LABELS[1], 0.25) for number in ids.values()})
    for held in holdings(admin, tool.project_id):
        assert [(p["model_version"], p["score"]) for p in held["predictions"]] == [("2", 0.25)]
    assert admin.get(f"/api/projects/{tool.project_id}/").json()["model_version"] == "2"


# ---------------------------------------------------------------- reading


def test_tasks_that_are_not_ours_and_answers_that_make_no_sense_do_no_harm(make_tool, admin) -> None:
    tool = make_tool()
    task = tool.send(drafts(1))[f"{0:032x}"]
    foreign = {"image": "https://example.org/x.png", "rank": 1, "reason": "not ours"}
    admin.post(f"/api/projects/{tool.project_id}/import", json=[{"data": foreign}]).raise_for_status()
    choice = tool.schema.result(LABELS[0])[0]
    nonsense = {
        "two parts": [choice, choice],
        "two labels": [{**choice, "value": {"choices": list(LABELS[:2])}}],
        "another control": [{**choice, "from_name": "elsewhere"}],
        "no choices": [{**choice, "value": {}}],
        "not text": [{**choice, "value": {"choices": [{"deep": [1, 2, 3]}]}}],
        "empty": [],
        "huge": [{**choice, "value": {"choices": ["x" * 200_000]}}],
    }
    for result in nonsense.values():
        admin.post(f"/api/tasks/{task}/annotations/", json={"result": result}).raise_for_status()
    (state,) = tool.changes("").tasks
    assert state.annotations == ()
    assert len(state.refused) == len(nonsense)
    assert all(len(refused.reason) < 300 for refused in state.refused)
    assert len(tool.task_ids()) == 2


def test_an_answer_carries_who_gave_it_how_long_it_took_and_where_it_came_from(make_tool, label_studio, admin) -> None:
    tool = make_tool()
    task = tool.send(drafts(1))[f"{0:032x}"]
    result = [{**tool.schema.result(LABELS[2])[0], "origin": "prediction-changed"}]
    admin.post(f"/api/tasks/{task}/annotations/", json={"result": result, "lead_time": 3.25}).raise_for_status()
    (state,) = tool.changes("").tasks
    (answer,) = state.annotations
    assert (answer.annotator, answer.lead_time_s, answer.origin) == (label_studio.username, 3.25, "prediction-changed")
    assert (answer.label, answer.skipped) == (LABELS[2], False)


# ---------------------------------------------------------------- accounts


def test_an_account_is_made_once_and_its_password_is_checked(label_studio) -> None:
    email = f"new-{secrets.token_hex(4)}@example.org"
    first = create_annotator(label_studio.url, label_studio.token, email, PASSWORD)
    assert create_annotator(label_studio.url, label_studio.token, email, PASSWORD) == first
    assert first.email == email
    with pytest.raises(BadSettings, match="not with this password"):
        create_annotator(label_studio.url, label_studio.token, email, PASSWORD + "x")
    with pytest.raises(BadInput, match=r"valid email|did not make"):
        create_annotator(label_studio.url, label_studio.token, "not an address", PASSWORD)
    with pytest.raises(BadSettings, match="401"):
        create_annotator(label_studio.url, "0" * 40, f"x-{email}", PASSWORD)


@pytest.mark.slow
def test_without_legacy_tokens_an_account_gets_a_personal_one_each_time(tmp_path) -> None:
    with EmbeddedServices(tmp_path) as services:
        endpoint = services.start([Service.LABEL_STUDIO]).label_studio
        assert endpoint is not None
        with httpx.Client(base_url=endpoint.url, headers={"Authorization": f"Token {endpoint.token}"}) as admin:
            personal = admin.post("/api/token/").raise_for_status().json()["token"]
            off = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
            admin.post("/api/jwt/settings", json=off).raise_for_status()
        with pytest.raises(BadSettings, match="refused the token"):
            LabelStudioTool(LabelStudioSettings(url=endpoint.url, api_key=endpoint.token), LABELS, "legacy")
        tool = LabelStudioTool(LabelStudioSettings(url=endpoint.url, api_key=personal), LABELS, "legacy")
        (task,) = tool.send(drafts(1)).values()
        first = create_annotator(endpoint.url, personal, "new@example.org", PASSWORD)
        second = create_annotator(endpoint.url, personal, "new@example.org", PASSWORD)
        assert first.user_id == second.user_id
        assert first.api_key != second.api_key
        person = LabelStudioAnnotator(endpoint.url, second.api_key, tool.project_id, tool.schema)
        assert person.answer(task, LABELS[0]) is not None
        (state,) = tool.changes("").tasks
        assert state.annotations[0].annotator == "new@example.org"


def test_answering_a_deleted_task_is_missing_and_repeating_an_answer_has_no_effect(
    make_tool, label_studio, admin
) -> None:
    tool = make_tool()
    first, second = sorted(tool.send(drafts(2)).values())
    person = annotator(label_studio, tool)
    assert person.answer(first, LABELS[0]) is not None
    assert person.answer(first, LABELS[0]) is None
    admin.delete(f"/api/tasks/{second}/").raise_for_status()
    with pytest.raises(Missing, match="deleted"):
        person.answer(second, LABELS[0])
    assert person.next_task() is None


# ---------------------------------------------------------------- images and webhooks


@pytest.fixture
def picture(s3: S3Settings) -> SimpleNamespace:
    out = io.BytesIO()
    Image.new("RGB", (32, 24), "orange").save(out, format="PNG")
    blobs, sample = S3Blobs(s3), sample_id(out.getvalue())
    blobs.put(image_key(sample, "png"), out.getvalue(), "image/png")
    storage = ImageStorage(url=s3.url, bucket=s3.bucket, access_key=s3.access_key, secret_key=s3.secret_key)
    return SimpleNamespace(data=out.getvalue(), sample=sample, uri=blobs.uri(image_key(sample, "png")), storage=storage)


def test_an_image_in_our_bucket_is_served_to_annotators_and_the_storage_is_there_once(
    make_tool, label_studio, admin, picture
) -> None:
    make_tool(storage=picture.storage)
    tool = make_tool(storage=picture.storage)
    ids = tool.send([TaskDraft(picture.sample, picture.uri, 1, "why", "selection-1")])
    assert annotator(label_studio, tool).image(ids[picture.sample]) == picture.data
    (storage,) = admin.get("/api/storages/s3/", params={"project": tool.project_id}).json()
    assert (storage["presign"], storage["bucket"]) == (False, picture.storage.bucket)


def test_a_bucket_out_of_reach_or_wrong_keys_are_told_as_such(make_tool, picture) -> None:
    make_tool()
    for change in ({"bucket": "no-such-bucket"}, {"url": "http://127.0.0.1:9"}, {"secret_key": SecretStr("wrong")}):
        with pytest.raises(BadSettings, match="bucket"):
            make_tool(storage=picture.storage.model_copy(update=change))


def test_webhooks_arrive_with_the_secret_and_name_what_moved(make_tool, label_studio, admin) -> None:
    tool = make_tool()
    with listener() as ear:
        assert tool.ensure_webhook("http://127.0.0.1:9/old", "old").registered
        for _ in range(2):
            assert tool.ensure_webhook(f"{ear.url}/hook", "s3cret").registered
        assert len(admin.get("/api/webhooks/", params={"project": tool.project_id}).json()) == 1
        task = tool.send(drafts(1))[f"{0:032x}"]
        person = annotator(label_studio, tool)
        number = person.answer(task, LABELS[0])
        assert number is not None
        person.change(number, LABELS[1])
        person.delete(number)
        person.skip(task)
        deadline = time.monotonic() + 20
        while len(ear.calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    hints = [parse_hint(headers, body, "s3cret") for headers, body in ear.calls]
    assert [h.action for h in hints] == [
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "ANNOTATION_CREATED",
    ]
    assert all(h.relevant and h.project_id == tool.project_id for h in hints)
    assert [h.annotation_ids[0] for h in hints[:3]] == [number] * 3
    assert hints[0].task_ids == (task,)
    headers, body = ear.calls[0]
    assert headers[SECRET_HEADER] == "s3cret"
    with pytest.raises(Forbidden):
        parse_hint(headers, body, "another secret")


@pytest.mark.slow
def test_a_server_that_refuses_our_address_is_polled_instead(monkeypatch, tmp_path) -> None:
    """Users' servers protect themselves against requests into their own network; the embedded one does not, so this
    test starts one that does."""
    plain = label_studio_server.environment

    def protected(folder: Path, **variables: str) -> dict[str, str]:
        return {**plain(folder, **variables), "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "true"}

    monkeypatch.setattr(label_studio_server, "environment", protected)
    with EmbeddedServices(tmp_path) as services:
        endpoint = services.start([Service.LABEL_STUDIO]).label_studio
        assert endpoint is not None
        tool = LabelStudioTool(LabelStudioSettings(url=endpoint.url, api_key=endpoint.token), LABELS, "protected")
        status = tool.ensure_webhook("http://127.0.0.1:9/hook", "s3cret")
        assert not status.registered
        assert status.detail.startswith("refused: polling instead")
        ids = tool.send(drafts(2))
        with_admin = LabelStudioAnnotator(endpoint.url, endpoint.token, tool.project_id, tool.schema)
        with_admin.answer(ids[f"{0:032x}"], LABELS[0])
        (state,) = [state for state in tool.changes("").tasks if state.annotations]
        assert state.annotations[0].label == LABELS[0]

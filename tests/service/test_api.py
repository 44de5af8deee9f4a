"""The HTTP doors over loops in memory, on both databases: who may enter, what is answered, how mistakes are told."""

import asyncio
import io
import json
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image
from sqlalchemy.engine import Engine

from annotation.webhooks import MAX_BODY_BYTES, SECRET_HEADER
from hardloop.core import errors, ids, images
from hardloop.core.errors import HardloopError
from hardloop.core.records import Arm, Evaluation, Pick, Receipt, Selection
from hardloop.service import image_links, steps
from hardloop.service.api import STATUS, create_app, status_of
from hardloop.service.api_forms import MAX_FILES
from hardloop.service.database import connect, migrate
from hardloop.service.guard import MAX_BODY_BYTES as MAX_BODY_BYTES_OF_JSON
from hardloop.service.jobs import Jobs
from hardloop.service.work import Work
from tests.fakes.faulty_blobs import FaultyBlobs
from tests.fakes.loops import LABELS, FakeLoop, fake_loop, picture
from tests.service.scenes import first_model, give, produce, round_of_labels

TOKEN, SECRET = "the-token", "the-secret"
NAMES = ("colours", "colours-x")  # one name begins with the other's: nothing may confuse them


@dataclass
class Door:
    """The application, a client with the token, and the loops behind it."""

    app: FastAPI
    http: TestClient
    jobs: Jobs
    worlds: dict[str, FakeLoop]

    @property
    def world(self) -> FakeLoop:
        return self.worlds["colours"]

    def change(self, **parts: object) -> None:
        """Swap parts of the loop `colours`."""
        loop = replace(self.world.loop, **parts)  # type: ignore[arg-type]
        self.worlds["colours"] = replace(self.world, loop=loop)
        self.jobs.loops["colours"] = loop  # type: ignore[index]

    def get(self, path: str) -> Any:
        """GET below the loop `colours`; the JSON, checked to be JSON as the standard has it."""
        answer = self.http.get(f"/api/v1/loops/colours{path}")
        assert answer.status_code == 200, answer.text
        return strict(answer)

    def post(self, path: str, body: object = None, **more: Any) -> Response:
        return self.http.post(f"/api/v1/loops/colours{path}", **({"json": body} if body is not None else {}), **more)

    def upload(self, *files: bytes, **fields: str) -> Response:
        parts = [("files", (f"{number}.png", data)) for number, data in enumerate(files)]
        return self.http.post("/api/v1/loops/colours/images", files=parts, data=fields)


def strict(answer: Response) -> Any:
    """The JSON of an answer; NaN and Infinity, which are none, fail."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(answer.text, parse_constant=refuse)


def problem(answer: Response, status: int, title: str, *words: str) -> None:
    """Check an RFC 9457 answer: status, title, and words its detail must have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = strict(answer)
    assert (body["type"], body["title"], body["status"]) == ("about:blank", title, status)
    for word in words:
        assert word in body["detail"]
    assert "Traceback" not in answer.text


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Running jobs; each test brings loops of its own."""
    folder = tmp_path_factory.mktemp("jobs")
    engine = connect(f"sqlite:///{folder / 'unused.db'}")
    migrate(engine)
    loops = {name: fake_loop(engine, folder / name, name).loop for name in NAMES}
    jobs = Jobs(loops, f"sqlite:///{folder / 'jobs.db'}", tick_s=3600, poll_s=3600)
    jobs.start()
    yield jobs
    jobs.stop()
    engine.dispose()


@pytest.fixture
def door(jobs: Jobs, engine: Engine, tmp_path: Path) -> Iterator[Door]:
    worlds = {name: fake_loop(engine, tmp_path / name, name) for name in NAMES}
    for name, world in worlds.items():
        jobs.loops[name] = world.loop  # type: ignore[index]
        jobs.errors[name].clear()
        jobs.attention[name].hinted = False
    app = create_app(jobs, TOKEN, SECRET)
    http = TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}, raise_server_exceptions=False)
    yield Door(app, http, jobs, worlds)
    for world in worlds.values():
        world.capture.close()


def routes(app: FastAPI, prefix: str = "/api/") -> list[tuple[str, str]]:
    """(method, path) of every route below a prefix, with names filled in."""
    fill = {"{sample_id}": "0" * 32, "{job_id}": "none"}
    found = []
    for path, methods in app.openapi()["paths"].items():
        for name, value in fill.items():
            path = path.replace(name, value)
        found += [(method.upper(), path) for method in methods if path.startswith(prefix)]
    assert len(found) > 15
    return found


BODIES: dict[str, dict[str, object]] = {
    "/jobs": {"steps": ["collect"]},
    "/approve": {},
    "/reject": {},
    "/rollback": {"reason": "a test"},
    "/withdraw": {"sample_ids": ["0" * 32], "reason": "a test"},
}


def call(http: TestClient, method: str, path: str, **more: Any) -> Response:
    """A request that is right in form, whatever the route."""
    if path.endswith("/images"):
        return http.request(method, path, files=[("files", ("a.png", b"x"))], **more)
    if path.endswith("/compare"):
        more["params"] = {"before": "1", "after": "1"}
    body = next((body for end, body in BODIES.items() if path.endswith(end) and method == "POST"), None)
    return http.request(method, path, json=body, **more)


# ---------------------------------------------------------------- who may enter


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer wrong", "Bearer", TOKEN, f"Basic {TOKEN}", "Bearer th\xe9-token"]
)
def test_no_path_below_api_answers_without_the_token(door: Door, authorization: str | None) -> None:
    stranger = TestClient(door.app, raise_server_exceptions=False)
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    for method, path in routes(door.app):
        answer = call(stranger, method, path.replace("{loop}", "colours"), headers=headers)
        problem(answer, 403, "Forbidden", "Authorization: Bearer TOKEN")


class Upload:
    """A form of one file sent in pieces, straight to the application: how many pieces it asked for, what it said."""

    def __init__(self, app: FastAPI, pieces: int, *headers: tuple[bytes, bytes]) -> None:
        self.asked, self.status, self.answer = 0, 0, b""
        self._head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        self._pieces = pieces
        scope = {
            "type": "http", "method": "POST", "path": "/api/v1/loops/colours/images", "query_string": b"",
            "headers": [(b"content-type", b"multipart/form-data; boundary=x"), *headers],
        }  # fmt: skip
        asyncio.run(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, object]:
        self.asked += 1
        last = self.asked >= self._pieces
        body = self._head if self.asked == 1 else b"\r\n--x--\r\n" if last else b"p" * 1_000_000
        return {"type": "http.request", "body": body, "more_body": not last}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.answer += message.get("body", b"")


@pytest.mark.parametrize("headers", [(), ((b"authorization", b"Bearer wrong"),)])
def test_nothing_of_a_strangers_body_is_read(door: Door, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    upload = Upload(door.app, 50, *headers)
    assert (upload.status, upload.asked) == (403, 0)
    assert json.loads(upload.answer)["title"] == "Forbidden"


def test_a_body_larger_than_accepted_is_not_read_to_its_end(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.app.user_middleware[0], "kwargs", {"token": TOKEN, "max_form_bytes": 5_000_000})
    token = (b"authorization", f"Bearer {TOKEN}".encode())
    counted = Upload(door.app, 50, token)
    assert (counted.status, counted.asked) == (413, 6), "the head, four pieces that fit and the one that does not"
    assert "larger than the 5,000,000 bytes accepted" in json.loads(counted.answer)["detail"]
    told = Upload(door.app, 50, token, (b"content-length", b"5000001"))
    assert (told.status, told.asked) == (413, 0)
    assert Upload(door.app, 4, token).status == 201, "what fits is read; the image itself is refused by name"


def test_a_body_that_is_no_form_may_be_smaller_still(door: Door) -> None:
    body = json.dumps({"sample_ids": ["0" * 32] * (MAX_BODY_BYTES_OF_JSON // 32)})
    answer = door.post("/queue/approve", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "16,777,216 bytes" in strict(answer)["detail"]


def test_a_loop_that_is_not_there_is_named_by_every_path(door: Door) -> None:
    for method, path in routes(door.app):
        if "{loop}" in path:
            answer = call(door.http, method, path.replace("{loop}", "shoes"))
            problem(answer, 404, "Missing", "no loop 'shoes': there are colours, colours-x")


def test_health_needs_no_token_and_says_no_secret(door: Door) -> None:
    stranger = TestClient(door.app)
    assert stranger.get("/healthz").json()["status"] == "ok"
    assert strict(stranger.get("/readyz")) == {"status": "ok", "errors": {}}
    door.jobs.errors["colours"]["send"] = "Label Studio does not answer"
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert strict(answer)["errors"] == {"colours": {"send": "Label Studio does not answer"}}
    door.jobs.errors["colours"].clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(door.jobs), "alive", False)
        answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert "nothing is scheduled" in strict(answer)["errors"]["service"]["schedule"]


# ---------------------------------------------------------------- how mistakes are told


def test_every_error_of_the_product_has_its_status_in_the_one_table() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HardloopError)]
    assert set(kinds) - {HardloopError} == set(STATUS)
    assert all(400 <= status_of(kind("x")) < 600 for kind in kinds), "a failure is never a 200"

    class OwnKind(errors.BadImage):
        """A subclass that the table does not know."""

    assert status_of(OwnKind("x")) == STATUS[errors.BadImage]
    assert status_of(HardloopError("x")) == 500


@pytest.mark.parametrize("kind", list(STATUS), ids=lambda kind: kind.__name__)
def test_each_error_of_a_step_is_answered_by_its_status_and_its_own_words(
    door: Door, kind: type[HardloopError]
) -> None:
    class Registry:
        def rollback(self, reason: str) -> None:
            raise kind("what was asked, what is there, what to do")

    door.change(registry=Registry())
    answer = door.post("/rollback", {"reason": "a test"})
    problem(answer, STATUS[kind], kind.__name__, "what was asked, what is there, what to do")


def test_paths_and_methods_that_do_not_exist_and_faults_of_ours_are_problems_too(door: Door) -> None:
    problem(door.http.get("/api/v1/nothing"), 404, "Not Found")
    problem(door.http.delete("/api/v1/loops"), 405, "Method Not Allowed")

    class Registry:
        def rollback(self, reason: str) -> None:
            raise RuntimeError("secret details of ours")

    door.change(registry=Registry())
    answer = door.post("/rollback", {"reason": "a test"})
    problem(answer, 500, "Internal Server Error", "see the service's log")
    assert "secret details" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/jobs", {"steps": []}, "body.steps"),
        ("/jobs", {"steps": ["ingest"], "bugdet": 5}, "body.bugdet"),
        ("/jobs", {"steps": ["mine"], "budget": 0}, "body.budget"),
        ("/jobs", {"steps": ["mine"], "budget": 100_001}, "body.budget"),
        ("/queue/approve", {"actor": ""}, "body.actor"),
        ("/queue/reject", {"sample_ids": "all"}, "body.sample_ids"),
        ("/queue/approve", {"actor": "nul\x00byte"}, "body.actor"),
        ("/rollback", {"reason": ""}, "body.reason"),
        ("/samples/withdraw", {"sample_ids": [], "reason": "a test"}, "body.sample_ids"),
        ("/samples/withdraw", {"sample_ids": ["0" * 32], "reason": ""}, "body.reason"),
        ("/rollback", {"reason": "nul\x00byte"}, "body.reason"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_and_the_field_named(
    door: Door, path: str, body: dict[str, object], words: str
) -> None:
    problem(door.post(path, body), 422, "BadRequest", words)


@pytest.mark.parametrize(
    "error",
    [
        sa.exc.OperationalError("SELECT secret_column", {"a": 1}, Exception("no server at db, password=hunter2")),
        sa.exc.TimeoutError("QueuePool limit of size 10 overflow 10 reached, password=hunter2"),
    ],
    ids=["gone", "all connections taken"],
)
def test_a_database_that_is_away_is_told_as_that_and_neither_sql_nor_password_is_shown(
    door: Door, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Work:
        def annotations(self) -> None:
            raise error

    door.change(work=Work())
    answer = door.http.get("/api/v1/loops/colours/annotations")
    problem(answer, 503, "Unavailable", "the database does not answer", "try again")
    assert "secret_column" not in answer.text + caplog.text
    assert "hunter2" not in answer.text
    assert "the database does not answer" in caplog.text, "whoever runs the service finds the cause in its log"


# ---------------------------------------------------------------- the webhook door


def hook(door: Door, body: bytes, secret: str | None = SECRET, loop: str = "colours") -> Response:
    headers = {} if secret is None else {SECRET_HEADER: secret}
    return TestClient(door.app, raise_server_exceptions=False).post(
        f"/webhooks/label-studio/{loop}", content=body, headers=headers
    )


def test_a_hint_with_the_secret_is_noted_and_makes_the_schedule_look(door: Door) -> None:
    answer = hook(door, json.dumps({"action": "ANNOTATION_CREATED", "annotation": {"id": 7}}).encode())
    assert (answer.status_code, answer.json()) == (202, {"noted": True})
    (row,) = door.get("/webhooks")
    assert (row["action"], row["annotation_ids"]) == ("ANNOTATION_CREATED", [7])
    assert door.jobs.attention["colours"].hinted
    assert not door.jobs.attention["colours-x"].hinted


@pytest.mark.parametrize(
    ("body", "secret", "status", "title"),
    [
        (b'{"action": "ANNOTATION_CREATED"}', None, 403, "Forbidden"),
        (b'{"action": "ANNOTATION_CREATED"}', "wrong", 403, "Forbidden"),
        (b'{"action": "ANNOTATION_CREATED"}', "", 403, "Forbidden"),
        (b"not JSON", None, 403, "Forbidden"),
        (b"not JSON", SECRET, 400, "BadInput"),
        (b"", SECRET, 400, "BadInput"),
        (b"[]", SECRET, 400, "BadInput"),
        (b'{"action": 7}', SECRET, 400, "BadInput"),
        (b"\xff\xfe\x00", SECRET, 400, "BadInput"),
        (b"[" * 100_000, SECRET, 400, "BadInput"),
        (b'{"action": "' + b"x" * MAX_BODY_BYTES + b'"}', SECRET, 400, "BadInput"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_a_webhook_that_is_not_label_studios_has_no_effect(
    door: Door, body: bytes, secret: str | None, status: int, title: str
) -> None:
    problem(hook(door, body, secret), status, title)
    assert door.get("/webhooks") == []
    assert not door.jobs.attention["colours"].hinted


def test_a_webhook_for_a_loop_that_is_gone_is_told_so(door: Door) -> None:
    problem(hook(door, b'{"action": "TASKS_DELETED"}', loop="shoes"), 404, "Missing", "no loop 'shoes'")
    problem(hook(door, b'{"action": "TASKS_DELETED"}', "wrong", loop="shoes"), 403, "Forbidden")


# ---------------------------------------------------------------- uploads


def test_images_are_taken_known_or_refused_by_name(door: Door) -> None:
    rng = np.random.default_rng(0)
    red, green = picture("red", rng), picture("green", rng)
    answer = door.upload(red, green, b"", source="archive")
    assert (answer.status_code, answer.json()) == (201, {"new": 2, "known": 0, "refused": 1})
    assert door.upload(red, red).json() == {"new": 0, "known": 2, "refused": 0}
    (refusal,) = door.get("/refusals")
    assert (refusal["kind"], refusal["reference"]) == ("image", "2.png")
    assert "zero bytes" in refusal["reason"]
    labelled = door.upload(picture("red", rng), picture("blue", rng), role="seed", labels='["red", "blue"]')
    assert labelled.json() == {"new": 2, "known": 0, "refused": 0}
    assert sorted(row["label"] for row in door.get("/labels")) == ["blue", "red"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"labels": "red"}, 400, "labels is not JSON"),
        ({"labels": "[" * 100_000}, 400, "labels is not JSON"),
        ({"labels": '["red"]', "role": "seed"}, 400, "labels must be a list of 2"),
        ({"labels": '{"a": "red"}', "role": "seed"}, 400, "labels must be a list of 2"),
        ({"labels": '["red", null]', "role": "seed"}, 400, "role 'seed' needs a label for every file"),
        ({"role": "legacy"}, 400, "role 'legacy' needs a label for every file"),
        ({"labels": '["red", null]'}, 400, "role 'seed' (to train on) or 'legacy'"),
        ({"labels": '["red", "purple"]', "role": "seed"}, 422, "label 'purple' is not one of the loop's"),
        ({"labels": '["red", 7]', "role": "seed"}, 400, "labels must be a list of 2, one text"),
        ({"role": "holdout"}, 422, "body.role"),
        ({"source": "x" * 201}, 422, "body.source"),
        ({"source": "nul\x00byte"}, 422, "body.source"),
    ],
)
def test_a_mistake_in_an_upload_refuses_all_of_it_and_names_the_mistake(
    door: Door, fields: dict[str, str], status: int, words: str
) -> None:
    rng = np.random.default_rng(1)
    answer = door.upload(picture("red", rng), picture("green", rng), **fields)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in strict(answer)["detail"]
    assert door.world.loop.samples.count() == {}
    assert door.get("/labels") == []


def test_more_files_than_are_taken_at_once_and_none_at_all_are_refused(door: Door) -> None:
    image = picture("red", np.random.default_rng(2))
    for files in ([image] * (MAX_FILES + 1), []):
        answer = door.upload(*files)
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "files" in strict(answer)["detail"]
    assert door.world.loop.samples.count() == {}


def test_an_image_over_the_size_limit_is_refused_by_name(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    out = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, format="PNG")
    small = picture("red", np.random.default_rng(4))
    assert len(small) < 1000
    assert door.upload(out.getvalue(), small).json() == {"new": 1, "known": 0, "refused": 1}
    (refusal,) = door.get("/refusals")
    assert refusal["reference"] == "0.png"
    assert "more than the 1,000 accepted" in refusal["reason"]


def test_names_from_outside_may_hold_anything(door: Door) -> None:
    image = picture("red", np.random.default_rng(5))
    parts = [("files", ("weiß „zitiert“ 猫.png", image)), ("files", ("nul%00.txt", b"no image"))]
    answer = door.http.post("/api/v1/loops/colours/images", files=parts, data={"source": "halle 3 – süd"})
    assert answer.json() == {"new": 1, "known": 0, "refused": 1}
    (sample,) = door.world.loop.samples.all()
    assert sample.source == "halle 3 – süd"


# ---------------------------------------------------------------- the queue


def test_the_queue_is_paged_in_order_and_decided_about(door: Door) -> None:
    give(door.world, "pool", 4, np.random.default_rng(6))
    steps.mine(door.world.loop, "round-1", 5)
    everything = [item["sample_id"] for item in door.get("/queue")["items"]]
    assert len(everything) == 5
    paged, after = [], 0
    while after is not None:
        page = door.get(f"/queue?limit=2&after={after}")
        paged += [item["sample_id"] for item in page["items"]]
        after = page["next"]
    assert paged == everything
    first, second, *others = everything
    assert door.post("/queue/reject", {"sample_ids": [first], "actor": "ben"}).json() == {"changed": 1}
    assert door.post("/queue/approve", {"sample_ids": [second], "actor": "anna"}).json() == {"changed": 1}
    assert [item["sample_id"] for item in door.get("/queue?state=rejected")["items"]] == [first]
    (approved,) = door.get("/queue?state=approved")["items"]
    assert (approved["sample_id"], approved["decided_by"]) == (second, "anna")
    assert door.post("/queue/reject", {"sample_ids": [second]}).json() == {"changed": 0}, "a decision stands"
    answer = door.post("/queue/approve", {"sample_ids": [others[0], "0" * 32]})
    problem(answer, 404, "Missing", f"sample {'0' * 32} is not in the queue")
    assert door.post("/queue/approve", {"sample_ids": []}).json() == {"changed": 0}, "none is not all"
    assert door.post("/queue/approve", {}).json() == {"changed": 3}
    assert door.get("/queue?selection=round-1&state=queued")["items"] == []
    assert door.get("/queue?selection=round-2")["items"] == []
    assert {event["actor"] for event in door.get("/events") if event["kind"] == "approved"} == {"anna", "reviewer"}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "after=-1", f"after={10**23}", "state=sent", "limit=many", "selection=%00"]
)
def test_a_question_about_the_queue_that_makes_no_sense_is_refused(door: Door, query: str) -> None:
    problem(door.http.get(f"/api/v1/loops/colours/queue?{query}"), 422, "BadRequest", f"query.{query.split('=')[0]}")


def test_numbers_that_json_does_not_have_do_not_break_the_queue(door: Door) -> None:
    give(door.world, "pool", 1, np.random.default_rng(7))
    samples = [sample.sample_id for sample in door.world.loop.samples.all()]
    nan, inf = float("nan"), float("inf")
    picks = tuple(
        Pick(
            sample,
            Receipt(
                Arm.COVERAGE, rank, nan, inf, -inf, nan, 1.0, 0.0, inf, 1.0, 3, None, nan, None, 0, nan, 7, "d", ("x",)
            ),
        )
        for rank, sample in enumerate(samples)
    )
    selection = Selection(picks, 3, 7, "own", "d", 0.0, {"auroc": nan, "lam": inf}, ())
    assert door.world.loop.work.add_selection("round-1", selection, "queued", "own", "1")
    items = door.get("/queue")["items"]
    assert [item["receipt"]["gain"] for item in items] == [None] * 3
    assert [item["receipt"]["covers"] for item in items] == [3] * 3
    (told,) = door.get("/selections")
    assert told["terms"] == {"auroc": None, "lam": None}
    door.world.loop.work.decide("approved", "reviewer")
    assert steps.send(door.world.loop) == 3
    assert all(door.world.tool.predictions(task) == [] for task in door.world.tool.task_ids())


# ---------------------------------------------------------------- images


def test_an_image_is_shown_to_who_has_the_token_or_its_own_signature(door: Door) -> None:
    image = picture("red", np.random.default_rng(8))
    door.upload(image)
    sample = ids.sample_id(image)
    answer = door.http.get(f"/api/v1/loops/colours/samples/{sample}/image")
    assert (answer.content, answer.headers["content-type"]) == (image, "image/png")
    stranger = TestClient(door.app, raise_server_exceptions=False)
    signed = image_links.link("", SECRET, "colours", sample)
    shown = stranger.get(signed)
    assert shown.content == image
    assert shown.headers["access-control-allow-origin"] == "*"
    forged = [
        image_links.link("", "another secret", "colours", sample),
        signed[:-1] + ("0" if signed[-1] != "0" else "1"),
        signed.replace("/colours/", "/colours-x/"),
        signed.replace(sample, "0" * 32),
        signed.rsplit("/", 1)[0] + "/%C3%A9",
    ]
    for address in forged:
        problem(stranger.get(address), 403, "Forbidden", "not signed by this service")
    unknown = image_links.link("", SECRET, "colours", "0" * 32)
    problem(stranger.get(unknown), 404, "Missing", "no sample")


def test_an_image_that_is_gone_or_out_of_reach_is_told_apart(door: Door) -> None:
    image = picture("red", np.random.default_rng(9))
    door.upload(image)
    sample = ids.sample_id(image)
    faulty = FaultyBlobs(door.world.blobs)
    door.change(blobs=faulty)
    faulty.away = True
    problem(door.http.get(f"/api/v1/loops/colours/samples/{sample}/image"), 503, "Unavailable", "the store is away")
    faulty.away = False
    door.world.blobs.delete(ids.image_key(sample, "png"))
    problem(door.http.get(f"/api/v1/loops/colours/samples/{sample}/image"), 404, "BlobMissing")


# ---------------------------------------------------------------- what is known


@pytest.mark.parametrize("path", ["samples/%00", "samples/%00/image", "samples/%F0%9F%90%88"])
def test_a_sample_of_any_name_that_is_none_is_a_problem_and_no_fault(door: Door, path: str) -> None:
    answer = door.http.get(f"/api/v1/loops/colours/{path}")
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_after_a_round_every_list_tells_its_part_of_the_story(door: Door) -> None:
    rng = np.random.default_rng(10)
    first = first_model(door.world, rng)
    produce(door.world, 30, rng, first)
    steps.ingest(door.world.loop)
    picks = round_of_labels(door.world, "round-1", 8)
    second = steps.train(door.world.loop)
    steps.promote(door.world.loop)

    assert strict(door.http.get("/api/v1/loops")) == list(NAMES)
    status = door.get("")
    assert status["labels"] == list(LABELS)
    assert sum(status["samples"].values()) == 6 + 60 + 30
    assert (status["queue"]["items"], status["queue"]["labelled"], status["given_labels"]) == (8, 8, 66)
    assert (status["champion"] in (first, second), status["undecided"], status["errors"]) == (True, False, {})
    assert status["next_training"]["waits_for"]
    assert [s["selection_id"] for s in door.get("/selections")] == ["round-1"]
    assert {task["sample_id"] for task in door.get("/tasks")} == set(picks)
    assert {row["sample_id"] for row in door.get("/annotations")} == set(picks)
    labels = {row["sample_id"]: row["label"] for row in door.get("/labels") if row["origin"] not in ("seed", "legacy")}
    assert labels == {sample: door.world.truth[sample] for sample in picks}
    assert [row["number"] for row in door.get("/datasets")] == [1, 2]
    assert [row["model_version"] for row in door.get("/trainings")] == [first, second]
    assert [row["model_version"] for row in door.get("/decisions")] == [first, second]
    kinds = [event["kind"] for event in door.get("/events?limit=1000")]
    assert {"selection", "tasks", "trained", "promoted", "annotation new", "approved"} <= set(kinds)
    assert len(door.get("/events?limit=2")) == 2

    history = door.get(f"/samples/{picks[0]}")
    assert history["sample"]["source"] == "line-1"
    assert [p["model_version"] for p in history["predictions"]] == [first]
    assert list(history["predictions"][0]["probabilities"]) == list(LABELS)
    assert history["queue_item"]["selection_id"] == "round-1"
    assert [a["label"] for a in history["annotations"]] == [door.world.truth[picks[0]]]
    assert history["label"]["label"] == door.world.truth[picks[0]]
    problem(door.http.get(f"/api/v1/loops/colours/samples/{'0' * 32}"), 404, "Missing", "no sample")
    other = strict(door.http.get("/api/v1/loops/colours-x"))
    assert (other["samples"], other["champion"]) == ({}, None), "one loop's story is not the other's"


def test_a_registry_that_is_away_is_one_trouble_of_a_status_that_still_answers(door: Door) -> None:
    first_model(door.world, np.random.default_rng(23))
    door.jobs.errors["colours"]["send"] = "Label Studio does not answer"

    class Registry:
        def champion(self) -> None:
            raise errors.Unavailable("MLflow at http://127.0.0.1:9 does not answer")

    door.change(registry=Registry())
    status = door.get("")
    assert status["champion"] is None
    assert status["given_labels"] == 66
    assert status["errors"] == {
        "send": "Label Studio does not answer",
        "registry": "MLflow at http://127.0.0.1:9 does not answer",
    }
    assert door.jobs.errors["colours"] == {"send": "Label Studio does not answer"}, "asking leaves no trace"


def test_hints_are_counted_without_being_read(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for loop in ("colours", "colours", "colours-x"):
        hook(door, b'{"action": "ANNOTATION_CREATED"}', loop=loop)
    monkeypatch.delattr(Work, "webhooks")
    assert door.get("")["webhooks"] == 2


def test_a_withdrawn_sample_is_counted_once_and_its_history_stays(door: Door) -> None:
    give(door.world, "seed", 1, np.random.default_rng(21))
    known = door.world.loop.samples.of_role("seed")[0].sample_id
    body = {"sample_ids": [known], "reason": "labelled wrongly", "actor": "anna"}
    assert door.post("/samples/withdraw", body).json() == {"changed": 1}
    assert door.post("/samples/withdraw", body).json() == {"changed": 0}
    assert door.get("")["samples"] == {"seed": 2, "gone": 1}
    assert door.get(f"/samples/{known}")["label"]["origin"] == "seed"
    assert {"kind": "sample", "reference": known, "reason": "labelled wrongly"} in door.get("/refusals")
    problem(door.post("/samples/withdraw", {**body, "sample_ids": ["0" * 32]}), 404, "Missing", "nothing was withdrawn")


def test_uploaded_images_of_one_group_are_held_out_together(door: Door) -> None:
    rng = np.random.default_rng(22)
    pictures = [picture("red", rng) for _ in range(60)]
    groups = [f"camera-{number % 12}" for number in range(60)]
    files = [("files", (f"{number}.png", data)) for number, data in enumerate(pictures)]
    answer = door.http.post("/api/v1/loops/colours/images", files=files, data={"groups": json.dumps(groups)})
    assert answer.json() == {"new": 60, "known": 0, "refused": 0}
    stored = door.world.loop.samples.get(map(ids.sample_id, pictures)).values()
    assert {s.group_id for s in stored} == set(groups)
    share = door.world.loop.settings.capture.audit_share
    held_out = {group for group in groups if ids.reserved(group, "colours", share)}
    assert held_out
    assert {s.group_id for s in stored if s.role == "audit"} == held_out
    for wrong in ("[", "[1]", '["a"]', '"a"'):
        answer = door.http.post("/api/v1/loops/colours/images", files=files[:2], data={"groups": wrong})
        problem(answer, 400, "BadInput", "groups")


def test_rolling_back_answers_with_the_version_that_serves_again(door: Door) -> None:
    rng = np.random.default_rng(11)
    first = first_model(door.world, rng)
    problem(door.post("/rollback", {"reason": "a test"}), 409, "Conflict")
    give(door.world, "seed", 2, rng)
    steps.train(door.world.loop, manual=True)
    door.world.registry.promote(door.world.registry.versions()[1], "by hand")
    answer = door.post("/rollback", {"reason": "misreads", "actor": "anna"})
    assert answer.json() == {"champion": first}
    assert door.get("")["champion"] == first


# ---------------------------------------------------------------- models and datasets side by side


def two_models(door: Door) -> list[str]:
    """Two versions, the second trained with a round of answers more; the sample ids of that round."""
    rng = np.random.default_rng(24)
    first = first_model(door.world, rng)
    produce(door.world, 30, rng, first)
    steps.ingest(door.world.loop)
    picks = round_of_labels(door.world, "round-1", 8)
    assert steps.train(door.world.loop) == "2"
    return picks


def test_the_models_are_listed_with_what_made_them_and_what_was_decided(door: Door) -> None:
    two_models(door)
    first, second = door.get("/models")
    trainings = door.get("/trainings")
    datasets = door.get("/datasets")
    for number, (model, training, dataset) in enumerate(
        zip((first, second), trainings, datasets, strict=True), start=1
    ):
        assert (model["version"], model["training_key"]) == (str(number), training["training_key"])
        assert (model["dataset_number"], model["dataset_digest"]) == (number, dataset["digest"])
    assert (first["champion"], second["champion"]) == (True, False)
    assert first["decision"] == door.get("/decisions")[0]
    assert second["decision"] is None, "the gate has not been asked yet"
    assert strict(door.http.get("/api/v1/loops/colours-x/models")) == []


def test_two_models_are_compared_on_the_samples_both_were_evaluated_on(door: Door) -> None:
    two_models(door)
    right, wrong = [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]
    blue = [0.0, 0.1, 0.9]
    of = {
        "1": Evaluation(("a", "b", "c"), np.array([0, 0, 2]), np.array([right, wrong, blue]), ("legacy",) * 3),
        "2": Evaluation(("b", "c", "d"), np.array([0, 2, 1]), np.array([right, blue, wrong]), ("legacy",) * 3),
    }
    door.world.registry.evaluation = lambda version: of[version.version]  # type: ignore[method-assign]
    found = door.get("/models/compare?before=1&after=2")
    assert (found["before"], found["after"], found["labels"]) == ("1", "2", list(LABELS))
    assert (found["only_before"], found["only_after"]) == (1, 1)
    (part,) = found["slices"]
    assert (part["name"], part["n"]) == ("legacy", 2)
    assert [part[which]["value"] for which in ("before", "after", "difference")] == [0.5, 1.0, 0.5]
    assert part["difference"]["low"] < 0.5 < part["difference"]["high"]
    recalls = {c["label"]: (c["n"], c["before"]["value"], c["after"]["value"]) for c in part["classes"]}
    assert recalls == {"red": (1, 0.0, 1.0), "blue": (1, 1.0, 1.0)}
    assert part["moved"] == [[1, -1, 0], [0, 0, 0], [0, 0, 0]], "one red is no longer called green"
    assert (part["better"], part["worse"]) == (["b"], [])
    back = door.get("/models/compare?before=2&after=1")["slices"][0]
    assert (back["better"], back["worse"], back["difference"]["value"]) == ([], ["b"], -0.5)


def test_two_datasets_are_compared_by_what_a_person_would_say_changed(door: Door) -> None:
    picks = two_models(door)
    (answer,) = door.world.loop.work.annotations(picks[0])
    other = next(label for label in LABELS if label != door.world.truth[picks[0]])
    door.world.tool.change(answer["annotation_id"], other)
    steps.collect(door.world.loop)
    steps.withdraw(door.world.loop, [picks[1]], "a test", "anna")
    assert steps.train(door.world.loop, manual=True) == "3"
    assert door.get("/datasets/compare?before=1&after=2") == {
        "added": sorted(picks), "removed": [], "relabelled": [], "moved": [],
    }  # fmt: skip
    assert door.get("/datasets/compare?before=2&after=3") == {
        "added": [], "removed": [picks[1]], "relabelled": [[picks[0], door.world.truth[picks[0]], other]], "moved": [],
    }  # fmt: skip


def test_what_is_not_there_to_be_compared_is_named(door: Door) -> None:
    two_models(door)
    for path, status, words in (
        ("/models/compare?before=1&after=9", 404, "no model version '9' in loop 'colours'"),
        ("/models/compare?before=%F0%9F%90%88&after=1", 404, "no model version"),
        ("/models/compare?before=1", 422, "query.after"),
        ("/models/compare?before=%00&after=1", 422, "query.before"),
        ("/datasets/compare?before=9&after=1", 404, "no dataset version 9 in loop 'colours': there are 2, from 1"),
        (f"/datasets/compare?before=1&after={2**31}", 404, f"no dataset version {2**31}"),
        (f"/datasets/compare?before=1&after={10**23}", 422, "query.after"),
        ("/datasets/compare?before=0&after=1", 422, "query.before"),
        ("/datasets/compare?before=one&after=1", 422, "query.before"),
    ):
        answer = door.http.get(f"/api/v1/loops/colours{path}")
        problem(answer, status, "Missing" if status == 404 else "BadRequest", words)


# ---------------------------------------------------------------- jobs


def ended(door: Door, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        job: dict[str, Any] = strict(door.http.get(f"/api/v1/jobs/{job_id}"))
        if job["state"] not in ("waiting", "running"):
            return job
        assert time.monotonic() < deadline
        time.sleep(0.02)


def unique(name: str, request: pytest.FixtureRequest) -> str:
    """A key of this test on this database alone: the module's jobs are shared."""
    return f"{name}-{ids.short_digest(request.node.name)}"


def test_a_job_is_taken_and_ends_with_its_results(door: Door) -> None:
    give(door.world, "pool", 2, np.random.default_rng(12))
    answer = door.post("/jobs", {"steps": ["mine"], "budget": 2})
    assert answer.status_code == 202
    job = ended(door, answer.json()["job_id"])
    assert (job["state"], job["error"]) == ("done", None)
    assert len(door.get(f"/queue?selection={job['result']['mine']}")["items"]) == 2


def test_the_same_idempotency_key_is_the_same_job_in_its_own_loop_alone(
    door: Door, request: pytest.FixtureRequest
) -> None:
    give(door.world, "pool", 2, np.random.default_rng(13))
    key = unique("key", request)
    body = {"steps": ["mine"], "budget": 2}
    jobs = [door.post("/jobs", body, headers={"Idempotency-Key": f"x-{key}"}).json()["job_id"] for _ in range(3)]
    assert len(set(jobs)) == 1
    assert ended(door, jobs[0])["state"] == "done"
    assert len(door.get("/selections")) == 1
    other = door.http.post("/api/v1/loops/colours-x/jobs", json=body, headers={"Idempotency-Key": key}).json()
    assert other["job_id"] != jobs[0], "loop 'colours' with key 'x-1' is not loop 'colours-x' with key '1'"
    assert ended(door, other["job_id"])["state"] == "done"


@pytest.mark.parametrize("key", ["", "x" * 101, "a/b", "a b", "a?b", "\xe9"])
def test_a_key_that_could_not_stand_in_an_address_is_refused(door: Door, key: str) -> None:
    answer = door.post("/jobs", {"steps": ["collect"]}, headers={"Idempotency-Key": key.encode("latin-1")})
    problem(answer, 422, "BadRequest", "idempotency-key")


def test_jobs_that_cannot_be_are_refused_and_failed_ones_say_why(door: Door) -> None:
    problem(door.post("/jobs", {"steps": ["bake"]}), 400, "BadInput", "unknown step 'bake'")
    problem(door.post("/jobs", {"steps": ["collect", "train"]}), 400, "BadInput", "different lanes")
    problem(door.http.get("/api/v1/jobs/nothing"), 404, "Missing", "no job 'nothing'")
    job = ended(door, door.post("/jobs", {"steps": ["train", "promote"], "manual": True}).json()["job_id"])
    assert job["state"] == "failed"
    assert "loop 'colours' has no label yet" in job["error"]
    assert door.get("")["errors"] == {"train": job["error"]}


def test_tasks_that_are_all_gone_are_taken_for_deleted_when_a_job_says_so(door: Door) -> None:
    give(door.world, "pool", 4, np.random.default_rng(14))
    round_of_labels(door.world, "round-1", 6)
    for task in door.world.tool.task_ids():
        door.world.tool.delete_task(task)
    job = ended(door, door.post("/jobs", {"steps": ["collect"]}).json()["job_id"])
    assert job["state"] == "failed"
    assert "all 6 tasks are gone from project 1" in job["error"]
    assert door.get("")["errors"] == {"collect": job["error"]}
    job = ended(door, door.post("/jobs", {"steps": ["collect"], "deleted": True}).json()["job_id"])
    assert (job["state"], job["result"]["collect"]["deleted_tasks"]) == ("done", 6)
    assert door.get("")["errors"] == {}


# ---------------------------------------------------------------- its description


def test_every_route_says_in_words_what_it_does(door: Door) -> None:
    silent = [
        route.path for route in door.app.routes if isinstance(route, APIRoute) and not (route.description or "").strip()
    ]
    assert silent == []
    assert TestClient(door.app).get("/openapi.json").json()["info"]["title"] == "Hardloop"

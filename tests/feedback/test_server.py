"""The predictor service over a real socket: answers, limits, capture, and model changes under load."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from feedback.capture import Capture, CapturePolicy, WriterSettings
from feedback.server import ServerSettings, create_app
from hardloop.core import capture_records, ids, images
from hardloop.core.blobs import DirectoryBlobs
from tests.fakes.onnx_models import colour_model, linear_network, write_model

LABELS = ("red", "green", "blue")
SECRET = "let me in"


def flat(red: int, green: int, blue: int) -> bytes:
    return images.encode_png(np.full((4, 4, 3), (red, green, blue), dtype=np.uint8))


RED, GREY = flat(255, 0, 0), flat(90, 90, 90)


class Models:
    """A provider in memory: which version is current, and how its files are made."""

    def __init__(self) -> None:
        self.current: str | None = None
        self.make: dict[str, Callable[[Path], Path]] = {}
        self.broken: Exception | None = None
        self.fetched: list[str] = []

    def promote(self, version: str, make: Callable[[Path], Path] = colour_model) -> None:
        self.make[version] = make
        self.current = version

    def __call__(self) -> tuple[str, Callable[[Path], Path]] | None:
        if self.broken is not None:
            raise self.broken
        version = self.current
        return None if version is None else (version, lambda folder: self.fetch(version, folder))

    def fetch(self, version: str, folder: Path) -> Path:
        self.fetched.append(version)
        return self.make[version](folder)


class Served:
    """The service behind uvicorn on a free port of the loopback."""

    def __init__(self, models: Models, capture: Capture | None, settings: ServerSettings) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(create_app(models, capture, settings), log_level="error"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=30.0)
        wait_for(lambda: self._server.started)

    def reload(self, secret: str = SECRET) -> httpx.Response:
        return self.http.post("/reload", headers={"X-Hardloop-Secret": secret})

    def stop(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "store")


@pytest.fixture
def capture(store: DirectoryBlobs) -> Iterator[Capture]:
    policy = CapturePolicy(small_margin=None, disagreement=None, audit_share=0.0, exploration_share=0.0)
    with Capture(store, "colours", LABELS, policy, writer=WriterSettings(flush_interval_s=0.02)) as capture:
        yield capture


@pytest.fixture
def served(models: Models, capture: Capture) -> Iterator[Served]:
    """Polls once an hour, so that tests decide when it looks."""
    served = Served(models, capture, ServerSettings(poll_s=3600.0, reload_secret=SECRET, max_image_bytes=100_000))
    yield served
    served.stop()


@pytest.fixture
def ready(models: Models, served: Served) -> Served:
    models.promote("1")
    assert served.reload().json() == {"version": "1", "changed": True}
    return served


def test_before_the_first_champion_it_is_alive_not_ready_and_says_why(served):
    assert served.http.get("/healthz").json() == {"status": "ok"}
    for answer in (served.http.get("/readyz"), served.http.get("/model"), served.http.post("/predict", content=RED)):
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["detail"] == "no model serves yet: none has been promoted"


def test_a_prediction_carries_its_version_sample_label_and_probabilities(ready):
    answer = ready.http.post("/predict", content=RED).json()
    assert (answer["sample_id"], answer["model_version"], answer["label"]) == (ids.sample_id(RED), "1", "red")
    top = np.exp(4.0)
    assert answer["probabilities"] == pytest.approx(
        {"red": top / (top + 2), "green": 1 / (top + 2), "blue": 1 / (top + 2)}, abs=1e-6
    )
    assert answer["captured"] == []


def test_a_form_a_body_and_a_batch_say_the_same(ready):
    body = ready.http.post("/predict", content=RED).json()
    assert ready.http.post("/predict", files={"image": ("r.png", RED, "image/png")}).json() == body
    batch = ready.http.post("/predict/batch", files=[("image", RED), ("image", GREY), ("image", RED)]).json()
    assert batch["model_version"] == "1"
    assert [p["label"] for p in batch["predictions"]][::2] == ["red", "red"]
    assert batch["predictions"][0]["sample_id"] == body["sample_id"]
    assert batch["predictions"][1]["sample_id"] == ids.sample_id(GREY)
    assert batch["predictions"][0]["probabilities"] == pytest.approx(body["probabilities"], abs=1e-5)


def test_an_unsure_answer_is_captured_with_the_committee_the_embedding_and_its_origin(ready, capture, store):
    answer = ready.http.post(
        "/predict", params={"source": "line-2", "group_id": "camera-7"}, headers={"X-Burst-Id": "b1"}, content=GREY
    ).json()
    assert answer["captured"] == ["low_confidence"]
    assert capture.flush(10.0)
    (key,) = store.keys(capture_records.prefix("colours"))
    (record,) = capture_records.read(store.get(key))
    assert (record.sample_id, record.model_version) == (answer["sample_id"], "1")
    assert (record.source, record.group_id, record.burst_id) == ("line-2", "camera-7", "b1")
    np.testing.assert_allclose(record.probs_C, [1 / 3] * 3, atol=1e-6)
    assert record.member_probs_MC is not None
    assert record.member_probs_MC.shape == (1, 3)
    np.testing.assert_allclose(record.embedding_D, [90 / 255] * 3, atol=1e-6)
    assert record.encoder == "mean-rgb"
    assert store.get(record.image_key) == GREY


def test_a_batch_takes_a_group_for_each_image_or_one_for_all(ready, capture, store):
    grey = [flat(n, n, n) for n in (10, 20)]
    files = [("image", file) for file in grey]
    ready.http.post("/predict/batch", files=files, data={"group_id": ["a", "b"], "source": "s"})
    refused = ready.http.post("/predict/batch", files=files, data={"group_id": ["a", "b", "c"]})
    assert (refused.status_code, refused.json()["detail"][:43]) == (400, "group_id is given 3 times for 2 images: giv")
    capture.flush(10.0)
    records = [r for key in store.keys(capture_records.prefix("colours")) for r in capture_records.read(store.get(key))]
    assert [(record.group_id, record.source) for record in records] == [("a", "s"), ("b", "s")]


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (8000, 6000)).save(out, "PNG")
    return out.getvalue()


REFUSED = {
    "zero bytes": ("/predict", {"content": b""}, 422, "zero bytes"),
    "text": ("/predict", {"content": b"hello"}, 422, "image 0"),
    "cut off": ("/predict", {"content": RED[: len(RED) - 20]}, 422, "damaged or cut off"),
    "too many bytes": ("/predict", {"content": b"\0" * 100_001}, 413, "100,000 bytes accepted"),
    "too many bytes in a form": ("/predict", {"files": {"image": b"\0" * 100_001}}, 413, "100,000 bytes accepted"),
    "too many pixels": ("/predict", {"content": bomb()}, 422, "8000 x 6000"),
    "two files": ("/predict", {"files": [("image", RED), ("image", RED)]}, 400, "at most 1 files"),
    "no file": ("/predict", {"files": {"note": (None, "hi")}}, 400, "holds no file"),
    "no form": ("/predict/batch", {"content": RED}, 400, "multipart/form-data"),
    "one bad of three": (
        "/predict/batch",
        {"files": [("image", RED), ("image", b"x"), ("image", RED)]},
        422,
        "image 1",
    ),
    "broken form": ("/predict", {"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_refused_as_a_problem_and_nothing_is_captured(ready, capture, case):
    path, request, status, words = REFUSED[case]
    answer = ready.http.post(path, **request)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert words in answer.json()["detail"]
    assert capture.stats.offered == 0


def test_a_body_without_a_length_is_cut_off_where_the_limit_is(models, capture):
    served = Served(models, capture, ServerSettings(max_request_bytes=50_000))
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 10_000
            yield b"\0" * 10_000

    try:
        with pytest.MonkeyPatch.context():
            try:
                status = served.http.post("/predict", content=endless()).status_code
            except httpx.WriteError:  # the server hung up while we were still sending
                status = 413
        assert status == 413
        assert sent < 50_000_000
        assert served.http.post("/predict", content=b"\0" * 60_000).status_code == 413
    finally:
        served.stop()


def test_unknown_paths_and_methods_are_problems_too(ready):
    for answer, status in ((ready.http.get("/nothing"), 404), (ready.http.get("/predict"), 405)):
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_reload_door_opens_to_the_secret_alone(ready, models, capture):
    for secret in ("", "wrong", SECRET + "x", "\u00e9".encode().decode("latin-1")):
        answer = ready.http.post("/reload", headers={"X-Hardloop-Secret": secret.encode("latin-1")})
        assert answer.status_code == 403
    closed = Served(models, capture, ServerSettings())
    assert closed.reload("").status_code == 403
    closed.stop()


def test_model_and_stats_tell_what_served_how_much(ready, models):
    info = ready.http.get("/model").json()
    assert {key: info[key] for key in ("version", "labels", "encoder", "members")} == {
        "version": "1", "labels": list(LABELS), "encoder": "mean-rgb", "members": 2,
    }  # fmt: skip
    ready.http.post("/predict", content=RED)
    ready.http.post("/predict/batch", files=[("image", GREY), ("image", RED)])
    models.promote("2")
    assert ready.reload().json() == {"version": "2", "changed": True}
    ready.http.post("/predict", content=RED)
    stats = ready.http.get("/stats").json()
    assert stats["requests"] == {"1": 2, "2": 1}
    assert stats["images"] == {"1": 3, "2": 1}
    assert stats["swaps"] == 2
    assert (stats["capture"]["offered"], stats["capture"]["taken"]) == (4, {"low_confidence": 1})


# ------------------------------------------------------------ changing models


def other_labels(folder: Path) -> Path:
    return colour_model(folder, labels=("red", "blue", "green"))


def not_finite(folder: Path) -> Path:
    return write_model(folder, LABELS, [linear_network(np.full((3, 3), np.nan))])


def altered(folder: Path) -> Path:
    colour_model(folder)
    (folder / "member-0.onnx").write_bytes(b"other")
    return folder


def away(_: Path) -> Path:
    raise ConnectionError("the artifact store is away")


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (other_labels, 502, "this loop's labels are ['red', 'green', 'blue']"),
        (not_finite, 502, "not finite"),
        (altered, 502, "SHA-256"),
        (lambda folder: folder, 502, "model.json is missing"),
        (away, 503, "cannot be fetched (ConnectionError)"),
    ],
)
def test_a_broken_new_model_leaves_the_old_one_serving_and_says_so(ready, models, make, status, words):
    models.promote("2", make)
    answer = ready.reload()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "version 2 cannot" in answer.json()["detail"]
    assert words in answer.json()["detail"]
    state = ready.http.get("/readyz")
    assert (state.status_code, state.json()["version"]) == (200, "1")
    assert words in state.json()["problem"]
    assert ready.http.post("/predict", content=RED).json()["model_version"] == "1"
    models.promote("3")
    assert ready.reload().json() == {"version": "3", "changed": True}
    assert ready.http.get("/readyz").json() == {"status": "ready", "version": "3", "problem": None}


def test_a_broken_model_is_not_fetched_again_at_every_poll_but_when_insisted(models, capture):
    models.promote("1", not_finite)
    served = Served(models, capture, ServerSettings(poll_s=0.01, reload_secret=SECRET))
    try:
        wait_for(lambda: models.fetched)
        time.sleep(0.3)
        assert models.fetched == ["1"]
        models.make["1"] = colour_model
        assert served.reload().json() == {"version": "1", "changed": True}
    finally:
        served.stop()


def test_a_registry_that_is_away_or_empty_does_not_stop_the_serving(ready, models):
    models.broken = RuntimeError("registry is down")
    assert ready.reload().status_code == 503
    assert "RuntimeError" in ready.http.get("/readyz").json()["problem"]
    models.broken, models.current = None, None
    assert ready.reload().status_code == 503
    assert "version 1 serves on" in ready.http.get("/readyz").json()["problem"]
    assert ready.http.post("/predict", content=RED).status_code == 200


def test_polling_finds_a_new_champion_by_itself(models, capture):
    served = Served(models, capture, ServerSettings(poll_s=0.02))
    try:
        for version in ("1", "2"):
            models.promote(version)
            wait_for(lambda version=version: served.http.get("/model").json().get("version") == version)
    finally:
        served.stop()


def strength_of(version: int) -> float:
    return 1.0 + version % 7


def test_under_load_no_swap_fails_a_request_or_mixes_versions(ready, models):
    """Every version answers red with another certainty, so that a mixed answer shows in its numbers."""
    last = 25
    stop = threading.Event()
    faults: list[str] = []
    seen: list[list[int]] = [[] for _ in range(6)]

    def expected(version: int) -> float:
        top = np.exp(strength_of(version) if version > 1 else 4.0)
        return float(top / (top + 2))

    def hammer(worker: int) -> None:
        with httpx.Client(base_url=ready.url, timeout=30.0) as http:
            while not stop.is_set():
                if worker % 2:
                    answer = http.post("/predict/batch", files=[("image", RED)] * 3)
                    predictions = answer.json().get("predictions", [])
                else:
                    answer = http.post("/predict", content=RED)
                    predictions = [answer.json()]
                if answer.status_code != 200:
                    faults.append(answer.text)
                    continue
                versions = {int(p["model_version"]) for p in predictions}
                seen[worker].extend(versions)
                for p in predictions:
                    if len(versions) > 1 or abs(p["probabilities"]["red"] - expected(int(p["model_version"]))) > 1e-5:
                        faults.append(f"mixed: {predictions}")

    workers = [threading.Thread(target=hammer, args=(worker,)) for worker in range(6)]
    for worker in workers:
        worker.start()
    for version in range(2, last + 1):
        models.promote(str(version), lambda folder, v=version: colour_model(folder, strength=strength_of(v)))
        assert ready.reload().json() == {"version": str(version), "changed": True}
    wait_for(lambda: all(versions and versions[-1] == last for versions in seen))
    stop.set()
    for worker in workers:
        worker.join()
    assert faults == []
    assert all(versions == sorted(versions) for versions in seen), "an old version answered after a new one"
    assert len({version for versions in seen for version in versions}) > 5


def test_a_full_line_answers_503_instead_of_growing(models, capture):
    models.promote("1")
    served = Served(models, capture, ServerSettings(max_waiting=1, workers=1, poll_s=3600.0))
    statuses: list[int] = []
    noise = images.encode_png(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8))

    def send() -> None:
        statuses.append(httpx.post(served.url + "/predict", content=noise, timeout=60).status_code)

    try:
        wait_for(lambda: served.http.get("/readyz").status_code == 200)
        senders = [
            threading.Thread(
                target=lambda: statuses.append(
                    httpx.post(served.url + "/predict", content=noise, timeout=60).status_code
                )
            )
            for _ in range(12)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    finally:
        served.stop()
    assert set(statuses) == {200, 503}


def test_stopping_brings_what_was_captured_to_the_store(models, store):
    slow = WriterSettings(flush_interval_s=300.0)
    capture = Capture(store, "colours", LABELS, CapturePolicy(take_all=True), writer=slow)
    models.promote("1")
    served = Served(models, capture, ServerSettings(poll_s=3600.0))
    wait_for(lambda: served.http.get("/readyz").status_code == 200)
    served.http.post("/predict", content=RED)
    assert list(store.keys("captures/")) == []
    served.stop()
    assert len(list(store.keys("captures/"))) == 1


def test_without_a_capture_it_serves_all_the_same(models):
    models.promote("1")
    served = Served(models, None, ServerSettings(poll_s=3600.0))
    try:
        wait_for(lambda: served.http.get("/readyz").status_code == 200)
        assert served.http.post("/predict", content=GREY).json()["captured"] == []
        assert served.http.get("/stats").json()["capture"] is None
    finally:
        served.stop()


def test_the_openapi_document_shows_how_to_send_an_image(ready):
    paths = ready.http.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/predict", "/predict/batch", "/healthz", "/readyz", "/model", "/stats", "/reload"}
    assert set(paths["/predict"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "image/*"}

"""Traffic for the served model: what is refused or not answered is said in a sentence that names it."""

import asyncio
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr

from hardloop.core import images
from hardloop.core.errors import BadData, Unavailable
from hardloop.service import predictor
from hardloop.service.connections import Connections
from hardloop.service.demo.items import DemoItem
from hardloop.service.demo.production import Production
from hardloop.service.demo.upload import batches
from hardloop.service.settings import load
from hardloop.service.settings_file import demo_file
from tests.fakes.onnx_models import colour_model

TRAFFIC = [DemoItem(f"cat/{i}.png", f"image {i}".encode(), "cat", None, "") for i in range(300)]
Answer = Callable[[httpx.Request], httpx.Response]


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that says nothing."""


def production(answer: Answer) -> Production:
    return Production("http://predictor", transport=httpx.MockTransport(answer))


def test_every_image_is_answered_once_and_counted():
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, json={"model_version": "1"})

    served = production(answer)
    served.send(TRAFFIC, "1", quiet)
    assert sorted(seen) == sorted(item.image for item in TRAFFIC)
    assert served.answered == 300


def about(name: bytes, reply: httpx.Response | Exception) -> Answer:
    """A predictor that answers everything with version 1, but one image with something else."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.content != name:
            return httpx.Response(200, json={"model_version": "1"})
        if isinstance(reply, Exception):
            raise reply
        return reply

    return answer


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (httpx.Response(413, json={"detail": "too large"}), BadData, r"refused image 'cat/7.png' \(413: .*too large"),
        (httpx.Response(422, json={"detail": "no image"}), BadData, r"refused image 'cat/7.png' \(422.*remove or"),
        (httpx.Response(500, text="oops"), Unavailable, "answered 500, asked for image 'cat/7.png': oops"),
        (httpx.ReadTimeout("slow"), Unavailable, r"not answer, asked for image 'cat/7.png' \(ReadTimeout\)"),
        (httpx.ConnectError("gone"), Unavailable, r"http://predictor did not answer, .*\(ConnectError\): see its log"),
        (httpx.Response(200, text="hello"), Unavailable, "is not the predictor: 'hello'"),
        (httpx.Response(200, json={"model_version": "2"}), Unavailable, "'cat/7.png' was answered by version 2, not"),
    ],
    ids=["too large", "no image", "fault", "timeout", "gone", "stranger", "another version"],
)
def test_an_image_that_is_not_answered_is_named_in_a_sentence(reply, kind, said):
    with pytest.raises(kind, match=said):
        production(about(b"image 7", reply)).send(TRAFFIC, "1", quiet)


def test_after_a_fault_the_images_that_wait_are_not_sent():
    """So that Ctrl-C, too, ends the demo at once and not after all of the traffic."""
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        time.sleep(0.01)
        return httpx.Response(200, json={"model_version": "1"})

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        production(answer).send(TRAFFIC, "1", interrupt)
    assert len(sent) < 50
    assert not [t for t in threading.enumerate() if t.name.startswith("production")]


def test_which_version_serves_is_none_before_the_first_and_a_sentence_where_nobody_answers():
    assert production(lambda request: httpx.Response(503, json={"detail": "no model yet"})).serving() is None
    assert production(lambda request: httpx.Response(200, json={"version": 3})).serving() == "3"
    with pytest.raises(Unavailable, match="answered 500, asked for which version serves"):
        production(lambda request: httpx.Response(500)).serving()
    with pytest.raises(Unavailable, match="asked for what it counted"):
        production(about(b"", httpx.ConnectError("gone"))).stats()


# ---------------------------------------------------------------- one limit for all doors


def encoded(kind: str, mode: str, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "width", "height"), [("BMP", "L", 6000, 3000), ("PNG", "1", 8000, 6000)], ids=["18 MB", "48 MP"]
)
def test_the_predictor_takes_every_image_that_the_data_may_hold(tmp_path: Path, monkeypatch, kind, mode, width, height):
    photo = encoded(kind, mode, width, height)
    images.check(photo)
    config = tmp_path / "hardloop.toml"
    config.write_text(demo_file("demo", ["red", "green", "blue"], 20, "linear-probe", 0))
    nowhere, secret = "http://nowhere", SecretStr("secret")
    connections = Connections(
        config=config, service_url=nowhere, webhook_url=nowhere, admin_token=secret, webhook_secret=secret,
        database_url=secret, jobs_database_url=secret, s3=None, blobs_dir=tmp_path / "store",
        label_studio_url=nowhere, label_studio_key=secret, mlflow_url=nowhere, predictors={},
    )  # fmt: skip
    monkeypatch.setattr(predictor, "_champion_of", lambda registry: lambda: ("1", colour_model))
    app, capture = predictor.build(load(config).loops[0], connections)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=nowhere) as http:
            while (await http.get("/model")).status_code == 503:
                await asyncio.sleep(0.01)
            return await http.post("/predict", content=photo)

    with capture:
        answer = asyncio.run(ask())
    assert (answer.status_code, answer.json().get("model_version")) == (200, "1"), answer.text


def test_uploads_are_cut_by_number_and_by_bytes():
    items = [DemoItem(str(i), bytes(size), "a", None, "") for i, size in enumerate((3, 3, 3, 9, 30, 1, 1, 1, 1, 1))]
    cut = [[len(item.image) for item in batch] for batch in batches(items, most=4, most_bytes=10)]
    assert cut == [[3, 3, 3], [9], [30], [1, 1, 1, 1], [1]]
    assert list(batches([])) == []

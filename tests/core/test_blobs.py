"""The blob stores: the contract on every real store, and what only one of them can get wrong."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardloop.core.blobs import DirectoryBlobs, S3Blobs, S3Settings, check_key
from hardloop.core.errors import BadInput, BadSettings, HardloopError, Unavailable
from hardloop.core.ports import BlobStore
from hardloop.service.embedded.free_ports import free_ports
from tests.core.blob_contract import BlobStoreContract


class TestDirectory(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return DirectoryBlobs(tmp_path / "blobs")


@pytest.mark.real
class TestSeaweedFS(BlobStoreContract):
    @pytest.fixture
    def store(self, blobs: S3Blobs) -> BlobStore:
        return blobs


@pytest.mark.real
class TestJuiceFS(BlobStoreContract):
    creates_once = False  # its gateway passes over If-None-Match; put_new looks before it writes

    @pytest.fixture
    def store(self, juicefs: S3Settings) -> BlobStore:
        store = S3Blobs(replace(juicefs, bucket=f"test-{token_hex(6)}"))
        store.ensure_bucket()
        return store


def _calls(store: BlobStore) -> list[Callable[[], object]]:
    return [
        lambda: store.put("a", b"1"),
        lambda: store.put_new("a", b"1"),
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: list(store.keys("")),
        lambda: store.delete("a"),
    ]


_NAMES = ["put", "put_new", "get", "exists", "keys", "delete"]


@pytest.mark.parametrize("number", range(6), ids=_NAMES)
def test_a_server_that_is_away_is_unavailable_within_two_seconds(number: int) -> None:
    store = S3Blobs(S3Settings(f"http://127.0.0.1:{free_ports(1)[0]}", "bucket", "key", "secret"))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="is it running"):
        _calls(store)[number]()
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("number", range(6), ids=_NAMES)
def test_a_server_that_never_answers_is_given_up_on(number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        store = S3Blobs(S3Settings(f"http://127.0.0.1:{port}", "bucket", "key", "secret"), timeout_s=0.3)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            _calls(store)[number]()
        assert time.monotonic() - began < 5.0


@contextmanager
def _http_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        do_GET = do_PUT = do_HEAD = do_DELETE = lambda self: answer(self)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _greet(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b"" if handler.command == "HEAD" else b"<html>a web page"
    handler.send_response(404 if handler.command in ("HEAD", "PUT") else 200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("name", ["put", "put_new", "keys"])
def test_an_address_that_is_not_an_s3_server_is_an_error_of_ours(name: str) -> None:
    with _http_server(_greet) as url, pytest.raises(HardloopError, match=url):
        _calls(S3Blobs(S3Settings(url, "bucket", "key", "secret")))[_NAMES.index(name)]()


def test_a_conditional_put_whose_answer_is_lost_is_not_taken_for_a_taken_key() -> None:
    """The server stores the object and the connection breaks: asking again would find our own object there."""
    stored: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.command == "PUT" and path.endswith("/precious") and path not in stored:
            stored.append(path)
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        taken = handler.command == "PUT" and path in stored
        if handler.command == "PUT":
            stored.append(path)
        handler.send_response(412 if taken else 200 if handler.command == "PUT" else 204)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with _http_server(answer) as url:
        store = S3Blobs(S3Settings(url, "bucket", "key", "secret"))
        assert store.put_new("first", b"1") is True
        assert store.put_new("first", b"1") is False
        with pytest.raises(Unavailable):
            store.put_new("precious", b"1")
    assert sum(path.endswith("/precious") for path in stored) == 1


def test_no_log_holds_anything_that_could_be_used_to_write(caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 logs the address when it tries again, and every request's for who wants to see it."""

    def take(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        handler.send_response(204)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    caplog.set_level(logging.DEBUG)
    settings = S3Settings(f"http://127.0.0.1:{free_ports(1)[0]}", "bucket", "our-access-key", "secret")
    with pytest.raises(Unavailable):
        S3Blobs(settings).put_new("a", b"1")
    with _http_server(take) as url:
        S3Blobs(replace(settings, url=url)).put_new("a", b"1")
    assert "Retrying" in caplog.text
    assert "PUT /bucket/probes/create-once-" in caplog.text
    for word in ("our-access-key", "X-Amz", "Signature"):
        assert word not in caplog.text


def test_a_server_that_was_away_at_first_is_asked_again_whether_it_creates_once() -> None:
    """The probe's answer is kept for good, so a failed probe must not count as one."""
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        first = not asked
        taken = handler.command == "PUT" and path in asked
        asked.append(path)
        handler.send_response(500 if first else 412 if taken else 200 if handler.command == "PUT" else 204)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with _http_server(answer) as url:
        store = S3Blobs(S3Settings(url, "bucket", "key", "secret"))
        with pytest.raises(Unavailable, match="500"):
            store.put_new("a", b"1")
        assert store.put_new("a", b"1") is True
        assert store.put_new("a", b"1") is False


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:9000/bucket", ""]
)  # fmt: skip
def test_an_address_that_cannot_be_one_is_refused_before_any_call(url: str) -> None:
    with pytest.raises(BadSettings, match="http"):
        S3Blobs(S3Settings(url, "bucket", "key", "secret"))


@pytest.mark.parametrize("bucket", ["", "ab", "Upper", "under_score", "sla/sh", "dot..dot", "-dash", "x" * 64])
def test_a_bucket_name_that_s3_does_not_take_is_refused_before_any_call(bucket: str) -> None:
    with pytest.raises(BadSettings, match="bucket"):
        S3Blobs(S3Settings("http://127.0.0.1:1", bucket, "key", "secret"))


def test_settings_do_not_show_their_secret() -> None:
    assert "hunter2" not in repr(S3Settings("http://127.0.0.1:1", "bucket", "key", "hunter2"))


@pytest.mark.real
class TestRefusals:
    """What a real server refuses arrives as the error that says what to do."""

    @pytest.mark.parametrize("number", [0, 1, 2, 4, 5])
    def test_a_wrong_secret_is_a_setting_to_correct(self, s3: S3Settings, number: int) -> None:
        with pytest.raises(BadSettings, match="refused the credentials"):
            _calls(S3Blobs(replace(s3, secret_key="another secret")))[number]()

    def test_a_wrong_secret_cannot_make_a_bucket(self, s3: S3Settings) -> None:
        with pytest.raises(BadSettings, match="refused the credentials"):
            S3Blobs(replace(s3, secret_key="another secret", bucket="brand-new")).ensure_bucket()

    @pytest.mark.parametrize("number", [0, 1, 2, 4])
    def test_a_missing_bucket_is_named_and_not_made_by_the_way(self, s3: S3Settings, number: int) -> None:
        missing = replace(s3, bucket=f"missing-{token_hex(4)}")
        with pytest.raises(Unavailable, match=missing.bucket):
            _calls(S3Blobs(missing))[number]()

    def test_making_sure_of_a_bucket_twice_keeps_what_it_holds(self, s3: S3Settings) -> None:
        store = S3Blobs(s3)
        store.put("a", b"1")
        store.ensure_bucket()
        assert store.get("a") == b"1"

    def test_the_probe_for_create_once_leaves_nothing_behind(self, s3: S3Settings) -> None:
        store = S3Blobs(s3)
        store.put_new("a", b"1")
        assert list(store.keys("")) == ["a"]


def test_an_unfinished_write_is_neither_listed_nor_reachable(tmp_path: Path) -> None:
    store = DirectoryBlobs(tmp_path)
    store.put("a/b", b"1")
    (tmp_path / "a" / ".unfinished-killed").write_bytes(b"half")
    assert list(store.keys("")) == ["a/b"]
    with pytest.raises(BadInput, match="the store's own"):
        store.get("a/.unfinished-killed")


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HardloopError, match="file"):
        DirectoryBlobs(tmp_path / "file" / "blobs")


def test_a_listing_looks_only_into_the_folder_of_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, looked = DirectoryBlobs(tmp_path), []
    for key in ("images/ab/1", "images/cd/2", "captures/shoes/3", "captures/shoes/4/5"):
        store.put(key, b"")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(Path(path).name) or scandir(path))
    assert list(store.keys("captures/shoes/")) == ["captures/shoes/3", "captures/shoes/4/5"]
    assert set(looked) == {"shoes", "4"}


@given(prefix=st.text(st.sampled_from("/.\\ab\0é"), max_size=6))
def test_any_prefix_lists_what_starts_with_it_and_nothing_outside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, prefix: str
) -> None:
    outside = tmp_path_factory.getbasetemp() / "listed"
    store, keys = DirectoryBlobs(outside / "inside"), ["a/a/b", "a/b", "ab/a", "b", "é/a"]
    for key in keys:
        store.put(key, b"")
    (outside / "a").write_bytes(b"not the store's")
    assert list(store.keys(prefix)) == [key for key in keys if key.startswith(prefix)]
    assert list(store.keys(f"{outside}/")) == []


@given(key=st.text(max_size=40) | st.lists(st.text(max_size=8), max_size=6).map("/".join), data=st.binary(max_size=64))
def test_any_key_is_either_refused_or_stays_inside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, key: str, data: bytes
) -> None:
    root = tmp_path_factory.getbasetemp() / "inside"
    store = DirectoryBlobs(root)
    try:
        store.put(key, data)
    except BadInput:
        return
    try:
        assert check_key(key) == key
        assert store.get(key) == data
        assert list(store.keys(key)) == [key]
        assert (root / key).resolve().is_relative_to(root)
    finally:
        store.delete(key)

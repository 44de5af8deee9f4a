"""A proxy in front of the real Label Studio that loses requests or replies, and a listener that takes webhooks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx

Fault = Callable[[str, str], str]
"""What happens to (method, path): "pass", "lose reply" (after the server did the work), "lose request", "503"."""


def all_well(_method: str, _path: str) -> str:
    return "pass"


@dataclass
class Proxy:
    """`url` stands in for the real server; `fault` decides per request; `seen` lists (method, path)."""

    url: str = ""
    fault: Fault = all_well
    seen: list[tuple[str, str]] = field(default_factory=list)

    def count(self, method: str, part: str) -> int:
        """How many requests of this method had `part` in their path."""
        return sum(1 for m, path in self.seen if m == method and part in path)


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy to `target` on a free port of loopback."""
    state = Proxy()
    client = httpx.Client(base_url=target, timeout=60, trust_env=False)

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            state.seen.append((self.command, path))
            what = state.fault(self.command, path)
            if what == "lose request":
                self.close_connection = True
                return
            if what == "503":
                self._reply(503, b"busy", "text/plain")
                return
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
            answer = client.request(self.command, self.path, content=body, headers=kept)
            if what == "lose reply":
                self.close_connection = True
                return
            self._reply(answer.status_code, answer.content, answer.headers.get("Content-Type", ""))

        do_GET = do_POST = do_PATCH = do_DELETE = _any

        def _reply(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if status != 204:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Forward) as url:
        state.url = url
        yield state
    client.close()


@dataclass
class Listener:
    """`calls` lists (headers, body) of every POST, each answered with 200."""

    url: str = ""
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def listener() -> Iterator[Listener]:
    """A server on a free port of loopback that takes webhooks."""
    state = Listener()

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.calls.append((dict(self.headers), self.rfile.read(int(self.headers.get("Content-Length") or 0))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Take) as url:
        state.url = url
        yield state


class _Server(ThreadingHTTPServer):
    daemon_threads: ClassVar[bool] = True

    def handle_error(self, *_: object) -> None:
        pass  # clients that were killed on purpose break their connections


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

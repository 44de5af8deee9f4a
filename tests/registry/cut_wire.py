"""A way to a real server that is cut after a number of answered requests: what a killed client leaves behind."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Wire:
    """`url` leads to the server. After `left` further requests nothing passes; `requests` counts those that did."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.left: int | None = None
        self.requests = 0
        self.lock = threading.Lock()

    def lets_pass(self) -> bool:
        with self.lock:
            if self.left == 0:
                return False
            if self.left is not None:
                self.left -= 1
            self.requests += 1
            return True


@contextmanager
def wire_to(server_url: str) -> Iterator[Wire]:
    """A forwarding server on loopback. A request that passes is carried out whole, its answer returned."""
    target = urlsplit(server_url).netloc

    class Forward(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not wire.lets_pass():
                self.close_connection = True  # no answer at all: the client sees the connection end
                return
            connection = http.client.HTTPConnection(target, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    wire = Wire(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""What stands before the HTTP doors: the token and the size of a body, looked at before any of the body is read.

FastAPI reads a form, and stores its files, before a route's own checks run: a stranger could fill the disk with it.
"""

import hmac
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FORM_BYTES = 1024**3  # images in one request; more are sent in several
MAX_BODY_BYTES = 16 * 1024**2  # of everything that is no form; a hundred thousand sample ids are four


class Guard:
    """Answers 403 below /api where the bearer token is missing or wrong, and 413 to a body larger than accepted.

    A form may have `max_form_bytes`, any other body `max_body_bytes`, by its header or by counting.
    """

    def __init__(
        self, app: ASGIApp, token: str, max_form_bytes: int = MAX_FORM_BYTES, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._max_form_bytes, self._max_body_bytes = max_form_bytes, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _below_api(scope["path"]) and not self._authorised(headers):
            detail = "this path needs the header 'Authorization: Bearer TOKEN' with the service's token"
            await problem(403, "Forbidden", detail)(scope, receive, send)
            return
        form = headers.get("content-type", "").startswith("multipart/form-data")
        accepted = self._max_form_bytes if form else self._max_body_bytes
        too_large = f"the request is larger than the {accepted:,} bytes accepted: send it in several"
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > accepted:
            await problem(413, HTTPStatus(413).phrase, too_large)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > accepted:
                raise HTTPException(413, too_large)  # the one error FastAPI lets pass while it reads a form
            return message

        await self._app(scope, counted, send)

    def _authorised(self, headers: Headers) -> bool:
        # Headers come as Latin-1; a token outside of it would be no header that a client can send.
        return hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self._expected)


def _below_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


def problem(status: int, title: str, detail: str) -> JSONResponse:
    """A problem+json answer (RFC 9457). 403 and 413 hang up rather than read the rest of a body."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    headers = {"Connection": "close"} if status in (403, 413) else None
    return JSONResponse(body, status, headers, media_type="application/problem+json")

"""Failures of the predictor service as problem+json (RFC 9457): one table from error classes to status codes."""

import logging
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from hardloop.core.errors import BadImage, BadInput, BadModel, Forbidden, HardloopError, Missing, Unavailable

log = logging.getLogger("hardloop.serving")


class TooLarge(BadInput):
    """A request or an image above the service's limits."""


# The first class that fits decides, so subclasses come first.
STATUS: tuple[tuple[type[HardloopError], int], ...] = (
    (TooLarge, 413),
    (BadImage, 422),
    (BadModel, 502),
    (BadInput, 400),
    (Forbidden, 403),
    (Missing, 404),
    (Unavailable, 503),
)


def status_of(error: HardloopError) -> int:
    """The HTTP status of an error; 500 for what should not have come this far."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def problem(status: int, detail: str, **extra: Any) -> JSONResponse:
    """A problem+json answer. 503 asks the caller to come back; 413 hangs up rather than read the rest of the body."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **extra}
    headers = {503: {"Retry-After": "1"}, 413: {"Connection": "close"}}.get(status)
    return JSONResponse(content, status, headers, media_type="application/problem+json")


async def on_hardloop_error(_: Request, error: Exception) -> JSONResponse:
    """Answer one of our own errors."""
    assert isinstance(error, HardloopError)
    return problem(status_of(error), str(error))


async def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """Answer what the framework refuses: unknown paths, wrong methods."""
    status = getattr(error, "status_code", 500)
    return problem(status, str(getattr(error, "detail", HTTPStatus(status).phrase)))


async def on_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer parameters that do not validate, naming the first."""
    errors: list[dict[str, Any]] = getattr(error, "errors", list)()
    first = errors[0] if errors else {"loc": ("request",), "msg": "is not valid"}
    return problem(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


async def on_fault(request: Request, error: Exception) -> JSONResponse:
    """Answer a fault of ours without showing its inside; the log has the traceback."""
    log.error("a fault while answering %s", request.url.path, exc_info=error)
    return problem(500, "the service failed on this request; its log says why")

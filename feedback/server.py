"""The predictor service: answers with the champion, captures what it is unsure of, and changes models under load.

`create_app(provider, capture, settings)` wires it. Every answer carries the model version and the sample id. A request
is answered by one version from start to end; a swap fails none. Documented in `docs/serving.md`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from feedback import problems
from feedback.capture import Capture
from feedback.champion import CurrentModel
from feedback.requests import BodyLimit, many_uploads, one_upload
from feedback.scoring import Answer, BatchAnswer, ModelInfo, Reloaded, ServerSettings, Service
from hardloop.core.errors import Forbidden, HardloopError

__all__ = ["ServerSettings", "create_app"]


def create_app(provider: CurrentModel, capture: Capture | None, settings: ServerSettings | None = None) -> FastAPI:
    """The predictor service as an ASGI application.

    provider: which version should serve (see `champion.CurrentModel`); asked at the start and every `poll_s`.
    capture: where unsure samples go, with the labels that every version must answer; it is flushed, not closed, at the
    end. It should not be strict: then what a caller says of an image (`source`, ...) could fail their prediction.
    """
    settings = settings or ServerSettings()
    service = Service(provider, capture, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        polling = asyncio.create_task(service.poll())
        yield
        polling.cancel()
        await asyncio.get_running_loop().run_in_executor(None, service.stop)

    app = FastAPI(title="Hardloop predictor", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    for kind, handler in (
        (HardloopError, problems.on_hardloop_error),
        (HTTPException, problems.on_http_error),
        (RequestValidationError, problems.on_invalid),
        (Exception, problems.on_fault),
    ):
        app.add_exception_handler(kind, handler)
    _add_predictions(app, service)
    _add_operations(app, service)
    return app


_FORM = {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
_FORMS = {
    "type": "object",
    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {}}}
    for status, text in ((400, "a malformed request"), (413, "too large"), (422, "not an image we accept"),
                         (503, "no model serves yet, or too many requests wait"))
}  # fmt: skip


def _body(contents: dict[str, Any]) -> dict[str, Any]:
    fields = [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
        for name in ("source", "group_id", "burst_id")
    ]
    return {"parameters": fields, "requestBody": {"required": True, "content": contents}}


def _add_predictions(app: FastAPI, service: Service) -> None:
    settings = service.settings
    one = {"multipart/form-data": {"schema": _FORM}, "image/*": {"schema": {"type": "string", "format": "binary"}}}

    @app.post("/predict", responses=_PROBLEMS, openapi_extra=_body(one))
    async def predict(request: Request) -> Answer:
        """Score one image: the request's body, or the file of a form."""
        answer = await service.predict([await one_upload(request, settings.max_image_bytes)])
        return answer.predictions[0]

    @app.post("/predict/batch", responses=_PROBLEMS, openapi_extra=_body({"multipart/form-data": {"schema": _FORMS}}))
    async def predict_batch(request: Request) -> BatchAnswer:
        """Score the files of a form, all by one version. One bad image refuses the whole request, by its position."""
        return await service.predict(await many_uploads(request, settings.max_image_bytes, settings.max_batch))


def _add_operations(app: FastAPI, service: Service) -> None:
    secret = service.settings.reload_secret

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=_PROBLEMS)
    async def readyz() -> JSONResponse:
        """A model serves. `problem` says why it is not the version that should."""
        detail = {"version": service.serving().version, "problem": service.champion.problem}
        return JSONResponse({"status": "ready", **detail})

    @app.get("/model", responses=_PROBLEMS)
    async def model() -> ModelInfo:
        """The version that serves."""
        loaded = service.serving()
        card = loaded.predictor.card
        return ModelInfo(
            version=loaded.version,
            labels=list(card.labels),
            recipe=card.recipe,
            encoder=card.encoder,
            members=len(card.members),
            loaded_at=loaded.loaded_at,
        )

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        """Requests and images by version, and the capture's counters."""
        return service.stats()

    @app.post("/reload", responses=_PROBLEMS)
    async def reload(x_hardloop_secret: Annotated[str, Header()] = "") -> Reloaded:
        """Look at once which version should serve. 502 or 503, with the reason, when it cannot."""
        if secret is None or not secrets.compare_digest(x_hardloop_secret.encode(), secret.get_secret_value().encode()):
            raise Forbidden("POST /reload needs the right X-Hardloop-Secret header")
        changed = await service.refresh(insist=True)
        loaded = service.champion.current
        return Reloaded(version=None if loaded is None else loaded.version, changed=changed)

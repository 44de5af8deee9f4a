"""The HTTP doors of the service: validate, call one step or one query, return a type.

Errors are problem+json (RFC 9457); their status is decided in STATUS alone. Every path below /api needs the bearer
token, which `guard.py` looks at before a body is read; the webhook door takes only requests that carry its own secret.
"""

import logging
from http import HTTPStatus
from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from annotation.webhooks import MAX_BODY_BYTES, parse_hint
from hardloop import __version__
from hardloop.core import errors
from hardloop.core.errors import HardloopError
from hardloop.service import image_links, steps
from hardloop.service.api_forms import (
    MAX_FILES,
    Choice,
    Counted,
    ImagesTaken,
    JobAnswer,
    JobRequest,
    Key,
    RollbackRequest,
    Text,
    Withdrawal,
    given_images,
    per_file,
)
from hardloop.service.api_reading import image_of, loop_of, reading
from hardloop.service.guard import Guard, problem
from hardloop.service.jobs import Jobs

log = logging.getLogger("hardloop.api")

STATUS: dict[type[HardloopError], int] = {
    errors.BadImage: 422,
    errors.BadShape: 422,
    errors.BadAnswer: 422,
    errors.BadData: 422,
    errors.BadModel: 422,
    errors.BadInput: 400,
    errors.BadSettings: 500,
    errors.BlobMissing: 404,
    errors.Missing: 404,
    errors.Forbidden: 403,
    errors.Conflict: 409,
    errors.Busy: 409,
    errors.Leakage: 409,
    errors.ExportMismatch: 500,
    errors.Interrupted: 503,
    errors.Unavailable: 503,
}


def create_app(jobs: Jobs, token: str, webhook_secret: str) -> FastAPI:
    """The service's HTTP application over running jobs."""
    app = FastAPI(title="Hardloop", version=__version__, docs_url="/docs", redoc_url=None)
    app.add_exception_handler(HardloopError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(sa.exc.OperationalError, _no_database)
    app.add_exception_handler(sa.exc.TimeoutError, _no_database)
    app.add_exception_handler(Exception, _fault)

    app.add_middleware(Guard, token=token)
    app.include_router(_doors(jobs, webhook_secret))
    for router in (reading(jobs), _acting(jobs)):
        # The guard has checked the token by then; this one tells a reader of /docs that it is needed.
        app.include_router(router, prefix="/api/v1", dependencies=[Depends(HTTPBearer(auto_error=False))])
    return app


def _doors(jobs: Jobs, webhook_secret: str) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz")
    def readyz() -> Response:
        """Work is scheduled, and every loop's last look around went well; 503 and the reasons where not."""
        trouble = {loop: dict(found) for loop, found in jobs.errors.items() if found}
        if not jobs.alive:
            trouble["service"] = {"schedule": "nothing is scheduled any more: restart the service, and see its log"}
        return JSONResponse({"status": "trouble" if trouble else "ok", "errors": trouble}, 503 if trouble else 200)

    @router.post("/webhooks/label-studio/{loop}", status_code=202)
    async def webhook(loop: str, request: Request) -> dict[str, bool]:
        """Label Studio says that something happened: a hint to look, never a fact to store."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise errors.BadInput(f"a webhook of more than {MAX_BODY_BYTES} bytes is not read")
        hint = parse_hint(dict(request.headers), bytes(body), webhook_secret)
        context = loop_of(jobs, loop)
        # Label Studio gives us a second, inside the annotator's own request: note it, and let the tick do the work.
        await run_in_threadpool(context.work.add_webhook, hint.action, hint.annotation_ids)
        if hint.relevant:
            jobs.hint(loop)
        return {"noted": True}

    @router.get("/images/{loop}/{sample_id}/{signature}")
    def linked_image(loop: str, sample_id: str, signature: str) -> Response:
        """A sample's image for the annotation tool, which shows our signature instead of a token."""
        if not image_links.valid(webhook_secret, loop, sample_id, signature):
            raise errors.Forbidden("this image address was not signed by this service")
        answer = image_of(loop_of(jobs, loop), sample_id)
        answer.headers["Access-Control-Allow-Origin"] = "*"
        return answer

    return router


def _acting(jobs: Jobs) -> APIRouter:
    router = APIRouter()

    @router.post("/loops/{loop}/images", status_code=201)
    def upload(
        loop: str,
        files: Annotated[list[UploadFile], File(max_length=MAX_FILES)],
        role: Annotated[Literal["pool", "seed", "legacy"], Form()] = "pool",
        source: Annotated[Text, Form(min_length=1, max_length=200)] = "upload",
        labels: Annotated[str, Form(description="JSON list, one label or null per file")] = "null",
        groups: Annotated[str, Form(description="JSON list, the group or null per file")] = "null",
    ) -> ImagesTaken:
        """Take images: unlabelled ones into the pool, labelled ones as seed (to train on) or legacy (to measure on)."""
        given = given_images(files, role, source, per_file("labels", labels, files), per_file("groups", groups, files))
        return ImagesTaken(**steps.add_images(loop_of(jobs, loop), given))

    @router.post("/loops/{loop}/jobs", status_code=202)
    def submit(loop: str, body: JobRequest, idempotency_key: Key = None) -> JobAnswer:
        """Queue steps. The same Idempotency-Key again returns the same job and runs nothing twice."""
        arguments = {"budget": body.budget, "manual": body.manual, "deleted": body.deleted}
        # No loop's name holds a colon, so two loops' keys never make one id.
        job_id = None if idempotency_key is None else f"{loop}:{idempotency_key}"
        return JobAnswer.of(jobs.job(jobs.submit(loop, body.steps, arguments, job_id)))

    @router.post("/loops/{loop}/queue/approve")
    def approve(loop: str, body: Choice) -> Counted:
        """Let queue items become tasks."""
        return Counted(changed=loop_of(jobs, loop).work.decide("approved", body.actor, body.sample_ids))

    @router.post("/loops/{loop}/queue/reject")
    def reject(loop: str, body: Choice) -> Counted:
        """Never ask annotators about these."""
        return Counted(changed=loop_of(jobs, loop).work.decide("rejected", body.actor, body.sample_ids))

    @router.post("/loops/{loop}/samples/withdraw")
    def withdraw(loop: str, body: Withdrawal) -> Counted:
        """Take samples out for good: never mined, sent, trained on or measured on again. Their history stays."""
        return Counted(changed=steps.withdraw(loop_of(jobs, loop), body.sample_ids, body.reason, body.actor))

    @router.post("/loops/{loop}/rollback")
    def rollback(loop: str, body: RollbackRequest) -> dict[str, str]:
        """Serve the version before the champion again."""
        return {"champion": steps.roll_back(loop_of(jobs, loop), body.reason, body.actor)}

    return router


def status_of(error: HardloopError) -> int:
    """The HTTP status of an error: that of its class, or of the nearest base class in the table."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


async def _problem(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, HardloopError)
    return problem(status_of(error), type(error).__name__, str(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, "BadRequest", f"{where}: {first['msg']}")


async def _no_such_path(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, HTTPException)
    return problem(error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail))


async def _no_database(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    # The error itself would show the SQL; its cause is the server's or the pool's own sentence.
    log.warning("the database does not answer: %s", getattr(error, "orig", error))
    return problem(503, "Unavailable", "the database does not answer: try again later, its reason is in the log")


async def _fault(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return problem(500, "Internal Server Error", "a fault of Hardloop's own: see the service's log")

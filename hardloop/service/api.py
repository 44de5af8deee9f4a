"""The HTTP doors of the service: validate, call one step or one query, return a type.

Errors are problem+json (RFC 9457); their status is decided in STATUS alone. Every path below /api needs the bearer
token, which `guard.py` looks at before a body is read; the webhook door takes only requests that carry its own secret.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from annotation.webhooks import MAX_BODY_BYTES, parse_hint
from hardloop import __version__
from hardloop.core import errors, images
from hardloop.core.errors import HardloopError
from hardloop.service import image_links, retraining, schedule, steps
from hardloop.service.guard import Guard, problem
from hardloop.service.intake import GivenImage
from hardloop.service.jobs import Job, Jobs
from hardloop.service.loop import Loop

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
MAX_FILES = 1000  # images in one request
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # PostgreSQL takes no NUL
Key = Annotated[str | None, Header(max_length=100, pattern=r"^[A-Za-z0-9._-]+$")]  # it becomes part of an address


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobRequest(_Body):
    """Steps of one lane to run in order. budget: for mine. manual: train without waiting for the trigger.

    deleted: for collect, tasks that are all gone at once, or in another project, were deleted: take back their answers.
    """

    steps: Annotated[list[str], Field(min_length=1, max_length=6)]
    budget: Annotated[int | None, Field(ge=1, le=100_000)] = None
    manual: bool = False
    deleted: bool = False


class JobAnswer(BaseModel):
    """A job: waiting, running, done or failed. result: by step, once done."""

    job_id: str
    state: str
    result: dict[str, Any] | None
    error: str | None


class Choice(_Body):
    """Queue items to decide about; null means all that wait. actor: who decides, for the history."""

    sample_ids: list[str] | None = None
    actor: Annotated[Text, Field(min_length=1, max_length=200)] = "reviewer"


class Counted(BaseModel):
    """How many things changed."""

    changed: int


class ImagesTaken(BaseModel):
    """What came of uploaded images. refused ones are listed with their reasons under /refusals."""

    new: int
    known: int
    refused: int


class Withdrawal(_Body):
    """Samples to take out of the loop for good, and why."""

    sample_ids: Annotated[list[Text], Field(min_length=1, max_length=10_000)]
    reason: Annotated[Text, Field(min_length=1, max_length=2000)]
    actor: Annotated[Text, Field(min_length=1, max_length=200)] = "operator"


class RollbackRequest(_Body):
    """Why the version before the champion should serve again."""

    reason: Annotated[Text, Field(min_length=1, max_length=2000)]
    actor: Annotated[Text, Field(min_length=1, max_length=200)] = "operator"


def create_app(jobs: Jobs, token: str, webhook_secret: str) -> FastAPI:
    """The service's HTTP application over running jobs."""
    app = FastAPI(title="Hardloop", version=__version__, docs_url="/docs", redoc_url=None)
    app.add_exception_handler(HardloopError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(Exception, _fault)

    app.add_middleware(Guard, token=token)
    app.include_router(_doors(jobs, webhook_secret))
    # The guard has checked the token by then; this one tells a reader of /docs that it is needed.
    app.include_router(_loops(jobs), prefix="/api/v1", dependencies=[Depends(HTTPBearer(auto_error=False))])
    return app


def _doors(jobs: Jobs, webhook_secret: str) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz")
    def readyz() -> Response:
        """Every loop's last look at its surroundings went well; 503 and the reasons where not."""
        trouble = {loop: found for loop, found in jobs.errors.items() if found}
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
        context = _loop(jobs, loop)
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
        answer = _image(_loop(jobs, loop), sample_id)
        answer.headers["Access-Control-Allow-Origin"] = "*"
        return answer

    return router


def _loops(jobs: Jobs) -> APIRouter:
    router = APIRouter()

    @router.get("/loops")
    def loops() -> list[str]:
        """The names of this service's loops."""
        return sorted(jobs.loops)

    @router.get("/loops/{loop}")
    def status(loop: str) -> dict[str, Any]:
        """How a loop stands: counts of every stage, the champion, what the next training waits for, last errors."""
        return {**loop_status(_loop(jobs, loop), jobs.errors[loop]), "progress": jobs.progress.get(loop)}

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
        given = _given(files, role, source, _per_file("labels", labels, files), _per_file("groups", groups, files))
        return ImagesTaken(**steps.add_images(_loop(jobs, loop), given))

    @router.post("/loops/{loop}/jobs", status_code=202)
    def submit(loop: str, body: JobRequest, idempotency_key: Key = None) -> JobAnswer:
        """Queue steps. The same Idempotency-Key again returns the same job and runs nothing twice."""
        arguments = {"budget": body.budget, "manual": body.manual, "deleted": body.deleted}
        # No loop's name holds a colon, so two loops' keys never make one id.
        job_id = None if idempotency_key is None else f"{loop}:{idempotency_key}"
        return _answer(jobs.job(jobs.submit(loop, body.steps, arguments, job_id)))

    @router.get("/jobs/{job_id}")
    def job(job_id: Text) -> JobAnswer:
        """How a job is."""
        return _answer(jobs.job(job_id))

    @router.get("/loops/{loop}/queue")
    def queue(
        loop: str,
        state: Literal["queued", "approved", "rejected"] | None = None,
        selection: Text | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[int, Query(ge=0, description="`next` of the page before")] = 0,
    ) -> dict[str, Any]:
        """Queue items with their receipts, the most valuable first."""
        items = _loop(jobs, loop).work.queue(state, selection, limit + 1, after)
        return {"items": items[:limit], "next": after + limit if len(items) > limit else None}

    @router.post("/loops/{loop}/queue/approve")
    def approve(loop: str, body: Choice) -> Counted:
        """Let queue items become tasks."""
        return Counted(changed=_loop(jobs, loop).work.decide("approved", body.actor, body.sample_ids))

    @router.post("/loops/{loop}/queue/reject")
    def reject(loop: str, body: Choice) -> Counted:
        """Never ask annotators about these."""
        return Counted(changed=_loop(jobs, loop).work.decide("rejected", body.actor, body.sample_ids))

    @router.get("/loops/{loop}/selections")
    def selections(loop: str) -> list[dict[str, Any]]:
        """Every selection with its terms and what it fell short of."""
        return _loop(jobs, loop).work.selections()

    @router.post("/loops/{loop}/samples/withdraw")
    def withdraw(loop: str, body: Withdrawal) -> Counted:
        """Take samples out for good: never mined, sent, trained on or measured on again. Their history stays."""
        return Counted(changed=steps.withdraw(_loop(jobs, loop), body.sample_ids, body.reason, body.actor))

    @router.get("/loops/{loop}/samples/{sample_id}")
    def sample(loop: str, sample_id: Text) -> dict[str, Any]:
        """Everything known of one sample: where it came from, what models said, why it was picked, who answered."""
        return _history(_loop(jobs, loop), sample_id)

    @router.get("/loops/{loop}/samples/{sample_id}/image")
    def image(loop: str, sample_id: Text) -> Response:
        """The stored image."""
        return _image(_loop(jobs, loop), sample_id)

    @router.get("/loops/{loop}/labels")
    def labels(loop: str) -> list[dict[str, Any]]:
        """Agreed labels; null where annotators disagree or took their answers back."""
        return _loop(jobs, loop).work.labels()

    @router.get("/loops/{loop}/annotations")
    def annotations(loop: str) -> list[dict[str, Any]]:
        """Every answer collected, deleted and refused ones included."""
        return _loop(jobs, loop).work.annotations()

    @router.get("/loops/{loop}/tasks")
    def tasks(loop: str) -> list[dict[str, Any]]:
        """Every task that was sent, with its number in Label Studio."""
        return _loop(jobs, loop).work.tasks()

    @router.get("/loops/{loop}/webhooks")
    def webhooks(loop: str) -> list[dict[str, Any]]:
        """Hints received from Label Studio."""
        return _loop(jobs, loop).work.webhooks()

    @router.get("/loops/{loop}/refusals")
    def refusals(loop: str) -> list[dict[str, str]]:
        """What was turned away at a door, and why."""
        found = _loop(jobs, loop).samples.refusals()
        return [{"kind": kind, "reference": reference, "reason": reason} for kind, reference, reason in found]

    @router.get("/loops/{loop}/datasets")
    def datasets(loop: str) -> list[dict[str, Any]]:
        """Dataset versions, the oldest first."""
        return _loop(jobs, loop).lineage.datasets()

    @router.get("/loops/{loop}/trainings")
    def trainings(loop: str) -> list[dict[str, Any]]:
        """Trainings with their state, the oldest first."""
        return _loop(jobs, loop).lineage.trainings()

    @router.get("/loops/{loop}/decisions")
    def decisions(loop: str) -> list[dict[str, Any]]:
        """The gate's verdicts with their numbers, the oldest first."""
        return _loop(jobs, loop).lineage.decisions()

    @router.post("/loops/{loop}/rollback")
    def rollback(loop: str, body: RollbackRequest) -> dict[str, str]:
        """Serve the version before the champion again."""
        return {"champion": steps.roll_back(_loop(jobs, loop), body.reason, body.actor)}

    @router.get("/loops/{loop}/events")
    def events(loop: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """What happened, the newest first."""
        return _loop(jobs, loop).work.events(limit)

    return router


def loop_status(loop: Loop, trouble: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of every stage of a loop."""
    champion = loop.registry.champion()
    decision = retraining.due(loop)
    labels = loop.work.labels()
    return {
        "loop": loop.name,
        "labels": list(loop.settings.labels),
        "samples": loop.samples.count(),
        "queue": loop.work.counts(),
        "given_labels": sum(row["origin"] in ("seed", "legacy") for row in labels),
        "disputed": sum(row["label"] is None for row in labels),
        "refusals": len(loop.samples.refusals()),
        "webhooks": len(loop.work.webhooks()),
        "datasets": len(loop.lineage.datasets()),
        "trainings": {t["training_key"]: t["state"] for t in loop.lineage.trainings()},
        "undecided": schedule.undecided(loop),
        "champion": champion.version if champion else None,
        "next_training": {"due": decision.fire, "reason": decision.reason, "waits_for": decision.waits_for},
        "errors": dict(trouble),
    }


def _history(loop: Loop, sample_id: str) -> dict[str, Any]:
    sample = _known(loop, sample_id)
    items = [item for item in loop.work.queue() if item["sample_id"] == sample_id]
    labels = [row for row in loop.work.labels() if row["sample_id"] == sample_id]
    return {
        "sample": {name: getattr(sample, name) for name in type(sample).__dataclass_fields__},
        "predictions": [
            {
                "model_version": p.model_version,
                "probabilities": dict(zip(loop.settings.labels, map(float, p.probs_C), strict=True)),
                "policies": dict(p.policies),
                "at": p.at,
            }
            for p in loop.samples.predictions_of(sample_id)
        ],
        "queue_item": items[0] if items else None,
        "annotations": loop.work.annotations(sample_id),
        "label": labels[0] if labels else None,
    }


def _image(loop: Loop, sample_id: str) -> Response:
    key = _known(loop, sample_id).image_key
    data = loop.blobs.get(key, images.MAX_BYTES)
    # Other writers may name their images as they like.
    media_type = images.CONTENT_TYPES.get(key.rsplit(".", 1)[-1], "application/octet-stream")
    return Response(data, media_type=media_type)


def _known(loop: Loop, sample_id: str) -> Any:
    found = loop.samples.get([sample_id])
    if sample_id not in found:
        raise errors.Missing(f"no sample {sample_id!r} in loop {loop.name!r}")
    return found[sample_id]


def _loop(jobs: Jobs, name: str) -> Loop:
    if name not in jobs.loops:
        raise errors.Missing(f"no loop {name!r}: there are {', '.join(sorted(jobs.loops))}")
    return jobs.loops[name]


def _answer(job: Job) -> JobAnswer:
    return JobAnswer(
        job_id=job.job_id, state=job.state, result=None if job.result is None else dict(job.result), error=job.error
    )


def _per_file(name: str, text: str, files: list[UploadFile]) -> list[str | None]:
    """A form field that is a JSON list with a text or null for every file; null for the whole list is all null."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise errors.BadInput(f"{name} is not JSON: expected a list with one text or null per file") from None
    if given is None:
        return [None] * len(files)
    if (
        not isinstance(given, list)
        or len(given) != len(files)
        or not all(item is None or (isinstance(item, str) and item) for item in given)
    ):
        raise errors.BadInput(f"{name} must be a list of {len(files)}, one text that is not empty or null per file")
    return given


def _given(
    files: list[UploadFile], role: str, source: str, labels: list[str | None], groups: list[str | None]
) -> list[GivenImage]:
    if role != "pool" and None in labels:
        raise errors.BadInput(f"role {role!r} needs a label for every file")
    if role == "pool" and any(label is not None for label in labels):
        raise errors.BadInput("labelled images are sent with role 'seed' (to train on) or 'legacy' (to measure on)")
    # One byte more than accepted is enough for the check to refuse an image by its size.
    return [
        GivenImage(file.filename or f"file {number}", file.file.read(images.MAX_BYTES + 1), source, role, label, group)
        for number, (file, label, group) in enumerate(zip(files, labels, groups, strict=True))
    ]


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


async def _fault(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return problem(500, "Internal Server Error", "a fault of Hardloop's own: see the service's log")

"""The HTTP doors that only look: how loops stand, and what is known of their samples, people and models."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from hardloop.core import images
from hardloop.core.errors import HardloopError, Missing
from hardloop.service import comparing, retraining, schedule
from hardloop.service.api_forms import MAX_NUMBER, JobAnswer, Text
from hardloop.service.jobs import Jobs
from hardloop.service.loop import Loop
from training.datasets import Diff


def reading(jobs: Jobs) -> APIRouter:
    """The routes that change nothing."""
    router = APIRouter()

    @router.get("/loops")
    def loops() -> list[str]:
        """The names of this service's loops."""
        return sorted(jobs.loops)

    @router.get("/loops/{loop}")
    def status(loop: str) -> dict[str, Any]:
        """How a loop stands: counts of every stage, the champion, what the next training waits for, last errors."""
        return {**loop_status(loop_of(jobs, loop), jobs.errors[loop]), "progress": jobs.progress.get(loop)}

    @router.get("/jobs/{job_id}")
    def job(job_id: Text) -> JobAnswer:
        """How a job is."""
        return JobAnswer.of(jobs.job(job_id))

    @router.get("/loops/{loop}/queue")
    def queue(
        loop: str,
        state: Literal["queued", "approved", "rejected"] | None = None,
        selection: Text | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="`next` of the page before")] = 0,
    ) -> dict[str, Any]:
        """Queue items with their receipts, the most valuable first."""
        items = loop_of(jobs, loop).work.queue(state, selection, limit + 1, after)
        return {"items": items[:limit], "next": after + limit if len(items) > limit else None}

    @router.get("/loops/{loop}/selections")
    def selections(loop: str) -> list[dict[str, Any]]:
        """Every selection with its terms and what it fell short of."""
        return loop_of(jobs, loop).work.selections()

    @router.get("/loops/{loop}/samples/{sample_id}")
    def sample(loop: str, sample_id: Text) -> dict[str, Any]:
        """Everything known of one sample: where it came from, what models said, why it was picked, who answered."""
        return _history(loop_of(jobs, loop), sample_id)

    @router.get("/loops/{loop}/samples/{sample_id}/image")
    def image(loop: str, sample_id: Text) -> Response:
        """The stored image."""
        return image_of(loop_of(jobs, loop), sample_id)

    @router.get("/loops/{loop}/labels")
    def labels(loop: str) -> list[dict[str, Any]]:
        """Agreed labels; null where annotators disagree or took their answers back."""
        return loop_of(jobs, loop).work.labels()

    @router.get("/loops/{loop}/annotations")
    def annotations(loop: str) -> list[dict[str, Any]]:
        """Every answer collected, deleted and refused ones included."""
        return loop_of(jobs, loop).work.annotations()

    @router.get("/loops/{loop}/tasks")
    def tasks(loop: str) -> list[dict[str, Any]]:
        """Every task that was sent, with its number in Label Studio."""
        return loop_of(jobs, loop).work.tasks()

    @router.get("/loops/{loop}/webhooks")
    def webhooks(loop: str) -> list[dict[str, Any]]:
        """Hints received from Label Studio."""
        return loop_of(jobs, loop).work.webhooks()

    @router.get("/loops/{loop}/refusals")
    def refusals(loop: str) -> list[dict[str, str]]:
        """What was turned away at a door, and why."""
        found = loop_of(jobs, loop).samples.refusals()
        return [{"kind": kind, "reference": reference, "reason": reason} for kind, reference, reason in found]

    @router.get("/loops/{loop}/datasets")
    def datasets(loop: str) -> list[dict[str, Any]]:
        """Dataset versions, the oldest first."""
        return loop_of(jobs, loop).lineage.datasets()

    @router.get("/loops/{loop}/datasets/compare")
    def datasets_compared(
        loop: str,
        before: Annotated[int, Query(ge=1, le=MAX_NUMBER, description="number of the earlier version")],
        after: Annotated[int, Query(ge=1, le=MAX_NUMBER, description="number of the later version")],
    ) -> Diff:
        """What changed between two dataset versions: samples added, removed, relabelled (id, old, new), or moved."""
        return comparing.compare_datasets(loop_of(jobs, loop), before, after)

    @router.get("/loops/{loop}/models")
    def models(loop: str) -> list[dict[str, Any]]:
        """Model versions with their training, dataset and decision, the oldest first; one may be the champion."""
        return comparing.models(loop_of(jobs, loop))

    @router.get("/loops/{loop}/models/compare")
    def models_compared(loop: str, before: Text, after: Text) -> dict[str, Any]:
        """Two model versions on the samples that both were evaluated on, by slice and class, with intervals."""
        return comparing.compare_models(loop_of(jobs, loop), before, after)

    @router.get("/loops/{loop}/trainings")
    def trainings(loop: str) -> list[dict[str, Any]]:
        """Trainings with their state, the oldest first."""
        return loop_of(jobs, loop).lineage.trainings()

    @router.get("/loops/{loop}/decisions")
    def decisions(loop: str) -> list[dict[str, Any]]:
        """The gate's verdicts with their numbers, the oldest first."""
        return loop_of(jobs, loop).lineage.decisions()

    @router.get("/loops/{loop}/events")
    def events(loop: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """What happened, the newest first."""
        return loop_of(jobs, loop).work.events(limit)

    return router


def loop_status(loop: Loop, trouble: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of every stage of a loop. Without a registry to ask, its champion is None and `errors` says why."""
    champion, trouble = None, dict(trouble)
    try:
        champion = loop.registry.champion()
    except HardloopError as error:
        trouble["registry"] = str(error)
    decision = retraining.due(loop)
    labels = loop.work.labels()
    return {
        "loop": loop.name,
        "labels": list(loop.settings.labels),
        "samples": loop.samples.count(),
        "queue": loop.work.counts(),
        "unasked": loop.samples.unasked(),
        "mines_from": loop.settings.budget if loop.settings.mine == "automatic" else None,
        "given_labels": sum(row["origin"] in ("seed", "legacy") for row in labels),
        "disputed": sum(row["label"] is None for row in labels),
        "refusals": len(loop.samples.refusals()),
        "webhooks": loop.work.webhook_count(),
        "datasets": len(loop.lineage.datasets()),
        "trainings": {t["training_key"]: t["state"] for t in loop.lineage.trainings()},
        "undecided": schedule.undecided(loop),
        "champion": champion.version if champion else None,
        "next_training": {"due": decision.fire, "reason": decision.reason, "waits_for": decision.waits_for},
        "errors": trouble,
    }


def loop_of(jobs: Jobs, name: str) -> Loop:
    if name not in jobs.loops:
        raise Missing(f"no loop {name!r}: there are {', '.join(sorted(jobs.loops))}")
    return jobs.loops[name]


def image_of(loop: Loop, sample_id: str) -> Response:
    key = _known(loop, sample_id).image_key
    data = loop.blobs.get(key, images.MAX_BYTES)
    # Other writers may name their images as they like.
    media_type = images.CONTENT_TYPES.get(key.rsplit(".", 1)[-1], "application/octet-stream")
    return Response(data, media_type=media_type)


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


def _known(loop: Loop, sample_id: str) -> Any:
    found = loop.samples.get([sample_id])
    if sample_id not in found:
        raise Missing(f"no sample {sample_id!r} in loop {loop.name!r}")
    return found[sample_id]

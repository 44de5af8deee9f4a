"""The pool a selection looks at: who may be picked, with fresh predictions and embeddings for everyone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardloop.core.fingerprint import first_matches
from hardloop.core.ports import BlobStore, Encoder, Progress, Scorer
from hardloop.core.records import Pool, PoolState
from hardloop.service import database as db
from hardloop.service import stored_images
from hardloop.service.embeddings import EmbeddingStore
from hardloop.service.samples import MINED, Sample, Samples, StoredPrediction
from hardloop.service.work import Work


@dataclass(frozen=True, slots=True)
class ServingModel:
    """The champion as mining sees it: its version, the space its embeddings live in, and a way to ask it."""

    version: str
    encoder: str
    scorer: Scorer


def refresh(
    samples: Samples, embeddings: EmbeddingStore, blobs: BlobStore, encoder: Encoder,
    serving: ServingModel | None, progress: Progress,
) -> tuple[str, set[str]]:  # fmt: skip
    """Make sure that every sample that may be mined has an embedding, and a prediction of the serving model.

    Predictions of an earlier champion say nothing about what the present one is unsure of, so such samples are scored
    again. Returns the encoder whose space the selection works in (the champion's, or the built-in one before there is
    a model), and the samples that could not be looked at as their image is gone. What is there already is not made
    again, so an interrupted call goes on where it stopped.
    """
    space = serving.encoder if serving else encoder.version
    embedded = set(embeddings.load(space)[0])
    said = samples.predictions(serving.version) if serving else {}
    # A user's own model may have logged under the same version name; its numbers are not the champion's.
    predicted = {sample for sample, prediction in said.items() if prediction.encoder == space}
    everyone = [s for s in samples.all() if s.role in MINED]
    # Labelled samples need a place in the space, but nobody asks what the model thinks of its own training set.
    stale = [
        s for s in everyone
        if s.sample_id not in embedded or (serving and s.role != "seed" and s.sample_id not in predicted)
    ]  # fmt: skip
    done, lost = 0, {s.sample_id for s in stale}
    for part, data in stored_images.read(samples, blobs, stale):
        if serving is None:
            vectors_ND = encoder.encode(data)
        else:
            scores = serving.scorer.score(data)
            vectors_ND = np.asarray(scores.embeddings_ND, dtype=np.float32)
            samples.predict(
                [
                    StoredPrediction(
                        s.sample_id,
                        serving.version,
                        scores.probs_NC[i],
                        scores.member_probs_MNC[:, i],
                        serving.encoder,
                        {},
                        None,
                        db.now(),
                    )
                    for i, s in enumerate(part)
                    if s.sample_id not in predicted
                ]
            )
        new = [i for i, s in enumerate(part) if s.sample_id not in embedded]
        embeddings.add(space, [part[i].sample_id for i in new], vectors_ND[new])
        lost.difference_update(s.sample_id for s in part)
        done += len(part)
        progress("scoring the pool", done, len(stale))
    return space, lost


def assemble(
    samples: Samples, work: Work, embeddings: EmbeddingStore, space: str, version: str | None,
    labels: tuple[str, ...], lost: Collection[str] = (),
) -> Pool:  # fmt: skip
    """The pool of a selection, from what the database and the embedding store hold. lost: nobody is asked about."""
    embedded_ids, vectors_ND = embeddings.load(space)
    row_of = {sample: i for i, sample in enumerate(embedded_ids)}
    everyone = samples.all()
    rows = [s for s in everyone if s.role in MINED and s.sample_id in row_of]
    states, audit_asked = _states(rows, work, _like_held_out(everyone), lost)
    label_index = {label: i for i, label in enumerate(labels)}
    agreed = {row["sample_id"]: label_index.get(row["label"], -1) for row in work.labels()}
    probs_NC, members_MNC = _probabilities(rows, samples.predictions(version) if version else {}, len(labels))
    take = np.array([row_of[s.sample_id] for s in rows], dtype=np.int64)
    return Pool(
        ids=tuple(s.sample_id for s in rows),
        embeddings_ND=vectors_ND[take] if len(rows) else np.zeros((0, max(1, vectors_ND.shape[1])), dtype=np.float32),
        state_N=states,
        labels_N=np.array([agreed.get(s.sample_id, -1) for s in rows], dtype=np.int64),
        n_classes=len(labels),
        probs_NC=probs_NC,
        member_probs_MNC=members_MNC,
        groups=tuple(s.group_id for s in rows),
        bursts=tuple(s.burst_id or "" for s in rows),
        sources=tuple(s.source for s in rows),
        audit_asked_N=audit_asked,
        asked_before=work.counts()["items"],
    )


def _states(
    rows: Sequence[Sample], work: Work, held_out: set[str], lost: Collection[str]
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    labelled = {row["sample_id"] for row in work.labels() if row["label"] is not None}
    items = {item["sample_id"]: item for item in work.queue()}
    skipped = _given_up(work)
    states = np.full(len(rows), PoolState.ELIGIBLE, dtype=np.int8)
    asked = np.zeros(len(rows), dtype=np.bool_)
    for i, sample in enumerate(rows):
        item = items.get(sample.sample_id)
        asked[i] = item is not None or sample.sample_id in lost
        if sample.role == "audit":
            states[i] = PoolState.AUDIT
        elif sample.sample_id in labelled:
            states[i] = PoolState.LABELLED
        elif sample.sample_id in held_out or (item is None and sample.sample_id in lost):
            # A look-alike's label could never be trained on (training/leakage.py); a lost image nobody can look at.
            states[i] = PoolState.REJECTED
        elif item is not None:
            gone = item["state"] == "rejected" or item["deleted_at"] is not None or sample.sample_id in skipped
            states[i] = PoolState.REJECTED if gone else PoolState.QUEUED
    return states, asked


def _like_held_out(everyone: Sequence[Sample]) -> set[str]:
    """Samples that look the same as one that is there to measure on: of the audit holdout, or brought as legacy."""
    held = [s.fingerprint for s in everyone if s.role in ("audit", "legacy")]
    others = [s for s in everyone if s.role not in ("audit", "legacy", "gone")]
    return {others[i].sample_id for i in first_matches([s.fingerprint for s in others], held)}


def _given_up(work: Work) -> set[str]:
    """Samples that every annotator who saw them skipped: nobody will answer, so they cover nothing."""
    skipped: dict[str, bool] = {}
    for answer in work.annotations():
        if answer["deleted_at"] is None:
            skipped[answer["sample_id"]] = skipped.get(answer["sample_id"], True) and bool(answer["skipped"])
    return {sample for sample, everyone in skipped.items() if everyone}


def _probabilities(
    rows: Sequence[Sample], predictions: dict[str, StoredPrediction], n_classes: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    if not predictions:
        return None, None
    probs_NC = np.full((len(rows), n_classes), np.nan, dtype=np.float32)
    n_members = max((len(p.member_probs_MC) for p in predictions.values() if p.member_probs_MC is not None), default=0)
    members_MNC = np.full((n_members, len(rows), n_classes), np.nan, dtype=np.float32)
    for i, sample in enumerate(rows):
        prediction = predictions.get(sample.sample_id)
        if prediction is not None:
            probs_NC[i] = prediction.probs_C
            if prediction.member_probs_MC is not None:
                members_MNC[: len(prediction.member_probs_MC), i] = prediction.member_probs_MC
    return probs_NC, members_MNC if n_members else None

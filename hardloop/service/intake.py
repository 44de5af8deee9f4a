"""From stored bytes to samples: every image and capture record is looked at before the loop believes it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardloop.core import capture_records, ids, images
from hardloop.core.errors import BadData, BadInput, BlobMissing
from hardloop.core.fingerprint import fingerprint
from hardloop.core.ports import BlobStore, Encoder
from hardloop.core.records import CaptureRecord, Floats
from hardloop.service.samples import Sample, Samples, StoredPrediction
from hardloop.service.work import GIVEN, Work

_MAX_VERSION = 256  # characters of a model version, as Capture takes them and a selection's row holds them
_READERS = 8  # concurrent reads: S3 answers in milliseconds, decoding is the rest


@dataclass(slots=True)
class Intake:
    """What came of a batch: samples with their images' bytes, predictions, and what was turned away and why."""

    samples: list[Sample] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    predictions: list[StoredPrediction] = field(default_factory=list)
    refusals: list[tuple[str, str, str]] = field(default_factory=list)
    records: int = 0


@dataclass(frozen=True, slots=True)
class GivenImage:
    """An image handed in by a person or a program: encoded bytes and where they come from.

    label: a known label, or None. role: "pool" for what may be mined, "seed" and "legacy" for labelled samples.
    """

    name: str
    image: bytes
    source: str
    role: str = "pool"
    label: str | None = None
    group_id: str | None = None


def read_capture_file(blobs: BlobStore, key: str, loop: str, labels: tuple[str, ...], audit_share: float) -> Intake:
    """The samples and predictions of one capture file, each image read, checked against its id and decoded.

    Whatever is wrong with a record or its image becomes a refusal. Raises Unavailable where the store is away: the
    file is then read again later, nothing is lost.
    """
    out = Intake()
    try:
        records = capture_records.read(blobs.get(key, capture_records.MAX_BYTES), key)
    except BadInput as error:
        out.refusals.append(("capture file", key, str(error)))
        return out
    out.records = len(records)
    with ThreadPoolExecutor(_READERS) as readers:
        results = readers.map(lambda record: _sample_of(blobs, record, loop, labels, audit_share), records)
        for number, (record, result) in enumerate(zip(records, results, strict=True)):
            if isinstance(result, BadInput | BlobMissing):
                out.refusals.append(("capture record", f"{key}#{number}", str(result)))
                continue
            sample, data = result
            out.samples.append(sample)
            out.images.append(data)
            out.predictions.append(_prediction(record, labels))
    return out


def check_agreement(given: Sequence[GivenImage]) -> None:
    """Raises BadData naming two files that are one image with different labels: which is right, only a person knows."""
    first: dict[str, GivenImage] = {}
    for item in given:
        if item.label is None:
            continue
        other = first.setdefault(ids.sample_id(item.image), item)
        if other.label != item.label:
            raise BadData(
                f"{other.name!r} and {item.name!r} are the same image, labelled {other.label!r} and {item.label!r}: "
                "leave out the wrong one"
            )


def store_given(blobs: BlobStore, given: Sequence[GivenImage], loop: str, audit_share: float, at: datetime) -> Intake:
    """Check and store images that were handed in. Unusable ones become refusals naming them; the others are kept."""
    out = Intake(records=len(given))

    def put(item: GivenImage) -> tuple[Sample, bytes] | BadInput:
        try:
            _check_text(item.name, source=item.source, group_id=item.group_id)
            facts, print_ = _looked_at(item.image, item.name)
        except BadInput as error:
            return error
        sample = ids.sample_id(item.image)
        key = ids.image_key(sample, facts.suffix)
        blobs.put_new(key, item.image, images.CONTENT_TYPES[facts.suffix])
        group = item.group_id or sample
        role = item.role
        if role == "pool" and ids.reserved(group, loop, audit_share):
            role = "audit"
        return (
            Sample(sample, key, item.source, group, None, role, facts.width, facts.height, print_, at),
            item.image,
        )

    with ThreadPoolExecutor(_READERS) as writers:
        for item, result in zip(given, writers.map(put, given), strict=True):
            if isinstance(result, BadInput):
                out.refusals.append(("image", item.name, str(result)))
            else:
                out.samples.append(result[0])
                out.images.append(result[1])
    return out


def take_labels(samples: Samples, work: Work, given: Sequence[GivenImage]) -> list[tuple[str, str, str]]:
    """Store the labels that came with stored images. Returns, and remembers, a refusal for each that contradicts what
    is known of its image: another label, another role, or an image of the audit holdout.
    """
    labelled = [(ids.sample_id(item.image), item) for item in given if item.label is not None and item.role != "pool"]
    stored = samples.get({sample for sample, _ in labelled})
    rows: dict[str, Mapping[str, Any]] = {row["sample_id"]: row for row in work.labels() if row["label"] is not None}
    taken: dict[str, GivenImage] = {}
    refusals: list[tuple[str, str, str]] = []

    def refused(sample: str, item: GivenImage) -> bool:
        reason = _contradiction(item, stored[sample].role, rows.get(sample))
        if reason is not None:
            refusals.append(("label", f"{item.name} (sample {sample})", f"{item.name}: {reason}"))
        return reason is not None

    for sample, item in labelled:
        if sample in stored and not refused(sample, item):
            taken[sample] = item
            rows.setdefault(sample, {"label": item.label, "origin": item.role})
    legacy = [sample for sample, item in taken.items() if item.role == "legacy"]
    samples.hold_out(legacy)  # before the label is there: nothing held out is ever seen as one to train on
    for role in GIVEN:
        rows.update(work.give_labels({s: str(i.label) for s, i in taken.items() if i.role == role}, role))
    for sample, item in taken.items():
        refused(sample, item)  # annotators, or another upload, may have been faster
    samples.refuse(refusals)
    return refusals


def _contradiction(item: GivenImage, role: str, row: Mapping[str, Any] | None) -> str | None:
    """Why a label cannot be taken for a sample of this role and with this label row, None where it can."""
    if role == "gone":
        return "it was withdrawn, and stays out: leave it out"
    if role == "audit":
        return "it is of the audit holdout, which only annotators label: leave it out"
    origin = row["origin"] if row is not None else None
    if row is not None and row["label"] != item.label:
        if origin in GIVEN:
            return f"given as {item.label!r}, but {row['label']!r} was brought before, and stays: leave it out"
        return f"given as {item.label!r}, but annotators say {row['label']!r}: correct the wrong one in Label Studio"
    if item.role == "legacy" and (role == "seed" or origin not in (None, "legacy")):
        return "given to measure on, but it is there to train on: leave it out"
    if item.role == "seed" and "legacy" in (role, origin):
        return "given to train on, but it is there to measure on: leave it out"
    return None


def encode(encoder: Encoder, intake: Intake, batch: int = 256) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The built-in embeddings of an intake's images, in batches: (sample ids, (n, D))."""
    for start in range(0, len(intake.samples), batch):
        part = intake.samples[start : start + batch]
        yield [s.sample_id for s in part], encoder.encode(intake.images[start : start + batch])


def _sample_of(
    blobs: BlobStore, record: CaptureRecord, loop: str, labels: tuple[str, ...], audit_share: float
) -> tuple[Sample, bytes] | BadInput | BlobMissing:
    try:
        if record.loop != loop:
            raise BadInput(f"sample {record.sample_id} was captured for loop {record.loop!r}, not {loop!r}")
        if set(record.labels) != set(labels):
            raise BadInput(
                f"sample {record.sample_id} has probabilities for {sorted(record.labels)}; the loop's labels are "
                f"{sorted(labels)}: give Capture the loop's labels"
            )
        name = f"sample {record.sample_id}"
        _check_text(name, source=record.source, group_id=record.group_id, burst_id=record.burst_id,
                    model_version=record.model_version, encoder=record.encoder, image_key=record.image_key)  # fmt: skip
        if not record.group_id or not 0 < len(record.model_version) <= _MAX_VERSION:
            raise BadInput(f"{name}: a group and a model version of 1 to {_MAX_VERSION} characters are needed")
        _check_numbers(name, {**record.policies, "propensity": record.propensity or 0.0})
        data = blobs.get(record.image_key, images.MAX_BYTES)
        if ids.sample_id(data) != record.sample_id:
            raise BadInput(f"the image under {record.image_key!r} does not have the content hash {record.sample_id}")
        facts, print_ = _looked_at(data, record.image_key)
        if ids.reserved(record.group_id, loop, audit_share) and not record.audit:
            # Capture kept it because a model was unsure of it: in the holdout it would bias every estimate, and where
            # it is not held out it could be trained on. Only what both draw is a uniform slice of production.
            raise BadInput(
                f"{name}: capture drew another audit holdout than this loop: give both the same audit_share "
                f"(loop: {audit_share:g})"
            )
    except (BadInput, BlobMissing) as error:
        return error
    sample = Sample(
        record.sample_id, record.image_key, record.source, record.group_id, record.burst_id,
        "audit" if record.audit else "pool", facts.width, facts.height, print_, record.captured_at,
    )  # fmt: skip
    return sample, data


def _check_text(name: str, **texts: str | None) -> None:
    for what, text in texts.items():
        if text is not None and "\0" in text:
            raise BadInput(f"{name}: {what} {text!r} holds a NUL character, which databases do not take")


def _check_numbers(name: str, values: Mapping[str, float]) -> None:
    for what, value in values.items():
        if not math.isfinite(value):
            raise BadInput(f"{name}: {what} is {value}, not a finite number")


def _looked_at(data: bytes, name: str) -> tuple[images.ImageFacts, str]:
    facts = images.check(data, name)
    return facts, fingerprint(images.decode(data, name))


def _prediction(record: CaptureRecord, labels: tuple[str, ...]) -> StoredPrediction:
    order = [record.labels.index(label) for label in labels]
    members = record.member_probs_MC
    return StoredPrediction(
        record.sample_id,
        record.model_version,
        _shares(record.probs_C[order]),
        None if members is None else _shares(members[:, order]),
        record.encoder,
        record.policies,
        record.propensity,
        record.captured_at,
    )


def _shares(probs: Floats) -> NDArray[np.float32]:
    """Probabilities, (C,) or (M, C), in [0, 1] and of sum 1; those of a model in half precision are so only nearly."""
    positive = np.maximum(probs, 0.0, dtype=np.float64)
    return np.asarray(positive / positive.sum(axis=-1, keepdims=True), dtype=np.float32)

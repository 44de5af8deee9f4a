"""What a model server says of one prediction, checked on the caller's thread so that no bad record is ever queued.

The limits are those `hardloop.core.capture_records` reads back by: what passes here, an ingester accepts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardloop.core.errors import BadInput, BadShape

MAX_TEXT = 256
MAX_METADATA_ENTRIES = 64
MAX_METADATA_CHARS = 16_384
MAX_EMBEDDING = 65_536
MAX_MEMBERS = 64
_SUM_TOLERANCE = 1e-3  # what a softmax in half precision over a thousand classes stays within

Float32s = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PredictionFacts:
    """One prediction, checked and copied: later changes to the caller's arrays do not reach it."""

    probs_C: Float32s
    member_probs_MC: Float32s | None
    embedding_D: Float32s | None
    encoder: str | None
    source: str
    group_id: str | None
    burst_id: str | None
    model_version: str
    metadata: Mapping[str, str]


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as a tuple. Raises BadInput unless they are at least two distinct, non-empty texts."""
    if isinstance(labels, str):
        raise BadInput(f"labels are the text {labels!r}: pass a list of class names")
    for label in labels:
        _text("label", label)
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise BadInput(f"{len(labels)} labels, {len(set(labels))} of them distinct: at least two distinct ones needed")
    return tuple(labels)


def checked_prediction(
    n_classes: int,
    probabilities: ArrayLike,
    member_probabilities: ArrayLike | None,
    embedding: ArrayLike | None,
    metadata: Mapping[str, str | int | float | bool] | None,
    facts: Mapping[str, str | None],
) -> PredictionFacts:
    """The prediction as it may be recorded.

    facts: source, group_id, burst_id, encoder and model_version as given.
    Raises BadShape for arrays of the wrong axes or range, BadInput for texts and metadata that cannot be kept.
    """
    for name, value in facts.items():
        if value is not None:
            _text(name, value)
    source, model_version = facts["source"], facts["model_version"]
    if source is None or model_version is None:
        raise BadInput("source and model_version are needed: pass them to log, or the version to Capture")
    if (embedding is None) != (facts["encoder"] is None):
        raise BadInput("an embedding and the name of its encoder come together or not at all")
    return PredictionFacts(
        probs_C=_probabilities("probabilities", probabilities, n_classes),
        member_probs_MC=_members(member_probabilities, n_classes),
        embedding_D=None if embedding is None else _embedding(embedding),
        encoder=facts["encoder"],
        source=source,
        group_id=facts["group_id"],
        burst_id=facts["burst_id"],
        model_version=model_version,
        metadata=_metadata(metadata or {}),
    )


def _float32s(name: str, values: ArrayLike) -> Float32s:
    """A copy in single precision; values out of its range become infinite, which the checks that follow refuse."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return values.copy()
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadShape(f"{name} are not an array of numbers: {error}") from None


def _probabilities(name: str, values: ArrayLike, n_classes: int) -> Float32s:
    probs_C = _float32s(name, values)
    if probs_C.shape != (n_classes,):
        raise BadShape(f"{name} have shape {probs_C.shape}: expected ({n_classes},), one for each label")
    _check_rows(name, probs_C[None, :])
    return probs_C


def _members(values: ArrayLike | None, n_classes: int) -> Float32s | None:
    if values is None:
        return None
    members_MC = _float32s("member_probabilities", values)
    if members_MC.size == 0:
        return None
    if members_MC.ndim != 2 or members_MC.shape[1] != n_classes or len(members_MC) > MAX_MEMBERS:
        raise BadShape(
            f"member_probabilities have shape {members_MC.shape}: expected (members, {n_classes}), "
            f"at most {MAX_MEMBERS} members"
        )
    _check_rows("member_probabilities", members_MC)
    return members_MC


def _check_rows(name: str, probs_NC: Float32s) -> None:
    # A sum is finite only if every term is: opposite infinities give NaN. numpy warns of that; we raise.
    with np.errstate(invalid="ignore", over="ignore"):
        totals, least = probs_NC.sum(axis=1).tolist(), probs_NC.min(axis=1).tolist()
    for row, (total, smallest) in enumerate(zip(totals, least, strict=True)):
        if not math.isfinite(total) or smallest < -1e-6 or abs(total - 1.0) > _SUM_TOLERANCE:
            where = name if len(totals) == 1 else f"{name}[{row}]"
            raise BadShape(f"{where} sum to {total:g}, the least is {smallest:g}: expected finite, none < 0, sum 1")


def _embedding(values: ArrayLike) -> Float32s:
    embedding_D = _float32s("embedding", values)
    if embedding_D.ndim != 1 or not 1 <= len(embedding_D) <= MAX_EMBEDDING:
        raise BadShape(f"embedding has shape {embedding_D.shape}: expected one axis of 1 to {MAX_EMBEDDING} numbers")
    if not np.isfinite(embedding_D).all():
        raise BadShape("embedding holds a value that is not finite")
    return embedding_D


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        shown = value[:40] if isinstance(value, str) else value
        raise BadInput(f"{name} {shown!r}: expected 1 to {MAX_TEXT} printable characters")
    return value


def _metadata(metadata: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    texts = {_text("metadata key", key): str(value) for key, value in metadata.items()}
    size = sum(len(key) + len(value) for key, value in texts.items())
    if len(texts) > MAX_METADATA_ENTRIES or size > MAX_METADATA_CHARS:
        raise BadInput(
            f"metadata has {len(texts)} entries and {size:,} characters: at most {MAX_METADATA_ENTRIES} entries "
            f"and {MAX_METADATA_CHARS:,} characters are kept; store more beside the image's id"
        )
    return texts

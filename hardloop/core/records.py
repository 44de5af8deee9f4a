"""The records rooms exchange. Frozen; arrays travel with the ids of their rows and their names end in their axes.

Axes: N samples, C classes (in the loop's order), D embedding dimensions, M committee members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


# ---------------------------------------------------------------- capture


@dataclass(frozen=True, slots=True, eq=False)
class CaptureRecord:
    """What one prediction in production left behind, as it lies in the store (schema: `capture_records.py`).

    probs_C: the champion's probabilities in the order of `labels`; they sum to 1.
    member_probs_MC: the same of each further committee member; None without a committee.
    embedding_D: the model's embedding, whose space is named by `encoder`; both None or neither.
    policies: which policies took the sample and the value each saw, e.g. {"low_confidence": 0.41}.
    propensity: the probability with which the exploration draw takes a sample; None if exploration did not take it.
    audit: whether the sample's group belongs to the audit holdout (`ids.reserved`).
    """

    sample_id: str
    image_key: str
    captured_at: datetime
    loop: str
    model_version: str
    labels: tuple[str, ...]
    probs_C: Floats
    policies: Mapping[str, float]
    source: str
    group_id: str
    audit: bool = False
    propensity: float | None = None
    burst_id: str | None = None
    member_probs_MC: Floats | None = None
    embedding_D: Floats | None = None
    encoder: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------- mining


class PoolState(IntEnum):
    """Why a row of the pool may or may not be picked: only ELIGIBLE rows are (the rest is `A` in selection.md)."""

    ELIGIBLE = 0
    LABELLED = 1
    QUEUED = 2
    REJECTED = 3
    AUDIT = 4


class Arm(StrEnum):
    """Which part of a budget a pick was paid from."""

    COVERAGE = "coverage"
    AUDIT = "audit"
    EXPLORATION = "exploration"


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Everything a selection looks at: N rows, in any order (no result depends on it).

    embeddings_ND: finite float32; normalised to unit length by the miner. A constant column is harmless.
    state_N: a `PoolState` per row. AUDIT rows are the holdout, labelled or not; they are picked by the audit arm alone.
    labels_N: class index of the agreed label, -1 where there is none.
    probs_NC: the serving model's probabilities; None before there is a model. A row of NaN: no prediction yet.
    member_probs_MNC: further committee members, same rows and classes; None without a committee.
    groups, bursts, sources: ids that tie rows together; a burst of "" is none. groups[i] == ids[i] where ungrouped.
    audit_asked_N: AUDIT rows that have been queued or labelled already and must not be asked again.
    quality_N: image quality in [0, 1], 1 is fine, 0 failed a check; None means all 1.
    asked_before: how many picks all earlier selections made, whatever became of them: small shares of a budget are
    spread over rounds by it.
    """

    ids: tuple[str, ...]
    embeddings_ND: Floats
    state_N: NDArray[np.int8]
    labels_N: NDArray[np.int64]
    n_classes: int
    probs_NC: Floats | None = None
    member_probs_MNC: Floats | None = None
    groups: tuple[str, ...] | None = None
    bursts: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    audit_asked_N: NDArray[np.bool_] | None = None
    quality_N: Floats | None = None
    asked_before: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """Why one sample was picked: every term of its score, so that the pick can be recomputed and argued with.

    gain: what the pick added to the objective F when it was taken; 0 for uniform arms.
    weight: its demand weight w_i = priority * balance * duplicates^gamma * damping * ((1 - lam) + lam * uncertainty).
    uncertainty, disagreement, damping, lam, sigma, temperature: the terms of that weight and of the kernel.
    covers: how many pool samples came closer to an asked-for one by this pick.
    nearest_picked: the labelled, queued or already picked sample most like this one, and its cosine similarity.
    propensity: chance of being drawn, for the uniform arms; None for coverage.
    predicted: class index the serving model gives it, -1 without a model. confidence: that class's probability.
    reasons: the same in words for annotators and reviewers, the strongest first.
    priority, balance, duplicates: the remaining terms of the weight: its stratum's factor, that of its predicted class
    for having few labels, and how many near-equal eligible samples it stands for, itself included.
    """

    arm: Arm
    rank: int
    gain: float
    weight: float
    uncertainty: float
    disagreement: float
    damping: float
    lam: float
    sigma: float
    temperature: float
    covers: int
    nearest_picked: str | None
    nearest_similarity: float | None
    propensity: float | None
    predicted: int
    confidence: float | None
    seed: int
    policy_digest: str
    reasons: tuple[str, ...]
    priority: float = 1.0
    balance: float = 1.0
    duplicates: int = 1


@dataclass(frozen=True, slots=True)
class Pick:
    """One picked sample and why. `rank` in the receipt counts from 0, the most valuable first."""

    sample_id: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome of one mining call, in rank order. May hold fewer picks than asked for, never padded.

    shortfall: what could not be served and why, in words; empty when the budget was filled.
    objective: F(S) of the coverage arm. terms: policy-wide numbers (lam, sigma, temperature, auroc, ...).
    """

    picks: tuple[Pick, ...]
    budget: int
    seed: int
    method: str
    policy_digest: str
    objective: float
    terms: Mapping[str, float]
    shortfall: tuple[str, ...] = ()


# ---------------------------------------------------------------- annotation


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one model version said of a sample: its likeliest label and that label's probability in [0, 1]."""

    model_version: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TaskDraft:
    """A sample on its way to an annotator. `rank` counts from 1, `reason` is a sentence a person understands."""

    sample_id: str
    image_uri: str
    rank: int
    reason: str
    selection_id: str
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One person's answer to one task, as the annotation tool holds it now.

    label is None for a skip (`skipped` is then true). `origin`: "manual", "prediction" (accepted) or
    "prediction-changed". `lead_time_s` is None where the tool does not say.
    """

    annotation_id: int
    task_id: int
    annotator: str
    label: str | None
    skipped: bool
    updated_at: datetime
    origin: str = "manual"
    lead_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class RefusedAnnotation:
    """An answer that does not fit the label schema: kept out of the labels, shown with its reason, never dropped."""

    annotation_id: int
    task_id: int
    annotator: str
    updated_at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task with all its answers as they are now; an answer missing here that was there before was deleted."""

    task_id: int
    sample_id: str
    updated_at: datetime
    annotations: tuple[Annotation, ...]
    refused: tuple[RefusedAnnotation, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What moved in a project since a cursor. `cursor` is opaque; hand it in next time. Overlap is expected."""

    tasks: tuple[TaskState, ...]
    cursor: str


# ---------------------------------------------------------------- training


class Split(StrEnum):
    """Where a labelled sample may be used. HOLDOUT is the audit slice, LEGACY a test set the user brought."""

    TRAIN = "train"
    HOLDOUT = "holdout"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One labelled sample of a dataset version, with its lineage.

    fold: 0 to 4 by group, for cross-fitting; the same group always falls into the same fold. -1 outside TRAIN.
    fingerprint: 96-byte perceptual fingerprint in hexadecimal (`fingerprint.py`), for the leakage check.
    origin: the arm that paid for the label ("coverage", "exploration", "audit") or "seed" / "legacy" for given labels.
    """

    sample_id: str
    image_key: str
    label: str
    split: Split
    fold: int
    group_id: str
    source: str
    fingerprint: str
    origin: str
    selection_id: str | None = None
    annotation_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """An immutable, named set of labelled samples. Equal content has an equal digest and is the same version."""

    loop: str
    number: int
    digest: str
    key: str
    labels: tuple[str, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Predictions on labelled samples the predicting model did not train on.

    slices: per row, which gate slice it belongs to: "mined" (out-of-fold), "audit" or "legacy".
    truth_N: class index. probs_NC: in the order of the loop's labels.
    """

    ids: tuple[str, ...]
    truth_N: NDArray[np.int64]
    probs_NC: Floats
    slices: tuple[str, ...]

    def keep(self, wanted: Sequence[bool]) -> "Evaluation":
        """The rows for which `wanted` is true, in their order."""
        rows = [i for i, take in enumerate(wanted) if take]
        picked = tuple(self.ids[i] for i in rows)
        return Evaluation(picked, self.truth_N[rows], self.probs_NC[rows], tuple(self.slices[i] for i in rows))


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a training left on disk: a folder with the files named in `docs/model-files.md`, and its metrics."""

    folder: str
    labels: tuple[str, ...]
    metrics: Mapping[str, float]
    params: Mapping[str, str]


# ---------------------------------------------------------------- registry


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version in the model registry. `version` is its number as text; `training_key` makes a training unique."""

    name: str
    version: str
    run_id: str
    training_key: str
    dataset_digest: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SliceVerdict:
    """One slice's part in the gate: accuracies of both models and the paired difference, in [0, 1] and [-1, 1].

    rule: "better" or "not worse"; passed is None where the slice is too small to say (n under the gate's minimum).
    """

    name: str
    rule: str
    n: int
    champion: Interval | None
    candidate: Interval
    difference: Interval | None
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision about a candidate, with its numbers and a sentence saying why."""

    promote: bool
    reason: str
    slices: tuple[SliceVerdict, ...]
    champion_version: str | None
    seed: int

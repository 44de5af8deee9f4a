"""What an evaluation says in numbers: accuracy with its interval, precision, recall, F1 per class, by slice. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardloop.core import evaluations
from hardloop.core.errors import BadShape
from hardloop.core.records import Evaluation, Floats, Interval
from registry.intervals import wilson


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class within one slice. support: samples truly of it; named: samples the model gave it.

    precision, recall and F1 are in [0, 1], NaN where nothing was named, nothing is there, or neither.
    """

    label: str
    support: int
    named: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, eq=False)
class SliceReport:
    """One slice. confusion_CC: rows are true classes, columns the named ones, in the loop's order of labels.

    macro_f1: mean F1 over the classes that occur as truth or answer. nll: mean negative log-likelihood in nats.
    """

    name: str
    n: int
    accuracy: Interval
    macro_f1: float
    nll: float
    confusion_CC: NDArray[np.int64]
    classes: tuple[ClassReport, ...]


def report(evaluation: Evaluation, labels: Sequence[str], confidence: float = 0.95) -> tuple[SliceReport, ...]:
    """A report per slice that has samples, in the order mined, audit, legacy. Raises BadShape."""
    evaluations.check(evaluation)
    if len(evaluation.ids) and evaluation.probs_NC.shape[1] != len(labels):
        raise BadShape(f"the evaluation has {evaluation.probs_NC.shape[1]} classes, the model {len(labels)} labels")
    slice_N = np.array(evaluation.slices)
    return tuple(
        _slice(name, evaluation.truth_N[slice_N == name], evaluation.probs_NC[slice_N == name], labels, confidence)
        for name in evaluations.SLICES
        if (slice_N == name).any()
    )


def confusion(truth_N: NDArray[np.int64], named_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """(C, C) counts: rows are true classes, columns the named ones."""
    flat = np.bincount(truth_N * n_classes + named_N, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def flat_metrics(reports: Sequence[SliceReport]) -> Mapping[str, float]:
    """Every defined number under a name such as `audit/accuracy` or `mined/recall/cat`, for a metric store.

    Undefined ones (NaN) are left out: 0 would be read as a failure where there was nothing to fail at.
    """
    names = metric_names([one.label for one in reports[0].classes]) if reports else {}
    numbers: dict[str, float] = {}
    for part in reports:
        numbers |= {
            f"{part.name}/n": float(part.n),
            f"{part.name}/accuracy": part.accuracy.value,
            f"{part.name}/accuracy_low": part.accuracy.low,
            f"{part.name}/accuracy_high": part.accuracy.high,
            f"{part.name}/macro_f1": part.macro_f1,
            f"{part.name}/nll": part.nll,
        }
        for one in part.classes:
            numbers |= {
                f"{part.name}/precision/{names[one.label]}": one.precision,
                f"{part.name}/recall/{names[one.label]}": one.recall,
                f"{part.name}/f1/{names[one.label]}": one.f1,
            }
    return {name: value for name, value in numbers.items() if np.isfinite(value)}


def storable(metrics: Mapping[str, float], labels: Sequence[str]) -> Mapping[str, float]:
    """Training's numbers for a metric store: the labels in `slice/metric/label` as `flat_metrics` writes them."""
    names = metric_names(labels)
    numbers: dict[str, float] = {}
    for key, value in metrics.items():
        *kind, label = key.split("/", 2)
        numbers["/".join([*kind, names.get(label, label)]) if len(kind) == 2 else key] = value
    return numbers


def metric_names(labels: Sequence[str]) -> dict[str, str]:
    """Labels as metric stores take them: letters, digits, '_', '-', '.', ' '; distinct whatever the letters' case."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for index, label in enumerate(labels):
        name = re.sub(r"[^0-9A-Za-z_. -]", "_", label)[:100].strip(". ") or "class"
        while name.casefold() in taken:
            name = f"{name}-{index}"
        names[label] = name
        taken.add(name.casefold())
    return names


def _slice(
    name: str, truth_N: NDArray[np.int64], probs_NC: Floats, labels: Sequence[str], confidence: float
) -> SliceReport:
    n = len(truth_N)
    counts_CC = confusion(truth_N, probs_NC.argmax(axis=1), len(labels))
    classes = tuple(_class(label, index, counts_CC) for index, label in enumerate(labels))
    told = np.array([one.f1 for one in classes])
    likelihood_N = np.clip(probs_NC[np.arange(n), truth_N].astype(np.float64), 1e-12, None)
    return SliceReport(
        name,
        n,
        wilson(int(np.trace(counts_CC)), n, confidence),
        float(told[np.isfinite(told)].mean()),
        float(-np.log(likelihood_N).mean()),
        counts_CC,
        classes,
    )


def _class(label: str, index: int, counts_CC: NDArray[np.int64]) -> ClassReport:
    hits, support, named = (
        int(counts_CC[index, index]),
        int(counts_CC[index].sum()),
        int(counts_CC[:, index].sum()),
    )
    nan = float("nan")
    return ClassReport(
        label,
        support,
        named,
        hits / named if named else nan,
        hits / support if support else nan,
        2 * hits / (support + named) if support + named else nan,
    )

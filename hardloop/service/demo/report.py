"""The demo's report: its schema (documented in `docs/report.md`), its files, and what in it is not as it should be."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hardloop.core import records
from hardloop.core.errors import BadInput
from hardloop.service.demo import estimates

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1

# Every link of the loop, in the order a sample meets them; a report without one of them is a problem of its own.
LINKS: Mapping[str, str] = {
    "first-model": "a first model was trained on the seed labels and served over HTTP",
    "stream": "production traffic was answered by the served model",
    "capture": "uncertain and disputed samples were captured to the object store",
    "mine": "the miner picked samples, each with a receipt",
    "approve": "the picks went through the review queue",
    "send": "tasks with pre-annotations arrived in Label Studio",
    "annotate": "a user of its own answered them in Label Studio",
    "webhook": "Label Studio's webhooks reached the service",
    "collect": "the answers became labels",
    "dataset": "the labels made a dataset version",
    "train": "the retrain trigger started a training that MLflow logged",
    "gate": "the gate gave its verdict, stored on the model version",
    "promote": "a candidate became the champion",
    "reload": "the server answered with the new champion without a restart",
}

Share = float


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(_Facts):
    """An estimate with its two-sided 95 % interval."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"interval {self.low} to {self.high} does not hold its value {self.value}")
        return self

    @classmethod
    def of(cls, interval: records.Interval) -> Self:
        """The same interval, from the loop's own record."""
        return cls(value=interval.value, low=interval.low, high=interval.high)


class LabelsSaved(_Facts):
    """How many labels fewer than random picking; `at_least` where random never got there."""

    value: int
    at_least: bool


class DataFacts(_Facts):
    """What was learned from and measured on."""

    name: str
    labels: tuple[str, ...]
    sizes: dict[str, int]
    notes: tuple[str, ...] = ()


class Settings(_Facts):
    """What the run was asked to do."""

    rounds: int = Field(ge=1)
    budget: int = Field(ge=1)
    first_labels: int = Field(ge=2)
    annotator_error: Share = Field(ge=0, le=1)
    seed: int
    recipe: str
    random_seeds: int = Field(ge=0)


class StageSeconds(_Facts):
    """Wall-clock seconds per stage of a round."""

    stream: float = Field(default=0.0, ge=0)
    ingest: float = Field(default=0.0, ge=0)
    mine: float = Field(default=0.0, ge=0)
    approve: float = Field(default=0.0, ge=0)
    send: float = Field(default=0.0, ge=0)
    annotate: float = Field(default=0.0, ge=0)
    collect: float = Field(default=0.0, ge=0)
    train: float = Field(default=0.0, ge=0)
    promote: float = Field(default=0.0, ge=0)

    @classmethod
    def sum(cls, rounds: Sequence["StageSeconds"]) -> Self:
        """Stage by stage over all rounds."""
        return cls(**{stage: sum(getattr(seconds, stage) for seconds in rounds) for stage in STAGES})

    def total(self) -> float:
        """All stages together."""
        return float(sum(getattr(self, stage) for stage in STAGES))


STAGES: tuple[str, ...] = tuple(StageSeconds.model_fields)


class GateVerdict(_Facts):
    """What the gate said of the round's candidate."""

    promoted: bool
    reason: str


class Round(_Facts):
    """One turn of the loop."""

    number: int = Field(ge=1)
    labels_used: int = Field(ge=0)
    labels_new: int = Field(ge=0)
    streamed: int = Field(ge=0)
    captured: int = Field(ge=0)
    picked: int = Field(ge=0)
    queue: int = Field(ge=0)
    tasks_pushed: int = Field(ge=0)
    annotations_collected: int = Field(ge=0)
    skipped: int = Field(ge=0)
    wrong_answers: int = Field(ge=0)
    webhooks_received: int = Field(ge=0)
    webhooks_missed: int = Field(ge=0)
    duplicates: int = Field(ge=0)
    lost: int = Field(ge=0)
    model_version: str
    served_version: str
    verdict: GateVerdict
    accuracy: Interval
    served_accuracy: Interval
    random_accuracy: Interval | None = None
    labels_saved: LabelsSaved | None = None
    seconds: StageSeconds
    notes: tuple[str, ...] = ()


class CurvePoint(_Facts):
    """Random picking at one number of labels, over its seeds."""

    labels: int = Field(ge=1)
    accuracy: Interval


class FirstModel(_Facts):
    """Where the loop started from: the model trained on the seed labels."""

    labels: int = Field(ge=1)
    model_version: str
    accuracy: Interval


class Totals(_Facts):
    """Sums over the rounds, and the gain over random picking in percentage points."""

    labels_used: int
    labels_new: int
    streamed: int
    captured: int
    picked: int
    tasks_pushed: int
    annotations_collected: int
    skipped: int
    wrong_answers: int
    webhooks_received: int
    webhooks_missed: int
    duplicates: int
    lost: int
    promotions: int
    gain_points: Interval | None = None

    @classmethod
    def of(cls, rounds: Sequence[Round], gain_points: records.Interval | None) -> Self:
        """The sums over rounds (labels_used: the last round's); the gain comes from `estimates.paired_gain`."""
        if not rounds:
            raise BadInput("the totals of no rounds were asked for: a report needs at least one round")
        summed = {name: sum(getattr(r, name) for r in rounds) for name in _SUMMED}
        return cls(
            **summed,
            labels_used=rounds[-1].labels_used,
            promotions=sum(r.verdict.promoted for r in rounds),
            gain_points=None if gain_points is None else Interval.of(gain_points),
        )


_SUMMED = tuple(name for name in Totals.model_fields if name not in ("labels_used", "promotions", "gain_points"))


class Seconds(_Facts):
    """Wall-clock seconds of the whole run."""

    data: float = Field(ge=0)
    services: float = Field(ge=0)
    first_model: float = Field(ge=0)
    loop: float = Field(ge=0)
    random: float = Field(ge=0)
    total: float = Field(ge=0)
    stages: StageSeconds


class Link(_Facts):
    """One link of the loop: whether it happened, and what shows that it did."""

    name: str
    happened: bool
    evidence: str


class Report(_Facts):
    """One demo run. `format` is raised whenever a field changes its meaning or goes away."""

    hardloop: str
    format: int = FORMAT
    data: DataFacts
    settings: Settings
    first_model: FirstModel
    rounds: tuple[Round, ...] = Field(min_length=1)
    random_curve: tuple[CurvePoint, ...] = ()
    totals: Totals
    seconds: Seconds
    links: tuple[Link, ...]
    stopped: str | None = None


def wilson(right: int, n: int) -> Interval:
    """An accuracy on n test images with its 95 % interval; see `estimates.wilson`."""
    return Interval.of(estimates.wilson(right, n))


def mean(values: Sequence[float]) -> Interval:
    """The mean over seeds with its 95 % interval; see `estimates.mean`."""
    return Interval.of(estimates.mean(values))


def labels_saved(accuracy: float, labels: int, curve: Sequence[tuple[int, float]]) -> LabelsSaved:
    """Labels saved against random picking; see `estimates.labels_saved`."""
    saved = estimates.labels_saved(accuracy, labels, curve)
    return LabelsSaved(value=saved.value, at_least=saved.at_least)


def problems(report: Report) -> list[str]:
    """What did not happen or went wrong, in sentences; empty where the loop closed. The demo exits non-zero on any."""
    found = [] if report.stopped is None else [f"The run ended early: {report.stopped}"]
    found += [
        f"The link {link.name!r} did not happen ({LINKS.get(link.name, 'unknown link')}): {link.evidence}"
        for link in report.links
        if not link.happened
    ]
    checked = {link.name for link in report.links}
    found += [f"The link {name!r} was never checked: {what}." for name, what in LINKS.items() if name not in checked]
    if len(report.rounds) < report.settings.rounds:
        found.append(f"{len(report.rounds)} of {report.settings.rounds} rounds ran.")
    for r in report.rounds:
        if r.duplicates:
            found.append(
                f"Round {r.number} has {r.duplicates} duplicate(s): a sample became more than one task or answer."
            )
        if r.lost:
            found.append(f"Round {r.number} lost {r.lost} answer(s): given in Label Studio, absent from our labels.")
    return found


def write(report: Report, path: Path) -> None:
    """The report as JSON, all or nothing: a reader sees the old file or the whole new one."""
    write_text(path, report.model_dump_json(indent=1) + "\n")


def read(path: Path) -> Report:
    """A report from its file. Raises BadInput for other files and other formats."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"the report {path} cannot be read ({error.strerror or error}): check the path") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"{path} is not a demo report of format {FORMAT} ({where}: {first['msg']})") from None


def write_text(path: Path, text: str) -> None:
    """Text into a file through a temporary one beside it. Raises BadInput where the folder cannot be written."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files for their owner alone; a report is meant to be shared as other new files are.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror or error}): choose another place") from None
    finally:
        if temporary:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()


def write_html(report: Report, path: Path) -> None:
    """The report as one self-contained HTML page; see `page.py`."""
    from hardloop.service.demo.page import render

    write_text(path, render(report))


def table(report: Report, width: int = 100) -> "Table":
    """The rounds as a table for a terminal of `width` columns (100 for all of it, 80 for the essential)."""
    from hardloop.service.demo.terminal import rounds_table

    return rounds_table(report, width)

"""Reports to check the report with: numbers small enough to add up by hand, and names that try to break a page."""

from collections.abc import Callable

import pytest

from hardloop.service.demo.report import (
    LINKS,
    CurvePoint,
    DataFacts,
    FirstModel,
    GateVerdict,
    Interval,
    Link,
    Report,
    Round,
    Seconds,
    Settings,
    StageSeconds,
    Totals,
    labels_saved,
    wilson,
)

CURVE = [(40, 0.60), (80, 0.70), (120, 0.74), (160, 0.77), (240, 0.80)]


def make_round(number: int, right: int, **changed: object) -> Round:
    """Round `number` with `right` of 400 test images right and 40 new labels; change any field by name."""
    labels = 40 + 40 * number
    random = dict(CURVE)[labels]
    fields: dict[str, object] = {
        "number": number,
        "labels_used": labels,
        "labels_new": 40,
        "streamed": 300,
        "captured": 120 - 10 * number,
        "picked": 40,
        "queue": 0,
        "tasks_pushed": 40,
        "annotations_collected": 40,
        "skipped": 0,
        "wrong_answers": number,
        "webhooks_received": 40 - number,
        "webhooks_missed": number,
        "duplicates": 0,
        "lost": 0,
        "model_version": str(number + 1),
        "served_version": str(number + 1),
        "verdict": GateVerdict(promoted=True, reason="better on mined by 4.1 points, not worse on legacy"),
        "accuracy": wilson(right, 400),
        "served_accuracy": wilson(right, 400),
        "random_accuracy": Interval(value=random, low=random - 0.02, high=random + 0.02),
        "labels_saved": labels_saved(right / 400, labels, CURVE),
        "seconds": StageSeconds(
            stream=6.5, ingest=0.8, mine=1.4, approve=0.1, send=1.9, annotate=4.2, collect=0.9, train=9.3, promote=2.2
        ),
    }
    return Round(**(fields | changed))  # type: ignore[arg-type]


def make_report(rounds: tuple[Round, ...] | None = None, **changed: object) -> Report:
    """A closed loop of three rounds; change any field by name."""
    rounds = rounds or (make_round(1, 292), make_round(2, 316), make_round(3, 328))
    fields: dict[str, object] = {
        "hardloop": "0.1.0",
        "data": DataFacts(
            name="digits",
            labels=("0", "1", "2"),
            sizes={"seed": 40, "legacy": 60, "stream": 900, "test": 400},
            notes=("3 near-duplicate(s) of test images were taken out of the seed and the traffic.",),
        ),
        "settings": Settings(
            rounds=3,
            budget=40,
            first_labels=40,
            annotator_error=0.05,
            seed=0,
            recipe="linear-probe",
            random_seeds=3,
        ),
        "first_model": FirstModel(labels=40, model_version="1", accuracy=wilson(240, 400)),
        "rounds": rounds,
        "random_curve": tuple(
            CurvePoint(labels=n, accuracy=Interval(value=a, low=a - 0.02, high=a + 0.02)) for n, a in CURVE
        ),
        "totals": Totals.of(rounds, None).model_copy(update={"gain_points": Interval(value=4.2, low=1.1, high=7.3)}),
        "seconds": Seconds(
            data=1.5,
            services=14.0,
            first_model=5.0,
            loop=95.0,
            random=22.0,
            total=139.4,
            stages=StageSeconds.sum([r.seconds for r in rounds]),
        ),
        "links": tuple(Link(name=name, happened=True, evidence=f"3 of 3 rounds: {name}") for name in LINKS),
    }
    return Report(**(fields | changed))  # type: ignore[arg-type]


@pytest.fixture
def report_with() -> Callable[..., Report]:
    """`make_report`, for tests that change something."""
    return make_report


@pytest.fixture
def round_with() -> Callable[..., Round]:
    """`make_round`, likewise."""
    return make_round

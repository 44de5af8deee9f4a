"""The report: what counts as a problem, what is written, and that every field is documented."""

import re
import stat
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from hardloop.core.errors import BadInput
from hardloop.service.demo import report as report_module
from hardloop.service.demo.report import (
    LINKS,
    GateVerdict,
    Interval,
    LabelsSaved,
    Link,
    Report,
    StageSeconds,
    Totals,
    problems,
    read,
    table,
    write,
)

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def test_a_closed_loop_has_no_problems(report_with):
    assert problems(report_with()) == []


@pytest.mark.parametrize("name", LINKS)
def test_every_link_that_did_not_happen_is_named_with_its_evidence(report_with, name):
    links = tuple(Link(name=n, happened=n != name, evidence="0 of 3") for n in LINKS)
    assert problems(report_with(links=links)) == [f"The link {name!r} did not happen ({LINKS[name]}): 0 of 3"]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_was_never_checked_is_a_problem_too(report_with, name):
    links = tuple(Link(name=n, happened=True, evidence="yes") for n in LINKS if n != name)
    assert problems(report_with(links=links)) == [f"The link {name!r} was never checked: {LINKS[name]}."]


def test_duplicates_losses_and_missing_rounds_are_problems_and_missed_webhooks_are_not(report_with, round_with):
    rounds = (round_with(1, 292, duplicates=2, webhooks_missed=40), round_with(2, 316, lost=1))
    assert problems(report_with(rounds)) == [
        "2 of 3 rounds ran.",
        "Round 1 has 2 duplicate(s): a sample became more than one task or answer.",
        "Round 2 lost 1 answer(s): given in Label Studio, absent from our labels.",
    ]


def test_a_run_that_ended_early_says_why_first(report_with, round_with):
    stopped = report_with((round_with(1, 292),), stopped="waited 600 s for the retraining")
    assert problems(stopped) == ["The run ended early: waited 600 s for the retraining", "1 of 3 rounds ran."]


def test_totals_are_the_sums_of_the_rounds(round_with):
    kept = GateVerdict(promoted=False, reason="no better")
    totals = Totals.of((round_with(1, 292), round_with(2, 300, verdict=kept, lost=3)), None)
    assert totals.model_dump() == {
        "labels_used": 120,
        "labels_new": 80,
        "streamed": 600,
        "captured": 110 + 100,
        "picked": 80,
        "tasks_pushed": 80,
        "annotations_collected": 80,
        "skipped": 0,
        "wrong_answers": 1 + 2,
        "webhooks_received": 39 + 38,
        "webhooks_missed": 1 + 2,
        "duplicates": 0,
        "lost": 3,
        "promotions": 1,
        "gain_points": None,
    }


def test_stage_seconds_add_up():
    both = StageSeconds.sum([StageSeconds(stream=1.0, train=2.0), StageSeconds(stream=0.5)])
    assert both == StageSeconds(stream=1.5, train=2.0)
    assert both.total() == 3.5


def test_a_report_survives_its_file_and_a_rewrite_leaves_nothing_beside_it(report_with, tmp_path):
    path = tmp_path / "new" / "report.json"
    write(report_with(), path)
    write(report_with(hardloop="0.2.0"), path)
    assert read(path) == report_with(hardloop="0.2.0")
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044, "others may read a report where the umask lets them"


def test_a_failed_rewrite_keeps_the_old_report(report_with, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write(report_with(), path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match=r"cannot write .*No space left on device"):
        write(report_with(hardloop="0.2.0"), path)
    assert read(path).hardloop == "0.1.0"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_file_that_is_no_report_is_refused_by_name(tmp_path):
    (tmp_path / "x.json").write_text('{"hardloop": 3}')
    with pytest.raises(BadInput, match=r"x\.json is not a demo report of format 1 \(hardloop"):
        read(tmp_path / "x.json")
    with pytest.raises(BadInput, match="cannot be read"):
        read(tmp_path / "none.json")


def test_impossible_numbers_cannot_be_reported(round_with):
    with pytest.raises(ValidationError):
        Interval(value=0.5, low=0.6, high=0.7)
    with pytest.raises(ValidationError):
        Interval(value=float("nan"), low=0.0, high=1.0)
    with pytest.raises(ValidationError):
        round_with(1, 292, lost=-1)


def _models() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = [Report]
    for model in found:
        for field in model.model_fields.values():
            names = re.findall(r"hardloop\.service\.demo\.report\.(\w+)", repr(field.annotation))
            for part in {getattr(report_module, name) for name in names}:
                if part not in found:
                    found.append(part)
    return found


def test_the_schema_has_all_its_parts():
    assert {m.__name__ for m in _models()} >= {"Round", "Totals", "Seconds", "Link", "LabelsSaved", "GateVerdict"}


@pytest.mark.parametrize("model", _models(), ids=lambda m: m.__name__)
def test_every_field_is_documented_and_nothing_else_is(model):
    section = re.search(rf"^## {model.__name__}\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"docs/report.md has no section {model.__name__}"
    documented = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert documented == list(model.model_fields)


def test_every_link_is_documented():
    text = DOCS.read_text()
    assert [name for name in LINKS if f"`{name}`" not in text] == []


def _lines(report: Report, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table(report, width))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 98, 140])
def test_the_table_fits_the_terminal_and_nothing_is_cut_off(report_with, round_with, width):
    kept = GateVerdict(promoted=False, reason="no better")
    saved = LabelsSaved(value=-1250, at_least=False)
    rounds = (
        round_with(1, 292),
        round_with(2, 286, verdict=kept, served_version="12", labels_saved=saved),
        round_with(3, 400),
    )
    lines = _lines(report_with(rounds), width)
    assert max(len(line) for line in lines) <= width
    assert "…" not in "\n".join(lines)
    cells = next(line for line in lines if line.split()[:1] == ["2"]).split()
    assert cells[1:7] == ["120", "71.5", "(66.9–75.7)", "74.0", "−2.5", "−1250"]
    assert ("kept" in cells) is (width >= 98)
    last = next(line for line in lines if line.split()[:1] == ["3"]).split()
    assert last[2:6] == ["100.0", "(99.0–100.0)", "77.0", "+23.0"]
    assert next(line for line in lines if line.split()[:1] == ["start"]).split()[-1] == "60.0", "random's own start"


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_names_rounds_with_fewer_picks_than_the_budget(report_with, round_with, width):
    none = GateVerdict(promoted=False, reason="Nothing was picked, so there is no candidate.")
    idle = {"picked": 0, "tasks_pushed": 0, "annotations_collected": 0, "labels_new": 0, "verdict": none}
    rounds = (round_with(1, 292, picked=12, tasks_pushed=12), round_with(2, 316), round_with(3, 316, **idle))
    lines = _lines(report_with(rounds), width)
    assert max(len(line) for line in lines) <= width
    cells = {line.split()[0]: line.split() for line in lines if line.split()}
    assert [cells[n][7] for n in ("1", "2", "3")] == ["12/40", "40", "0/40"]
    assert "kept" not in cells["3"], "there was no candidate to keep back"
    assert "Fewer than 40 picked: 12 in round 1, 0 in round 3." in " ".join(" ".join(lines).split())


def test_the_table_says_so_when_random_was_not_run(report_with, round_with):
    plain = (round_with(1, 292, random_accuracy=None, labels_saved=None),)
    lines = _lines(report_with(plain, totals=Totals.of(plain, None), random_curve=()), 100)
    assert "random picking was not run" in lines[-1]

"""How a demo ends: with a report, with what there is of one, with the services' logs, or with everything running."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardloop.core.errors import BadSettings, Unavailable
from hardloop.service.demo import report
from hardloop.service.demo import run as module
from hardloop.service.demo.items import DemoData, Parts
from hardloop.service.demo.links import Links
from hardloop.service.demo.measure import Compared
from hardloop.service.demo.options import Options, Watch
from hardloop.service.demo.play import play
from hardloop.service.demo.report import GateVerdict, Report, Round, wilson
from tests.demo.conftest import make_report, make_round

OPTIONS: dict[str, Any] = {
    "data": None,
    "rounds": 3,
    "budget": 40,
    "first_labels": None,
    "annotator_error": 0.0,
    "seed": 0,
    "recipe": "linear-probe",
    "limit": 1000,
    "keep": False,
}
DATA = DemoData("pets", ("cat", "dog"), ())
PARTS = Parts(seed=tuple(range(20)), legacy=(), stream=(), test=())  # type: ignore[arg-type]


class Services:
    """What `Stack` starts: nothing but a log, which says when it was stopped."""

    def __init__(self, settings: Any, config: Path) -> None:
        self.log = settings.data_dir / "logs" / "service.log"

    def start(self, progress: Any) -> Any:
        self.log.parent.mkdir(parents=True)
        self.log.write_text("started\n")
        return SimpleNamespace()

    def __enter__(self) -> "Services":
        return self

    def __exit__(self, *_: object) -> None:
        with self.log.open("a") as log:
            log.write("stopped\n")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`run` on services of a few lines: `demo(play, **options)`, with its data below the folder `temporary`."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(module, "load", lambda *_: DATA)
    monkeypatch.setattr(module, "partition", lambda *_: PARTS)
    monkeypatch.setattr(module, "Stack", Services)
    monkeypatch.setattr(module, "Turn", lambda *_: None)
    monkeypatch.setattr(module, "show", lambda *_: "addresses and logins")

    def wait(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.threading, "Event", type("Event", (), {"wait": wait}))

    def demo(played: Report | BaseException, **changed: Any) -> int:
        def play(*_: Any) -> Report:
            if isinstance(played, BaseException):
                raise played
            return played

        monkeypatch.setattr(module, "play", play)
        return module.run(Options(report=tmp_path / "out" / "report.json", **OPTIONS | changed))

    before = signal.getsignal(signal.SIGINT)
    yield demo
    signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "temporary").iterdir()) == [], "the demo's folder is still there"


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))


LOST = (make_round(1, 292, lost=1), make_round(2, 316), make_round(3, 328))


def test_a_closed_loop_leaves_the_report_alone(demo, tmp_path):
    assert demo(make_report()) == 0
    assert kept(tmp_path) == ["report.html", "report.json"]


def test_a_loop_that_did_not_close_leaves_its_logs_beside_the_report(demo, tmp_path, capsys):
    assert demo(make_report(LOST)) == 1
    assert kept(tmp_path) == ["report-logs/service.log", "report.html", "report.json"]
    assert (tmp_path / "out" / "report-logs" / "service.log").read_text() == "started\nstopped\n"
    assert f"logs:   {tmp_path / 'out' / 'report-logs'}" in capsys.readouterr().out


@pytest.mark.parametrize("error", [Unavailable("the service is away: see its log"), IndexError("a fault of ours")])
def test_an_error_leaves_its_logs_and_is_passed_on(demo, tmp_path, error):
    with pytest.raises(type(error), match=str(error)):
        demo(error)
    assert kept(tmp_path) == ["report-logs/service.log"]


def test_logs_that_cannot_be_kept_do_not_hide_the_error(demo, tmp_path, capsys):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="see its log"):
        demo(Unavailable("the service is away: see its log"))
    assert "the services' logs could not be kept in" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(demo, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        demo(KeyboardInterrupt())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rounds", "code"), [(None, 0), (LOST, 1)], ids=["closed", "did not close"])
def test_what_is_kept_running_ends_with_the_verdicts_code(demo, tmp_path, capsys, rounds, code):
    assert demo(make_report(rounds), keep=True) == code
    said = capsys.readouterr().out
    assert "addresses and logins" in said
    assert re.search(r"annotator's login: annotator@hardloop\.localhost, password in \S+/secrets\.json\n", said)
    assert "everything keeps running" in said
    assert ("report-logs/service.log" in kept(tmp_path)) is bool(code)


def test_what_failed_is_kept_running_too(demo, tmp_path, capsys):
    with pytest.raises(Unavailable):
        demo(Unavailable("Label Studio is away"), keep=True)
    found = capsys.readouterr()
    assert "hardloop: Label Studio is away" in found.err
    assert found.out.index("addresses and logins") < found.out.index("everything keeps running")
    assert kept(tmp_path) == ["report-logs/service.log"]


@pytest.mark.parametrize(("asked", "given"), [(None, 20), (75, 75)])
def test_the_number_of_first_labels_may_be_asked_for(demo, monkeypatch, asked, given):
    seen: list[int] = []
    monkeypatch.setattr(module, "partition", lambda data, seed, first, *_: seen.append(first) or PARTS)
    demo(make_report(), first_labels=asked)
    assert seen == [given]


# ---------------------------------------------------------------- what there is of a report


class Turns:
    """A turn whose rounds are given: each a Round, or an error to raise."""

    def __init__(self, rounds: list[Round | Exception], promoted: str | None = "1") -> None:
        self.options = SimpleNamespace(**OPTIONS)
        self.data, self.parts, self.links, self.lines = DATA, PARTS, Links(), SimpleNamespace(say=lambda text: None)
        reasons = [{"reason": "not shown to be better than chance"}]
        self.api = SimpleNamespace(client=None, run=lambda *_, key: {"promote": promoted}, rows=lambda kind: reasons)
        self.arena = SimpleNamespace(accuracy=lambda version: wilson(90, 100), compare=self.compare)
        self._rounds = rounds

    def wait_until_served(self, version: str) -> None:
        pass

    def round(self, number: int) -> Round:
        found = self._rounds[number - 1]
        if isinstance(found, Exception):
            raise found
        return found

    def compare(self, rounds: list[Round], progress: Any) -> Compared:
        return Compared(tuple(rounds), (), None, seeds=4)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """What `play` makes of given rounds."""
    monkeypatch.setattr("hardloop.service.demo.play.upload", lambda *_: None)
    return lambda *rounds, **more: play(Turns(list(rounds), **more), Watch({"data": 1.0, "services": 2.0}), 0.0)  # type: ignore[arg-type]


def test_an_error_after_a_whole_round_stands_in_the_report_beside_it(played):
    found = played(make_round(1, 292), Unavailable("waited 600 s for the answers"))
    assert [r.number for r in found.rounds] == [1]
    assert (found.stopped, found.settings.random_seeds, found.random_curve) == ("waited 600 s for the answers", 0, ())
    assert report.problems(found)[0] == "The run ended early: waited 600 s for the answers"
    assert "1 of 3 rounds ran." in report.problems(found)


def test_an_error_before_any_round_is_whole_is_passed_on(played):
    with pytest.raises(Unavailable, match="waited"):
        played(Unavailable("waited 600 s for the answers"))


def test_a_whole_run_says_how_many_random_baselines_there_were(played):
    found = played(*(make_round(n, 300) for n in (1, 2, 3)))
    assert (found.stopped, found.settings.random_seeds) == (None, 4)
    assert (found.seconds.data, found.seconds.services) == (1.0, 2.0)


def test_links_that_never_happened_in_any_round_are_problems(played):
    nothing = GateVerdict(promoted=False, reason="Nothing was picked, so there is no candidate.")
    rounds = [make_round(n, 300, picked=0, tasks_pushed=0, verdict=nothing) for n in (1, 2, 3)]
    said = " ".join(report.problems(played(*rounds)))
    for name in ("mine", "send", "annotate", "collect", "train", "gate", "promote", "reload"):
        assert f"The link {name!r} did not happen" in said


def test_a_first_model_that_the_gate_refused_names_the_option_that_helps(played):
    with pytest.raises(
        BadSettings, match=r"not shown to be better than chance\): give it more labels .* --first-labels"
    ):
        played(promoted=None)

"""`hardloop demo`: the closed loop on real servers, watched and measured from outside through its own doors."""

import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from hardloop.service.addresses import show
from hardloop.service.connections import Connections
from hardloop.service.demo import report
from hardloop.service.demo.data import load, partition
from hardloop.service.demo.items import DemoData, Parts
from hardloop.service.demo.options import Options, Watch
from hardloop.service.demo.play import play
from hardloop.service.demo.turn import ANNOTATOR, LOOP, Turn, annotator_password
from hardloop.service.progress import Lines
from hardloop.service.settings import Settings
from hardloop.service.settings import load as load_settings
from hardloop.service.settings_file import demo_file
from hardloop.service.stack import Stack


def run(options: Options) -> int:
    """Run the demo. Returns 0 when every link of the loop happened, 1 when one did not (each is named).

    Nothing is left behind but the report; where something went wrong, also the services' logs, beside it.
    """
    began = time.monotonic()
    lines = Lines()
    watch = Watch()
    with watch.of("data"):
        data = load(options.data, lines, options.limit, options.seed)
        first_labels = options.first_labels or max(2 * len(data.labels), 20)
        parts = partition(data, options.seed, first_labels, options.budget, options.rounds)
    for note in (*data.notes, *parts.notes):
        lines.say(note)
    folder = Path(tempfile.mkdtemp(prefix="hardloop-demo-"))
    try:
        code = _run_in(folder, options, data, parts, lines, watch, began)
        if code:
            _save_logs(folder, options.report)
        return code
    except Exception:
        _save_logs(folder, options.report)
        raise
    finally:
        # A second Ctrl-C while everything stops must not leave anything behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)


def _run_in(
    folder: Path, options: Options, data: DemoData, parts: Parts, lines: Lines, watch: Watch, began: float
) -> int:
    config = folder / "hardloop.toml"
    config.write_text(demo_file(LOOP, data.labels, options.budget, options.recipe, options.seed), encoding="utf-8")
    settings = load_settings(config)
    with Stack(settings, config) as stack:
        with watch.of("services"):
            connections = stack.start(lines)
        try:
            turn = Turn(options, data, parts, connections, lines, settings.data_dir)
            code = _finish(play(turn, watch, began), options)
        except Exception as error:
            if options.keep:
                print(f"hardloop: {error}", file=sys.stderr)
                _keep_running(connections, settings, folder)
            raise
        if options.keep:
            _keep_running(connections, settings, folder)
        return code


def _finish(result: report.Report, options: Options) -> int:
    report.write(result, options.report)
    page = options.report.with_suffix(".html")
    report.write_html(result, page)
    console = Console()
    console.print(report.table(result, console.width))
    print(f"report: {options.report}\npage:   {page}")
    wrong = report.problems(result)
    for sentence in wrong:
        print(f"problem: {sentence}")
    return 1 if wrong else 0


def _keep_running(connections: Connections, settings: Settings, folder: Path) -> None:
    """Print addresses and logins, and return when a person has seen enough; the verdict stays what it was."""
    print(show(connections, settings))
    # As `show` has it: a secret goes to a terminal alone, elsewhere the file it lies in is named.
    password = annotator_password(settings.data_dir)
    told = password if sys.stdout.isatty() else f"in {settings.data_dir / 'secrets.json'}"
    print(f"the stand-in annotator's login: {ANNOTATOR}, password {told}")
    with suppress(KeyboardInterrupt):
        # Through a pipe nobody would read it before the end.
        print(f"everything keeps running, data in {folder}; Ctrl-C ends it", flush=True)
        threading.Event().wait()


def _save_logs(folder: Path, report_file: Path) -> None:
    """Copy the services' logs beside the report: errors speak of them, and the folder goes."""
    logs, kept = folder / "data" / "logs", report_file.with_name(f"{report_file.stem}-logs")
    if not logs.is_dir():
        return
    try:
        shutil.copytree(logs, kept, dirs_exist_ok=True)
    except OSError as error:
        print(f"the services' logs could not be kept in {kept}: {error}", file=sys.stderr)
    else:
        print(f"logs:   {kept}")

"""The command line: every command explains itself, works, and tells a mistake in one sentence with exit code 2."""

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
import typer
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from hardloop.core.errors import BadSettings
from hardloop.service import cli, steps
from hardloop.service import connections as known
from hardloop.service.api import create_app
from hardloop.service.connections import Connections
from hardloop.service.database import connect, migrate
from hardloop.service.embedded.free_ports import free_ports
from hardloop.service.jobs import Jobs
from hardloop.service.settings import load
from hardloop.service.settings_file import demo_file, write_new
from tests.fakes.loops import FakeLoop, fake_loop
from tests.service.scenes import first_model, give

TREE: click.Group = typer.main.get_command(cli.app)  # type: ignore[assignment]
MINIMAL = '[[loops]]\nname = "colours"\nlabels = ["red", "green", "blue"]\n'


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What a mistake said: one line on stderr, exit code 2, no traceback."""
        assert self.code == 2, self
        assert "Traceback" not in self.err + self.out
        assert self.err.startswith("hardloop: ")
        assert self.err.count("\n") == 1, f"more than one line: {self.err}"
        return self.err


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """`hardloop WORDS` as the console script runs it, in an empty folder."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hardloop", *words])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        found = capsys.readouterr()
        return Outcome(code, found.out, found.err)

    yield run
    signal.signal(signal.SIGTERM, before)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)  # typer brings a click of its own
        found += commands(command, (*path, name)) if inner else [((*path, name), command)]
    return found


COMMANDS = commands(TREE)


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_the_help_of_every_command_has_an_example_that_parses(
    run: Run, path: tuple[str, ...], command: click.Command
) -> None:
    told = run(*path, "--help")
    assert told.code == 0
    (line,) = [line.strip() for line in told.out.splitlines() if line.strip().startswith("Example: hardloop ")]
    words = shlex.split(line.removeprefix("Example: hardloop "))
    assert tuple(words[: len(path)]) == path, "the example is of another command"
    command.make_context(path[-1], words[len(path) :])
    for option in command.params:
        assert getattr(option, "help", None), f"{' '.join(path)}: {option.name} is not explained"


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    assert all(path[0] in run("--help").out for path, _ in COMMANDS)
    assert run("--version").out.startswith("hardloop 0.")


def test_help_answers_without_loading_what_is_heavy() -> None:
    script = (
        "import sys\n"
        "from hardloop.service.cli import main\n"
        "sys.argv = ['hardloop', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    heavy = {"torch", "mlflow", "sklearn", "scipy", "numba", "onnxruntime", "dbos", "sqlalchemy", "fastapi", "uvicorn"}
    heavy |= {"label_studio_sdk", "matplotlib", "pyarrow", "numpy", "minio", "pydantic", "PIL", "rich"}
    assert set(line.split()) & heavy == set()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("words", [("status",), ("up",), ("queue", "list", "colours"), ("mine", "colours")])
def test_without_a_settings_file_the_sentence_says_how_to_write_one(run: Run, words: tuple[str, ...]) -> None:
    assert "hardloop.toml does not exist: run 'hardloop init' to write one" in run(*words).sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"loops = [", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"", "loops"),
        (MINIMAL.encode() + b"bugdet = 5\n", "loops.0.bugdet"),
        (b"speed = 3\n" + MINIMAL.encode(), "speed"),
        (MINIMAL.encode() + b"budget = 0\n", "loops.0.budget"),
        (MINIMAL.replace("colours", "My Loop").encode(), "loop name 'My Loop'"),
        (MINIMAL.replace('"green", ', '"red", ').encode(), "label 'red'"),
        (MINIMAL.replace("green", "5 $US").encode(), "label '5 $US'"),
        (MINIMAL.replace("green", " green").encode(), "label ' green'"),
        (MINIMAL.encode() * 2, "loop names must be distinct: colours, colours"),
        (b"port = 0\ntick_s = 0\n" + MINIMAL.encode(), "tick_s"),
        (MINIMAL.encode() + b'[label_studio]\nurl = "labels.example.com"', "label_studio.url: expected http(s)://"),
        (
            MINIMAL.encode() + b'[label_studio]\nurl = "https://a.example?key=1"',
            "label_studio.url: expected http(s)://",
        ),
        (MINIMAL.encode() + b'[label_studio]\nurl = "http://h:port"', "label_studio.url: expected http(s)://"),
        (MINIMAL.encode() + b'[label_studio]\nurl = "http://[::1"', "label_studio.url: expected http(s)://"),
        (MINIMAL.encode() + b"[label_studio]\nproject_id = -3", "label_studio.project_id: Input should be greater"),
        (
            (MINIMAL + MINIMAL.replace("colours", "shapes") + "[label_studio]\nproject_id = 7").encode(),
            "label_studio.project_id 7 cannot serve 2 loops (colours, shapes): leave it out",
        ),
        (MINIMAL.encode() + b'[mlflow]\nurl = "mlflow:5000"', "mlflow.url: expected http(s)://"),
        (MINIMAL.encode() + b'[store]\nurl = "s3://bucket"', "store.url: expected http(s)://"),
        (b'webhook_url = "me.example.com"\n' + MINIMAL.encode(), "webhook_url: expected http(s)://"),
    ],
)
def test_a_fault_in_the_settings_is_named_with_its_place(run: Run, content: bytes, words: str) -> None:
    Path("hardloop.toml").write_bytes(content)
    sentence = run("status").sentence
    assert words in sentence
    assert "hardloop.toml" in sentence
    assert "Value error" not in sentence


def test_settings_that_cannot_be_read_are_told_apart_from_missing_ones(run: Run) -> None:
    Path("folder.toml").mkdir()
    assert "cannot read folder.toml: Is a directory" in run("status", "-c", "folder.toml").sentence


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HARDLOOP_STORE", "not JSON", "store"),
        ("HARDLOOP_LOOPS", "[", "loops"),
        ("HARDLOOP_PORT", "many", "port"),
        ("HARDLOOP_STORE__ULR", "http://s3", "store.ulr"),
    ],
)
def test_a_fault_in_a_variable_is_named_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    Path("hardloop.toml").write_text(MINIMAL)
    monkeypatch.setenv(name, value)
    assert words in run("status").sentence


def test_a_service_that_was_never_started_has_ended_or_is_something_else_is_told_apart(
    run: Run, tmp_path: Path
) -> None:
    Path("hardloop.toml").write_text(MINIMAL)
    assert "no service was started on" in run("status").sentence
    (port,) = free_ports(1)
    known.write(tmp_path / ".hardloop", _connections(tmp_path, f"http://127.0.0.1:{port}"))
    assert "does not answer (ConnectError): is 'hardloop up' running?" in run("status").sentence
    file = tmp_path / ".hardloop" / known.FILE
    file.write_text('{"config": "written by another version"}')
    assert "connections.json" in run("status").sentence
    file.write_text("cut o")
    assert "does not hold a JSON object" in run("status").sentence


@pytest.mark.parametrize(("words", "fault"), [("up", "File exists"), ("status", "Not a directory")])
def test_a_data_folder_that_is_a_file_is_a_sentence(run: Run, words: str, fault: str) -> None:
    Path("hardloop.toml").write_text(MINIMAL)
    Path(".hardloop").write_text("a file")
    sentence = run(words).sentence
    assert ".hardloop" in sentence
    assert fault in sentence


def test_a_data_folder_that_cannot_be_written_is_a_sentence(run: Run) -> None:
    Path("hardloop.toml").write_text(MINIMAL)
    Path(".hardloop/services.lock").mkdir(parents=True)
    assert "services.lock: Is a directory" in run("up").sentence


def test_another_program_on_the_services_port_is_not_taken_for_it(run: Run, tmp_path: Path) -> None:
    import http.server

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>another program</html>")

        def log_message(self, *words: object) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Path("hardloop.toml").write_text(MINIMAL)
        known.write(tmp_path / ".hardloop", _connections(tmp_path, f"http://127.0.0.1:{server.server_port}"))
        assert "is not Hardloop's service" in run("status").sentence
        server.shutdown()


@pytest.mark.parametrize(
    "words", [("mine",), ("fly",), ("mine", "colours", "--budget", "0"), ("demo", "--rounds", "x")]
)
def test_a_wrong_use_of_a_command_is_explained_with_exit_code_2(run: Run, words: tuple[str, ...]) -> None:
    told = run(*words)
    assert told.code == 2
    assert "Usage: hardloop" in told.err
    assert "Traceback" not in told.err


# ---------------------------------------------------------------- init and settings


def test_what_init_writes_can_be_loaded_and_says_what_comes_next(run: Run) -> None:
    told = run("init", "--name", "shoes", "--labels", "boot, sandal ,sneaker")
    assert (told.code, told.out) == (0, "wrote hardloop.toml; next: hardloop up\n")
    (loop,) = load(Path("hardloop.toml")).loops
    assert (loop.name, loop.labels) == ("shoes", ("boot", "sandal", "sneaker"))
    assert "hardloop.toml is there already" in run("init", "--labels", "a,b").sentence


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--labels", "red"), "labels"),
        (("--labels", "red,red"), "label 'red'"),
        (("--labels", "red,$cost"), "label '$cost'"),
        (("--labels", "red,gr\udcffn"), "labels.1"),
        (("--labels", "red,green", "--name", "My Loop"), "loop name 'My Loop'"),
        (("--labels", "red,green", "-c", "nowhere/hardloop.toml"), "cannot write nowhere/hardloop.toml"),
    ],
)
def test_a_mistake_in_init_is_a_sentence_and_leaves_no_file(run: Run, words: tuple[str, ...], told: str) -> None:
    assert told in run("init", *words).sentence
    assert list(Path().iterdir()) == []


LABELS = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=6, unique=True)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=LABELS)
@example(labels=["T-shirt, striped", 'it\'s "odd"', "back\\slash", "{name}", "ängström 猫", "# no comment", "'''"])
@example(labels=["a\x7fb", "c"])
@example(labels=["line\nbreak", "tab\tstop"])
@example(labels=["\ud800", "x"])
def test_every_label_is_either_refused_or_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str]
) -> None:
    path = tmp_path_factory.mktemp("init") / "hardloop.toml"
    try:
        write_new(path, "shoes", labels)
    except BadSettings:
        assert not path.exists()
        return
    assert list(load(path).loops[0].labels) == labels
    path.write_text(demo_file("shoes", labels, 40, "linear-probe", 7), encoding="utf-8")
    assert list(load(path).loops[0].labels) == labels


def test_a_label_with_any_printable_character_can_be_used(tmp_path: Path) -> None:
    labels = ["T-shirt, striped", 'it\'s "odd"', "back\\slash", "{name}", "ängström 猫", "# no comment", "5 $"]
    write_new(tmp_path / "hardloop.toml", "shoes", labels)
    assert list(load(tmp_path / "hardloop.toml").loops[0].labels) == labels


def test_the_environment_overrides_the_file_and_the_rest_of_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hardloop.toml"
    path.write_text("port = 8500\npoll_s = 7.0\n" + MINIMAL + '[store]\nurl = "http://file:9000"\nbucket = "of-file"\n')
    monkeypatch.setenv("HARDLOOP_PORT", "8600")
    monkeypatch.setenv("HARDLOOP_STORE__URL", "http://environment:9000")
    monkeypatch.setenv("HARDLOOP_STORE__SECRET_KEY", "s3cret")
    found = load(path)
    assert (found.port, found.poll_s) == (8600, 7.0)
    assert (found.store.url, found.store.bucket) == ("http://environment:9000", "of-file")
    assert found.store.secret_key.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(found)
    assert found.loops[0].name == "colours"
    assert found.data_dir == tmp_path.resolve() / ".hardloop"


def test_an_address_left_empty_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hardloop.toml").write_text(MINIMAL)
    monkeypatch.setenv("HARDLOOP_STORE__URL", "")
    assert load(tmp_path / "hardloop.toml").store.url is None


def test_the_settings_file_itself_can_be_named_by_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDLOOP_CONFIG", "elsewhere.toml")
    assert "elsewhere.toml does not exist" in run("status").sentence


# ---------------------------------------------------------------- against a service


@dataclass
class Served:
    world: FakeLoop
    folder: Path


def _connections(folder: Path, url: str) -> Connections:
    return Connections(
        config=folder / "hardloop.toml", service_url=url, webhook_url=url, admin_token=SecretStr("token"),
        webhook_secret=SecretStr("secret"), database_url=SecretStr("sqlite://"), jobs_database_url=SecretStr("sqlite://"),
        s3=None, blobs_dir=folder, label_studio_url="http://nowhere", label_studio_key=SecretStr("key"),
        mlflow_url="http://nowhere", predictors={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real HTTP service over a loop in memory."""
    tmp_path = tmp_path_factory.mktemp("served")
    engine = connect(f"sqlite:///{tmp_path / 'loop.db'}")
    migrate(engine)
    world = fake_loop(engine, tmp_path / "loop")
    jobs = Jobs({"colours": world.loop}, f"sqlite:///{tmp_path / 'jobs.db'}", tick_s=3600, poll_s=3600)
    jobs.start()
    server = uvicorn.Server(uvicorn.Config(create_app(jobs, "token", "secret"), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    (tmp_path / "hardloop.toml").write_text(MINIMAL)
    known.write(tmp_path / ".hardloop", _connections(tmp_path, f"http://127.0.0.1:{port}"))
    yield Served(world, tmp_path)
    server.should_exit = True
    thread.join(10)
    jobs.stop()
    world.capture.close()
    engine.dispose()


@pytest.fixture
def served(running: Served, run: Run, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The same, with the commands run in its folder."""
    monkeypatch.chdir(running.folder)
    return running


def test_the_commands_take_a_loop_from_an_empty_queue_to_a_model_and_back(run: Run, served: Served) -> None:
    world, rng = served.world, np.random.default_rng(0)
    assert run("queue", "list", "colours").out.startswith("nothing waits: 0 are with annotators")
    assert "loop 'colours' has no label yet" in run("train", "colours").sentence
    give(world, "pool", 4, rng)
    assert ": 5 picked; next: hardloop queue list colours" in run("mine", "colours", "--budget", "5").out
    listed = run("queue", "list", "colours").out.splitlines()
    assert len(listed) == 5
    shown = json.loads(run("queue", "list", "colours", "--json", "--limit", "3").out)
    assert [item["sample_id"] for item in shown] == [line.split()[1] for line in listed[:3]]
    first, second = (item["sample_id"] for item in shown[:2])
    assert run("queue", "reject", "colours", first).out == "rejected 1\n"
    assert run("queue", "approve", "colours", second).out == "approved 1\n"
    assert run("queue", "approve", "colours").out == "approved 3\n"
    assert "0000 is not in the queue" in run("queue", "reject", "colours", "0000").sentence
    version = first_model(world, rng)
    status = run("status").out
    assert "champion 1" in status
    assert "4 to send" in status
    (told,) = json.loads(run("status", "--json").out)
    assert (told["champion"], told["queue"]["rejected"]) == (version, 1)
    assert "trained on already" in run("train", "colours").out
    give(world, "seed", 3, rng)
    trained = run("train", "colours").out
    assert "version 2 was trained; version " in trained
    assert "the gate: " in trained
    assert "409" in run("rollback", "colours", "too early").sentence
    world.registry.promote(world.registry.versions()[1], "by hand")
    assert run("rollback", "colours", "misreads the new packaging").out == "version 1 serves again\n"
    assert steps.serving(world.loop).version == "1"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["shoes", "a b", "a?b=c", "a#b", "50%", "猫"])
@pytest.mark.parametrize("words", [("mine",), ("queue", "list"), ("queue", "approve"), ("train",)])
def test_a_loop_that_is_not_there_is_named_whatever_it_is_called(
    run: Run, served: Served, words: tuple[str, ...], name: str
) -> None:
    assert f"no loop {name!r}: there are colours" in run(*words, name).sentence

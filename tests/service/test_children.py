"""Children: started clean, watched, and never left behind, whatever ends the process that started them."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hardloop.core.errors import Unavailable
from hardloop.service import children
from hardloop.service.children import Child, Command, clean_environment
from hardloop.service.supervisor import Supervisor

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
FAMILY = (
    "import subprocess, sys, time; "
    f"worker = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=subprocess.DEVNULL); "
    "print('worker', worker.pid, flush=True); time.sleep(600)"
)


def says(text: str) -> Callable[[Child], bool]:
    return lambda child: text in child.said()


def until(true: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Makes a child that runs Python code; all are stopped afterwards."""
    made: list[Child] = []

    def make_child(code: str, **options: object) -> Child:
        values: dict[str, object] = {
            "name": "the test's server", "argv": [sys.executable, "-c", code], "log": tmp_path / "logs" / "child.log",
            "healthy": says("up"), "start_s": 10.0, "grace_s": 0.3,
        }  # fmt: skip
        child = Child(Command(**(values | options)))  # type: ignore[arg-type]
        made.append(child)
        return child

    yield make_child
    for child in made:
        child.stop()


def test_a_start_returns_once_the_child_is_healthy_and_not_before(make: Callable[..., Child]) -> None:
    child = make("import time; time.sleep(0.5); print('up', flush=True); time.sleep(600)")
    began = time.monotonic()
    child.start()
    assert time.monotonic() - began >= 0.5
    assert child.alive
    assert child.pid is not None
    assert runs(child.pid)
    assert child.exit_status is None


def test_a_child_sees_none_of_our_variables(make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDLOOP_SECRET", "hunter2")
    monkeypatch.setenv("DEBUG", "true")
    child = make(
        "import json, os; print(json.dumps(dict(os.environ)), 'up', flush=True); import time; time.sleep(600)",
        environment=clean_environment(GIVEN="yes"),
    )
    child.start()
    assert '"GIVEN": "yes"' in child.said()
    assert "PATH" in child.said()
    assert "hunter2" not in child.said()
    assert "DEBUG" not in child.said()


def test_the_log_is_for_its_owner_alone_and_keeps_earlier_runs(make: Callable[..., Child]) -> None:
    child = make("print('up', flush=True); import time; time.sleep(600)")
    for _ in range(2):
        child.start()
        assert child.said() == "up\n"
        child.stop()
    assert child.command.log.read_text() == "up\nup\n"
    assert stat.S_IMODE(child.command.log.stat().st_mode) == 0o600


def test_a_child_that_ends_while_starting_is_reported_with_its_last_words(make: Callable[..., Child]) -> None:
    child = make("import sys; print('the disk is full'); sys.exit(7)")
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"the test's server ended with status 7(.|\n)*child\.log(.|\n)*disk is full"):
        child.start()
    assert time.monotonic() - began < 5.0
    assert not child.alive


def test_a_program_that_is_not_there_is_reported_by_name(make: Callable[..., Child]) -> None:
    with pytest.raises(Unavailable, match="cannot start /nowhere/server"):
        make("", argv=["/nowhere/server"]).start()


def test_a_child_whose_log_cannot_be_written_is_reported_by_name(make: Callable[..., Child], tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="the test's server cannot be started: File exists"):
        make("").start()


def test_a_child_that_never_gets_healthy_is_ended(make: Callable[..., Child]) -> None:
    child = make("import os, time; print(os.getpid(), flush=True); time.sleep(600)", start_s=1.5)
    heard: list[float] = []
    with pytest.raises(Unavailable, match="did not become healthy in 2 s"):
        child.start(heard.append)
    assert [round(seconds) for seconds in heard] == [1]
    assert not runs(int(child.command.log.read_text()))


def test_a_check_that_raises_counts_as_not_yet(make: Callable[..., Child]) -> None:
    asked: list[int] = []

    def moody(_: Child) -> bool:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionRefusedError
        return True

    make("import time; time.sleep(600)", healthy=moody).start()
    assert len(asked) == 3


def test_stopping_asks_first(make: Callable[..., Child]) -> None:
    child = make(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('tidied up', flush=True), sys.exit(3)))\n"
        "print('up', flush=True)\ntime.sleep(600)",
        grace_s=10.0,
    )
    child.start()
    child.stop()
    assert "tidied up" in child.said()
    assert child.exit_status == 3
    child.stop()


def test_stopping_insists_after_the_grace_and_takes_the_workers_too(make: Callable[..., Child]) -> None:
    child = make(FAMILY, healthy=says("worker"))
    child.start()
    worker = int(child.said().split()[1])
    assert runs(worker)
    began = time.monotonic()
    child.stop()
    assert 0.3 <= time.monotonic() - began < 3.0
    assert not runs(worker)


def test_workers_go_when_their_server_crashes(make: Callable[..., Child]) -> None:
    child = make(FAMILY, healthy=says("worker"))
    child.start()
    assert child.pid is not None
    worker = int(child.said().split()[1])
    os.kill(child.pid, signal.SIGKILL)
    assert until(lambda: not child.alive)
    assert child.exit_status == 128 + signal.SIGKILL
    assert until(lambda: not runs(worker))


def test_nothing_is_left_when_even_the_watchdog_was_killed(make: Callable[..., Child]) -> None:
    child = make(FAMILY, healthy=says("worker"))
    child.start()
    pid = child.pid
    assert pid is not None
    psutil.Process(pid).parent().kill()  # type: ignore[union-attr]
    assert until(lambda: not child.alive)
    assert runs(pid)
    child.stop()
    assert until(lambda: not runs(pid))


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_end_with_their_parent_whatever_ends_it(tmp_path: Path, ending: signal.Signals) -> None:
    parent_code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from hardloop.service.children import Child, Command\n"
        f"child = Child(Command('x', [sys.executable, '-c', {FAMILY!r}], Path(sys.argv[1]),\n"
        "    lambda c: 'worker' in c.said(), grace_s=0.3))\n"
        "child.start()\nprint(child.pid, child.said().split()[1], flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code, str(tmp_path / "x.log")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        watchdog = psutil.Process(pids[0]).ppid()
        assert all(map(runs, pids))
        parent.send_signal(ending)
        parent.wait(10)
        assert until(lambda: not any(map(runs, [*pids, watchdog])), 5.0)
    finally:
        parent.kill()
        parent.wait()


class TestSupervisor:
    CRASHING = "import time; print('up', flush=True); time.sleep(0.4); raise SystemExit(9)"

    def test_a_crashed_child_is_started_again(self, make: Callable[..., Child]) -> None:
        child = make("print('up', flush=True); import time; time.sleep(600)")
        child.start()
        changes: list[int] = []
        supervisor = Supervisor(lambda: changes.append(1), first_wait_s=0.2)
        supervisor.watch({"server": child})
        try:
            first = child.pid
            assert first is not None
            assert supervisor.status("server", child).restarts == 0
            os.kill(first, signal.SIGKILL)
            assert until(lambda: supervisor.status("server", child).restarts == 1)
            status = supervisor.status("server", child)
            assert status.alive
            assert status.pid not in (None, first)
            assert "ended with status 137" in status.trouble
            assert len(changes) == 2
        finally:
            supervisor.stop()
        assert child.alive

    def test_a_child_that_keeps_crashing_is_started_ever_more_slowly(self, make: Callable[..., Child]) -> None:
        child = make(self.CRASHING)
        child.start()
        supervisor = Supervisor(first_wait_s=0.3)
        supervisor.watch({"server": child})
        moments: list[float] = []
        try:
            for number in (1, 2, 3):
                assert until(lambda n=number: supervisor.status("server", child).restarts >= n, 20)  # type: ignore[misc]
                moments.append(time.monotonic())
        finally:
            supervisor.stop()
        # 0.3, 0.6 and 1.2 s of waiting, and each run takes as long as the others.
        assert moments[2] - moments[1] > moments[1] - moments[0] + 0.3

    def test_a_child_that_cannot_be_started_again_says_why(self, make: Callable[..., Child], tmp_path: Path) -> None:
        once = tmp_path / "once"
        child = make(
            f"import pathlib, sys, time; p = pathlib.Path({str(once)!r})\n"
            "if p.exists(): sys.exit('the licence ran out')\n"
            "p.touch(); print('up', flush=True); time.sleep(0.3)"
        )
        child.start()
        supervisor = Supervisor(first_wait_s=0.1)
        supervisor.watch({"server": child})
        try:
            assert until(lambda: "licence ran out" in supervisor.status("server", child).trouble)
            assert supervisor.status("server", child).restarts == 0
        finally:
            supervisor.stop()

    def test_stopping_does_not_wait_for_a_restart_under_way(self, make: Callable[..., Child], tmp_path: Path) -> None:
        once = tmp_path / "once"
        child = make(
            f"import pathlib, time; p = pathlib.Path({str(once)!r})\n"
            "if not p.exists(): p.touch(); print('up', flush=True); time.sleep(0.3); raise SystemExit\n"
            "time.sleep(600)",
            start_s=120.0,
            healthy=lambda c: "up" in c.said(),
        )
        child.start()
        supervisor = Supervisor(first_wait_s=0.1)
        supervisor.watch({"server": child})
        first = child.pid
        assert until(lambda: child.alive and child.pid not in (None, first))
        began = time.monotonic()
        supervisor.stop()
        assert time.monotonic() - began < 3.0
        assert not child.alive

    def test_what_the_system_cannot_start_now_is_tried_again(self, make: Callable[..., Child]) -> None:
        child = make("print('up', flush=True); import time; time.sleep(600)")
        child.start()
        supervisor = Supervisor(first_wait_s=0.1)
        supervisor.watch({"server": child})
        try:
            first, real = child.pid, child._spawn
            assert first is not None
            fails = iter([OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("a fault of ours")])
            troubles: list[str] = []

            def starved() -> None:
                troubles.append(supervisor.status("server", child).trouble)
                for error in fails:
                    raise error
                real()

            child._spawn = starved  # type: ignore[method-assign]
            os.kill(first, signal.SIGKILL)
            assert until(lambda: supervisor.status("server", child).restarts == 1)
            assert child.alive
            assert "ended with status 137" in troubles[0]
            assert troubles[1] == "the test's server cannot be started: Cannot allocate memory"
            assert troubles[2] == "server cannot be started: RuntimeError: a fault of ours"
        finally:
            supervisor.stop()

    def test_a_state_that_cannot_be_written_ends_no_supervision(self, make: Callable[..., Child]) -> None:
        def full() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        child = make("print('up', flush=True); import time; time.sleep(600)")
        child.start()
        supervisor = Supervisor(full, first_wait_s=0.1)
        supervisor.watch({"server": child})
        try:
            for number in (1, 2):
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                assert until(lambda n=number: supervisor.status("server", child).restarts == n)  # type: ignore[misc]
        finally:
            supervisor.stop()

    def test_whatever_goes_wrong_with_one_child_the_others_are_looked_after(self, make: Callable[..., Child]) -> None:
        class Cursed(Child):
            @property
            def alive(self) -> bool:
                raise RuntimeError("a fault of ours")

        child = make("print('up', flush=True); import time; time.sleep(600)")
        child.start()
        supervisor = Supervisor(first_wait_s=0.1)
        supervisor.watch({"cursed": Cursed(child.command), "server": child})
        try:
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            assert until(lambda: supervisor.status("server", child).restarts == 1)
        finally:
            supervisor.stop()

    def test_a_log_that_grows_too_large_is_started_anew_while_its_child_runs(
        self, make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(children, "_LOG_BYTES", 20_000)
        child = make(
            "import itertools, time; print('up', flush=True)\n"
            "for n in itertools.count(): print(f'{n:099}', flush=True); time.sleep(0.001)"
        )
        child.start()
        log, older = child.command.log, child.command.log.with_suffix(".1.log")
        supervisor = Supervisor()
        supervisor.watch({"server": child})
        try:
            assert until(lambda: older.exists() and 0 < log.stat().st_size < 20_000 < older.stat().st_size)
            kept, going_on = older.read_text().splitlines(), child.said().splitlines()
            assert kept[0] == "up"
            assert int(kept[-2]) < int(going_on[0].lstrip("\0"))
            assert [stat.S_IMODE(path.stat().st_mode) for path in (log, older)] == [0o600, 0o600]
            assert supervisor.status("server", child).restarts == 0
        finally:
            supervisor.stop()

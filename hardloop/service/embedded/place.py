"""What every embedded service is given: the data folder, its secrets, the ports of the last run; and how it starts."""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hardloop.core.errors import Unavailable
from hardloop.core.ports import Progress
from hardloop.service.children import Child, Command, PortTaken
from hardloop.service.embedded.free_ports import free_ports, give_back, is_free
from hardloop.service.embedded.private_files import Secrets, private_folder

_ATTEMPTS = 4


class Stopped(Exception):
    """Raised in the threads that start services when the start is called off; never seen outside."""


@dataclass(frozen=True, slots=True)
class Place:
    """One data folder. ports: those each service listened on last time. locks: see `Command.locks`.

    called_off: set once nothing more is to be started. starting: the children that are waited for now.
    """

    data_dir: Path
    secrets: Secrets
    ports: dict[str, list[int]] = field(default_factory=dict)
    locks: tuple[int, ...] = ()
    called_off: threading.Event = field(default_factory=threading.Event)
    starting: list[Child] = field(default_factory=list)

    def folder(self, name: str) -> Path:
        """The part of the data folder that belongs to one service; readable by its owner alone."""
        return private_folder(self.data_dir / name)

    def call_off(self) -> None:
        """End what is just being started; whoever waits for it raises Stopped."""
        self.called_off.set()
        for child in tuple(self.starting):
            child.stop()

    def log(self, name: str) -> Path:
        """Where a service's output goes."""
        return self.data_dir / "logs" / f"{name}.log"


@dataclass(frozen=True, slots=True)
class Running:
    """A started child and the ports it listens on, each with the `offsets` above it.

    leftovers: files outside the data folder that the child does not remove itself.
    """

    child: Child
    ports: tuple[int, ...]
    offsets: tuple[int, ...] = (0,)
    leftovers: Callable[[], Iterable[Path]] = tuple

    def stop(self) -> None:
        """End the child, remove what it leaves behind and give its ports back."""
        self.child.stop()
        for path in self.leftovers():
            with suppress(OSError):
                path.unlink()
        give_back(self.ports, self.offsets)


def start_on_free_ports(
    place: Place,
    name: str,
    count: int,
    command: Callable[[Sequence[int]], Command],
    progress: Progress,
    offsets: Sequence[int] = (0,),
) -> Running:
    """Start `command(ports)`, with other ports again when somebody takes one of them in between. Raises Unavailable."""
    wanted: Sequence[int] = place.ports.get(name, [])
    for attempt in range(_ATTEMPTS):
        ports = free_ports(count, offsets, wanted if attempt == 0 else ())
        child = Child(command(ports))
        place.starting.append(child)
        try:
            child.start(partial(_report, progress, name, child.command.start_s))
        except Unavailable as error:
            # The child is gone, so whoever listens now is somebody else.
            taken = isinstance(error, PortTaken) or not all(is_free(p + step) for p in ports for step in offsets)
            give_back(ports, offsets)
            if place.called_off.is_set():
                raise Stopped from None
            if not taken or attempt + 1 == _ATTEMPTS:
                raise
            progress(f"{name}: a port was taken, trying others", attempt + 1, _ATTEMPTS)
            continue
        finally:
            place.starting.remove(child)
        place.ports[name] = list(ports)
        return Running(child, tuple(ports), tuple(offsets))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _report(progress: Progress, name: str, limit_s: float, gone_s: float) -> None:
    progress(f"{name}: starting", int(gone_s), int(limit_s))

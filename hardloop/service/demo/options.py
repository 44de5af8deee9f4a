"""What a run of the demo was asked to do, and the watch it is timed with."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line was given; see `hardloop demo --help`."""

    data: Path | None
    rounds: int
    budget: int
    first_labels: int | None
    annotator_error: float
    seed: int
    recipe: str
    limit: int
    report: Path
    keep: bool


@dataclass(slots=True)
class Watch:
    """Wall-clock seconds by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

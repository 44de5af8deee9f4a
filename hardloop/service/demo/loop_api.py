"""The demo's loop, asked about through the service's own API; what has not happened yet is waited for."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from hardloop.core.errors import Unavailable
from hardloop.core.ports import Progress
from hardloop.service.client import Client
from hardloop.service.demo import evidence

T = TypeVar("T")
Row = Mapping[str, Any]

_PATIENCE_S = 600.0  # what has not happened by then will not


class LoopApi:
    """One loop of a running service. Everything raises Unavailable where nobody answers, or patience ends."""

    def __init__(self, client: Client, loop: str, progress: Progress) -> None:
        self.client, self.loop, self._progress = client, loop, progress

    def status(self) -> dict[str, Any]:
        """How the loop stands."""
        found: dict[str, Any] = self.client.get(f"/loops/{self.loop}")
        return found

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All annotations, labels, tasks, ..., by the last word of their route."""
        found: list[dict[str, Any]] = self.client.get(f"/loops/{self.loop}/{kind}")
        return found

    def held(self) -> int:
        """How many samples of production the loop holds."""
        samples: dict[str, int] = self.status()["samples"]
        return samples.get("pool", 0) + samples.get("audit", 0)

    def tasks(self) -> int:
        """How many queue items became tasks so far."""
        counts: dict[str, int] = self.status()["queue"]
        return counts["items"] - counts["queued"] - counts["approved"] - counts["rejected"]

    def run(self, body: dict[str, Any], what: str, key: str | None = None) -> dict[str, Any]:
        """Have steps run, and return their results. Raises Unavailable saying that `what` failed, and why."""
        job = self.client.run(self.loop, body, key, progress=self._progress)
        if job["state"] == "failed":
            raise Unavailable(f"{what} failed: {job['error']}")
        result: dict[str, Any] = job["result"]
        return result

    def picks(self, selection: str) -> list[dict[str, Any]]:
        """The queue items of a selection, the most valuable first."""
        items: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.client.get(f"/loops/{self.loop}/queue?selection={selection}&limit=1000&after={after}")
            items += page["items"]
            after = page["next"]
        return items

    def shortfall(self, selection: str) -> tuple[str, ...]:
        """What the miner says it fell short of."""
        return next(tuple(row["shortfall"]) for row in self.rows("selections") if row["selection_id"] == selection)

    def wait_until_sent(self) -> None:
        """Wait until nothing is left in the review queue."""

        def sent() -> bool:
            counts = self.status()["queue"]
            return bool(counts["approved"] == 0 and counts["queued"] == 0)

        self.wait(sent, "the approved samples to become tasks")

    def wait_until_collected(self, samples: Collection[str]) -> None:
        """Wait until the answers to all of these samples are there."""
        wanted = set(samples)

        def collected() -> bool:
            done = {row["sample_id"] for row in self.rows("annotations")}
            self._progress("collecting answers", len(done & wanted), len(wanted))
            return wanted <= done

        self.wait(collected, "the answers to be collected")

    def training_of(self, samples: Collection[str]) -> Row:
        """Wait until the trigger, not us, has made a training of all labels of these samples; its row.

        Raises Unavailable with the reason where a training failed.
        """

        def trained() -> Row | None:
            rows = self.rows("trainings")
            if failed := [t for t in rows if t["state"] == "failed"]:
                raise Unavailable(f"a training failed: {failed[-1]['error']}")
            return evidence.training_of(samples, self.rows("labels"), rows)

        return self.wait(trained, "the retraining")

    def dataset_of(self, training: Row) -> Row:
        """The dataset version of a training."""
        return next(row for row in self.rows("datasets") if row["number"] == training["dataset_number"])

    def decision_on(self, version: str) -> Row:
        """Wait until the gate's decision on a model version is carried out; its row."""

        def decided() -> Row | None:
            found = {d["model_version"]: d for d in self.rows("decisions")}.get(version)
            return found if found is not None and found["applied_at"] is not None else None

        return self.wait(decided, "the gate's decision")

    def wait(self, found: Callable[[], T | None], what: str) -> T:
        """Ask until the answer is true or something. Raises Unavailable, with the service's errors, at the end."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (answer := found()):
            if time.monotonic() > deadline:
                trouble = self.status()["errors"]
                raise Unavailable(f"waited {_PATIENCE_S:.0f} s for {what}; the service's errors: {trouble or 'none'}")
            self._progress(f"waiting for {what}", 0, 1)
            time.sleep(0.2)
        return answer

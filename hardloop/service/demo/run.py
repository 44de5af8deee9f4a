"""`hardloop demo`: the closed loop on real servers, watched and measured from outside through its own doors."""

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from hardloop import __version__
from hardloop.core import ids
from hardloop.core.errors import BadSettings, Unavailable
from hardloop.service.addresses import show
from hardloop.service.client import Client
from hardloop.service.connections import Connections
from hardloop.service.demo import evidence, measure, report
from hardloop.service.demo.annotator import StandInAnnotator, sign_up
from hardloop.service.demo.data import load, partition
from hardloop.service.demo.items import DemoData, DemoItem, Parts
from hardloop.service.embedded.private_files import Secrets
from hardloop.service.progress import Lines
from hardloop.service.settings import load as load_settings
from hardloop.service.settings_file import demo_file
from hardloop.service.stack import Stack

LOOP = "demo"
ANNOTATOR = "annotator@hardloop.localhost"
_SENDERS = 4  # concurrent clients of the predictor, as production would have
_PATIENCE_S = 600.0  # a link that has not happened by then will not


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line was given; see `hardloop demo --help`."""

    data: Path | None
    rounds: int
    budget: int
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


def run(options: Options) -> int:
    """Run the demo. Returns 0 when every link of the loop happened, 1 when one did not (each is named)."""
    began = time.monotonic()
    lines = Lines()
    watch = Watch()
    with watch.of("data"):
        data = load(options.data, lines, options.limit, options.seed)
        first_labels = max(2 * len(data.labels), 20)
        parts = partition(data, options.seed, first_labels, options.budget, options.rounds)
    for note in (*data.notes, *parts.notes):
        lines.say(note)
    folder = Path(tempfile.mkdtemp(prefix="hardloop-demo-"))
    try:
        config = folder / "hardloop.toml"
        config.write_text(demo_file(LOOP, data.labels, options.budget, options.recipe, options.seed), encoding="utf-8")
        settings = load_settings(config)
        with Stack(settings, config) as stack:
            with watch.of("services"):
                connections = stack.start(lines)
            turn = Turn(options, data, parts, connections, lines, watch, settings.data_dir)
            result = turn.play(began)
            code = _finish(result, options)
            if options.keep:
                print(show(connections, settings))
                print(f"everything keeps running, data in {folder}; Ctrl-C ends it")
                threading.Event().wait()
            return code
    finally:
        # A second Ctrl-C while everything stops must not leave anything behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)


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


class Turn:
    """One run of the demo against running services."""

    def __init__(
        self, options: Options, data: DemoData, parts: Parts, connections: Connections, lines: Lines, watch: Watch,
        data_dir: Path,
    ) -> None:  # fmt: skip
        self.options, self.data, self.parts, self.lines, self.watch = options, data, parts, lines, watch
        self.connections = connections
        self.client = Client(connections)
        self.predictor = httpx.Client(base_url=connections.predictors[LOOP], timeout=60.0, trust_env=False)
        self.truth = {ids.sample_id(item.image): item.label for item in (*parts.seed, *parts.stream)}
        token = sign_up(
            connections.label_studio_url,
            connections.label_studio_key.get_secret_value(),
            ANNOTATOR,
            Secrets(data_dir / "secrets.json").get("annotator_password"),
        )
        self.annotator = StandInAnnotator(
            connections.label_studio_url, token, data.labels, self.truth, options.annotator_error, options.seed
        )
        self.arena = measure.Arena(
            connections, LOOP, data, parts, options.recipe, options.seed, self.annotator, data_dir / "arena"
        )
        self.evidence: dict[str, str] = {}
        self.broken: dict[str, str] = {}  # links that failed in some round, whatever happened in the others
        self.served: list[str] = []
        self.streamed = 0
        self.reported_webhooks = 0

    def play(self, began: float) -> report.Report:
        """First model, then round after round, then the comparison with random picking."""
        with self.watch.of("first_model"):
            first = self._first_model()
        rounds = []
        loop_began = time.monotonic()
        for number in range(1, self.options.rounds + 1):
            rounds.append(self._round(number))
        loop_s = time.monotonic() - loop_began
        with self.watch.of("random"):
            compared = self.arena.compare(rounds, self.lines)
        stages = report.StageSeconds.sum([r.seconds for r in compared.rounds])
        seconds = report.Seconds(
            data=self.watch.seconds["data"],
            services=self.watch.seconds["services"],
            first_model=self.watch.seconds["first_model"],
            loop=loop_s,
            random=self.watch.seconds["random"],
            total=time.monotonic() - began,
            stages=stages,
        )
        return report.Report(
            hardloop=__version__,
            data=report.DataFacts(
                name=self.data.name,
                labels=self.data.labels,
                sizes={name: len(getattr(self.parts, name)) for name in ("seed", "legacy", "stream", "test")},
                notes=(*self.data.notes, *self.parts.notes),
            ),
            settings=report.Settings(
                rounds=self.options.rounds,
                budget=self.options.budget,
                first_labels=len(self.parts.seed),
                annotator_error=self.options.annotator_error,
                seed=self.options.seed,
                recipe=self.options.recipe,
                random_seeds=measure.RANDOM_SEEDS,
            ),
            first_model=first,
            rounds=compared.rounds,
            random_curve=compared.curve,
            totals=report.Totals.of(compared.rounds, compared.gain),
            seconds=seconds,
            links=tuple(
                report.Link(
                    name=name,
                    happened=name in self.evidence and name not in self.broken,
                    evidence=self.broken.get(name) or self.evidence.get(name, "no sign of it"),
                )
                for name in report.LINKS
            ),
        )

    # ------------------------------------------------------------ before the first round

    def _first_model(self) -> report.FirstModel:
        for role, items in (("legacy", self.parts.legacy), ("seed", self.parts.seed)):
            self._upload(items, role)
        self.lines.say(f"training the first model on {len(self.parts.seed)} labels")
        job = self.client.run(LOOP, {"steps": ["train", "promote"], "manual": True}, key="first-model")
        if job["state"] == "failed":
            raise Unavailable(f"the first model could not be trained: {job['error']}")
        version = job["result"]["promote"]
        if version is None:
            why = self.client.get(f"/loops/{LOOP}/decisions")[-1]["reason"]
            raise BadSettings(f"the gate refused the first model ({why}): give it more first labels or better data")
        self._wait_until_served(version)
        accuracy = self.arena.accuracy(version)
        self.evidence["first-model"] = f"version {version}, {100 * accuracy.value:.1f} % on the frozen test set"
        return report.FirstModel(labels=len(self.parts.seed), model_version=version, accuracy=accuracy)

    def _upload(self, items: Sequence[DemoItem], role: str) -> None:
        for start in range(0, len(items), 100):
            part = items[start : start + 100]
            taken = self.client.post(
                f"/loops/{LOOP}/images",
                files=[("files", (item.name, item.image)) for item in part],
                data={"role": role, "source": "demo", "labels": measure.as_json([item.label for item in part])},
            )
            if taken["refused"]:
                refusals = self.client.get(f"/loops/{LOOP}/refusals")
                raise BadSettings(f"an image was refused by the service: {refusals[-1]['reason']}")
            self.lines(f"uploading {role} images", start + len(part), len(items))

    def _wait_until_served(self, version: str) -> None:
        def served() -> bool:
            answer = self.predictor.get("/model")
            return answer.status_code == 200 and str(answer.json()["version"]) == version

        self._until(served, f"the predictor to serve version {version}")
        if self.served and self.served[-1] != version:
            self.evidence["reload"] = f"version {self.served[-1]} was replaced by {version} in the running server"
        self.served.append(version)

    # ------------------------------------------------------------ one round

    def _round(self, number: int) -> report.Round:
        watch = Watch()
        before = self.client.get(f"/loops/{LOOP}")
        captured_before = self._captured()
        self.lines.say(f"round {number} of {self.options.rounds}")
        with watch.of("stream"):
            traffic = self._traffic(number)
            self._stream(traffic)
        with watch.of("ingest"):
            captured = self._ingested()
        with watch.of("mine"):
            picked = self._mine(number)
        with watch.of("approve"):
            approved = self.client.post(f"/loops/{LOOP}/queue/approve", {"actor": "demo reviewer"})["changed"]
            self._note("approve", approved, f"{approved} queue items approved")
        with watch.of("send"):
            pushed = self._sent(before["queue"])
        with watch.of("annotate"):
            answers = self.annotator.answer(self._project(), self.lines)
            self._note("annotate", answers.answered, f"{answers.answered} tasks answered by {ANNOTATOR}")
        with watch.of("collect"):
            self._collected(picked)
        with watch.of("train"):
            candidate, labels_used = self._trained(number, picked)
        with watch.of("promote"):
            verdict = self._decided(candidate)
        return self._summary(
            number, watch, picked, candidate, verdict,
            labels_used=labels_used, streamed=len(traffic), captured=captured - captured_before, pushed=pushed,
            wrong=answers.wrong,
        )  # fmt: skip

    def _traffic(self, number: int) -> Sequence[DemoItem]:
        """This round's part of the stream: equal parts, in the order of arrival."""
        total, rounds = len(self.parts.stream), self.options.rounds
        return self.parts.stream[total * (number - 1) // rounds : total * number // rounds]

    def _stream(self, traffic: Sequence[DemoItem]) -> None:
        def send(item: DemoItem) -> Mapping[str, Any]:
            answer = self.predictor.post("/predict", content=item.image, params={"source": "demo-camera"})
            answer.raise_for_status()
            return dict(answer.json())

        done = 0
        with ThreadPoolExecutor(_SENDERS) as senders:
            for answer in senders.map(send, traffic):
                done += 1
                if str(answer["model_version"]) != self.served[-1]:
                    raise Unavailable(f"the predictor answered with version {answer['model_version']}")
                self.lines("production traffic", done, len(traffic))
        self.streamed += done
        self._note("stream", done, f"{self.streamed} images answered by the served model")

    def _captured(self) -> int:
        samples: dict[str, int] = self.client.get(f"/loops/{LOOP}")["samples"]
        return samples.get("pool", 0) + samples.get("audit", 0)

    def _ingested(self) -> int:
        """Wait until all that capture took is in the loop; the count of distinct samples it holds then."""

        def written() -> bool:
            stats = self.predictor.get("/stats").json()["capture"]
            return int(stats["pending"]) == 0

        self._until(written, "capture to write everything it took")
        self.client.run(LOOP, {"steps": ["ingest"]})
        stats = self.predictor.get("/stats").json()["capture"]
        by_policy = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in stats["taken"].items())
        self._note("capture", stats["written"], f"{stats['written']} samples in the store: {by_policy}")
        return self._captured()

    def _mine(self, number: int) -> list[dict[str, Any]]:
        job = self.client.run(LOOP, {"steps": ["mine"], "budget": self.options.budget}, key=f"round-{number}")
        if job["state"] == "failed":
            raise Unavailable(f"mining failed: {job['error']}")
        selection = job["result"]["mine"]
        items: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.client.get(f"/loops/{LOOP}/queue?selection={selection}&limit=1000&after={after}")
            items += page["items"]
            after = page["next"]
        reasons = items[0]["receipt"]["reasons"] if items else ()
        self._note("mine", len(items), f"{len(items)} picks, the first because of: {'; '.join(reasons)}")
        return items

    def _sent(self, before: Mapping[str, int]) -> int:
        tasks_before = before["items"] - before["queued"] - before["approved"] - before["rejected"]

        def sent() -> bool:
            counts = self.client.get(f"/loops/{LOOP}")["queue"]
            return bool(counts["approved"] == 0 and counts["queued"] == 0)

        self._until(sent, "the approved samples to become tasks")
        counts = self.client.get(f"/loops/{LOOP}")["queue"]
        return int(counts["items"] - counts["queued"] - counts["approved"] - counts["rejected"] - tasks_before)

    def _project(self) -> int:
        tasks = self.client.get(f"/loops/{LOOP}/tasks")
        return int(tasks[0]["project_id"])

    def _collected(self, picked: Sequence[Mapping[str, Any]]) -> None:
        wanted = {item["sample_id"] for item in picked}

        def collected() -> bool:
            rows = self.client.get(f"/loops/{LOOP}/annotations")
            done = {row["sample_id"] for row in rows}
            self.lines("collecting answers", len(done & wanted), len(wanted))
            return wanted <= done

        self._until(collected, "the answers to be collected")

    def _trained(self, number: int, picked: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
        """Wait until the trigger, not us, has made a training of all this round's labels.

        Returns its model version, and how many labels that were bought it took account of.
        """
        samples = {item["sample_id"] for item in picked}

        def trained() -> Mapping[str, Any] | None:
            rows = self._trainings()
            if failed := [t for t in rows if t["state"] == "failed"]:
                raise Unavailable(f"the training of round {number} failed: {failed[-1]['error']}")
            return evidence.training_of(samples, self.client.get(f"/loops/{LOOP}/labels"), rows)

        training: Mapping[str, Any] = self._until(trained, "the retraining")
        dataset = self._dataset(training)
        counts = ", ".join(f"{count} {split}" for split, count in dataset["counts"].items())
        self._note("dataset", 1, f"version {dataset['number']} ({dataset['digest'][:12]}): {counts}")
        version = str(training["model_version"])
        self._note("train", 1, f"model version {version}, because {dataset['reason']}")
        return version, evidence.labels_in(dataset)

    def _trainings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get(f"/loops/{LOOP}/trainings")
        return found

    def _dataset(self, training: Mapping[str, Any]) -> Mapping[str, Any]:
        rows: list[dict[str, Any]] = self.client.get(f"/loops/{LOOP}/datasets")
        return next(row for row in rows if row["number"] == training["dataset_number"])

    def _decided(self, version: str) -> Mapping[str, Any]:
        def decided() -> Mapping[str, Any] | None:
            rows = {d["model_version"]: d for d in self.client.get(f"/loops/{LOOP}/decisions")}
            found = rows.get(version)
            return found if found is not None and found["applied_at"] is not None else None

        decision: Mapping[str, Any] = self._until(decided, "the gate's decision")
        stored = self.arena.verdict(version)
        if stored is None or (stored.promote, stored.reason) != (decision["promoted"], decision["reason"]):
            said = "no verdict" if stored is None else f"the verdict {stored.reason!r}"
            self.broken["gate"] = f"MLflow holds {said} on version {version}, decided was {decision['reason']!r}"
        self._note("gate", 1, f"MLflow holds of version {version}: {decision['reason']}")
        if decision["promoted"]:
            self._note("promote", 1, f"version {version} became the champion")
        # Also where this one was kept back: a training on a part of the labels may have been promoted before it.
        champion = str(self.client.get(f"/loops/{LOOP}")["champion"])
        if champion != self.served[-1]:
            self._wait_until_served(champion)
        return decision

    def _summary(
        self, number: int, watch: Watch, picked: Sequence[Mapping[str, Any]], candidate: str,
        decision: Mapping[str, Any], *, labels_used: int, streamed: int, captured: int, pushed: int,
        wrong: int,
    ) -> report.Round:  # fmt: skip
        samples = {item["sample_id"] for item in picked}
        rows = [a for a in self.client.get(f"/loops/{LOOP}/annotations") if a["sample_id"] in samples]
        labels = [row for row in self.client.get(f"/loops/{LOOP}/labels") if row["label"] is not None]
        new = [row for row in labels if row["sample_id"] in samples]
        hinted = {i for hook in self.client.get(f"/loops/{LOOP}/webhooks") for i in hook["annotation_ids"]}
        heard = sum(row["annotation_id"] in hinted for row in rows)
        if heard:
            self._note("webhook", heard, f"webhooks named {heard} of {len(rows)} answers of round {number}")
        if new:
            self._note("collect", len(new), f"{len(new)} labels from {len(rows)} answers")
        audit = evidence.audit(evidence.tasks_of(self.connections, self._project()), samples, rows)
        self._pre_annotated(number, picked, audit)
        return report.Round(
            number=number,
            labels_used=labels_used,
            labels_new=len(new),
            streamed=streamed,
            captured=captured,
            picked=len(picked),
            queue=self.client.get(f"/loops/{LOOP}")["queue"]["queued"],
            tasks_pushed=pushed,
            annotations_collected=len(rows),
            skipped=sum(bool(row["skipped"]) for row in rows),
            wrong_answers=wrong,
            webhooks_received=heard,
            webhooks_missed=len(rows) - heard,
            duplicates=audit.duplicates,
            lost=audit.lost,
            model_version=candidate,
            served_version=self.served[-1],
            verdict=report.GateVerdict(promoted=decision["promoted"], reason=decision["reason"]),
            accuracy=self.arena.accuracy(candidate),
            served_accuracy=self.arena.accuracy(self.served[-1]),
            seconds=report.StageSeconds(**watch.seconds),
        )

    def _pre_annotated(self, number: int, picked: Sequence[Mapping[str, Any]], audit: evidence.Audit) -> None:
        """Label Studio itself must hold every pick as a task, with what the model says of it where it does."""
        said = sum(item["receipt"]["predicted"] >= 0 for item in picked)
        found = f"{audit.tasks} tasks in Label Studio, {audit.pre_annotated} of them with a pre-annotation"
        if audit.tasks < len(picked) or audit.pre_annotated < said:
            self.broken["send"] = f"round {number}: {found}, of {len(picked)} picks of which the model judged {said}"
        self._note("send", min(audit.tasks, audit.pre_annotated), found)

    def _note(self, link: str, count: int, evidence: str) -> None:
        if count:
            self.evidence[link] = evidence

    def _until(self, found: Any, what: str) -> Any:
        """Ask until the answer is true or something; raises Unavailable when patience ends."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (answer := found()):
            if time.monotonic() > deadline:
                trouble = self.client.get(f"/loops/{LOOP}")["errors"]
                raise Unavailable(f"waited {_PATIENCE_S:.0f} s for {what}; the service's errors: {trouble or 'none'}")
            self.lines(f"waiting for {what}", 0, 1)
            time.sleep(0.2)
        return answer

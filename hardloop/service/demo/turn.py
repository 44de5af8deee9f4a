"""The turns of the loop: traffic, picks, answers, training, promotion, and what shows that each of them happened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardloop.core import ids
from hardloop.service.client import Client
from hardloop.service.connections import Connections
from hardloop.service.demo import evidence, measure, report
from hardloop.service.demo.annotator import StandInAnnotator, sign_up
from hardloop.service.demo.items import DemoData, DemoItem, Parts
from hardloop.service.demo.links import Links
from hardloop.service.demo.loop_api import LoopApi
from hardloop.service.demo.options import Options, Watch
from hardloop.service.demo.production import Production
from hardloop.service.embedded.private_files import Secrets
from hardloop.service.progress import Lines

LOOP = "demo"
ANNOTATOR = "annotator@hardloop.localhost"
Row = Mapping[str, Any]


def annotator_password(data_dir: Path) -> str:
    """The stand-in annotator's password, the same whenever it is asked for."""
    return Secrets(data_dir / "secrets.json").get("annotator_password")


class Turn:
    """The loop's turns against running services. `served` holds the versions that served, `links` what was seen."""

    def __init__(
        self, options: Options, data: DemoData, parts: Parts, connections: Connections, lines: Lines, data_dir: Path
    ) -> None:
        self.options, self.data, self.parts, self.lines = options, data, parts, lines
        self.connections = connections
        self.api = LoopApi(Client(connections), LOOP, lines)
        self.production = Production(connections.predictors[LOOP])
        truth = {ids.sample_id(item.image): item.label for item in (*parts.seed, *parts.stream)}
        token = sign_up(
            connections.label_studio_url,
            connections.label_studio_key.get_secret_value(),
            ANNOTATOR,
            annotator_password(data_dir),
        )
        self.annotator = StandInAnnotator(
            connections.label_studio_url, token, data.labels, truth, options.annotator_error, options.seed
        )
        self.arena = measure.Arena(
            connections, LOOP, data, parts, options.recipe, options.seed, self.annotator, data_dir / "arena"
        )
        self.links = Links()
        self.served: list[str] = []
        self.labels_used = len(parts.seed)

    def wait_until_served(self, version: str) -> None:
        """Wait until the predictor answers with a version, and look whether it is still the process it was."""
        self.api.wait(lambda: self.production.serving() == version, f"the predictor to serve version {version}")
        if self.served:
            running, counts = evidence.same_process(self.production.stats(), self.production.answered)
            how = "in the running server" if running else "by a server that was started again"
            said = f"version {self.served[-1]} was replaced by {version} {how}: {counts}"
            self.links.see("reload", running, said)
            if not running:
                self.links.fail("reload", said)
        self.served.append(version)

    def round(self, number: int) -> report.Round:
        """One turn. Where nothing was picked it ends there: nobody is asked, nothing is trained."""
        watch = Watch()
        tasks_before, held_before = self.api.tasks(), self.api.held()
        self.lines.say(f"round {number} of {self.options.rounds}")
        traffic = self._traffic(number)
        with watch.of("stream"):
            self.production.send(traffic, self.served[-1], self.lines)
            self.links.see("stream", traffic, f"{self.production.answered} images answered by the served model")
        with watch.of("ingest"):
            self._ingest()
        captured = self.api.held() - held_before
        with watch.of("mine"):
            picked, notes = self._mine(number)
        facts: dict[str, Any] = {"number": number, "streamed": len(traffic), "captured": captured}
        facts |= {"picked": len(picked), "notes": notes}
        if not picked:
            return self._idle(facts, watch)
        with watch.of("approve"):
            approved = self.api.client.post(f"/loops/{LOOP}/queue/approve", {"actor": "demo reviewer"})["changed"]
            self.links.see("approve", approved, f"{approved} queue items approved")
        with watch.of("send"):
            self.api.wait_until_sent()
        with watch.of("annotate"):
            answers = self.annotator.answer(self._project(), self.lines)
            self.links.see("annotate", answers.answered, f"{answers.answered} tasks answered by {ANNOTATOR}")
        with watch.of("collect"):
            self.api.wait_until_collected([item["sample_id"] for item in picked])
        with watch.of("train"):
            candidate = self._train(picked)
        with watch.of("promote"):
            decision = self._decide(number, candidate)
        facts |= {"tasks_pushed": self.api.tasks() - tasks_before, "wrong_answers": answers.wrong}
        return self._summary(facts, watch, picked, candidate, decision)

    def _traffic(self, number: int) -> Sequence[DemoItem]:
        """This round's part of the stream: equal parts, in the order of arrival."""
        total, rounds = len(self.parts.stream), self.options.rounds
        return self.parts.stream[total * (number - 1) // rounds : total * number // rounds]

    def _ingest(self) -> None:
        """Wait until all that capture took is in the loop."""

        def written() -> bool:
            return int(self.production.stats()["capture"]["pending"]) == 0

        self.api.wait(written, "capture to write everything it took")
        self.api.run({"steps": ["ingest"]}, "reading the captures")
        self.links.see("capture", *evidence.captured(self.production.stats()["capture"]))

    def _mine(self, number: int) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """The round's picks, and sentences about what they fall short of."""
        budget = self.options.budget
        selection = self.api.run({"steps": ["mine"], "budget": budget}, "mining", key=f"round-{number}")["mine"]
        items = self.api.picks(selection)
        first = f", the first because of: {'; '.join(items[0]['receipt']['reasons'])}" if items else ""
        self.links.see("mine", items, f"{len(items)} picks{first}")
        if len(items) >= budget:
            return items, ()
        note = "; ".join((f"{len(items)} of {budget} were picked", *self.api.shortfall(selection)))
        self.lines.say(f"round {number}: {note}")
        return items, (note,)

    def _project(self) -> int:
        return int(self.api.rows("tasks")[0]["project_id"])

    def _train(self, picked: Sequence[Row]) -> str:
        """Wait for the training of all this round's labels; the version it made."""
        training = self.api.training_of({item["sample_id"] for item in picked})
        dataset = self.api.dataset_of(training)
        counts = ", ".join(f"{count} {split}" for split, count in dataset["counts"].items())
        self.links.see("dataset", True, f"version {dataset['number']} ({dataset['digest'][:12]}): {counts}")
        self.labels_used = evidence.labels_in(dataset)
        version = str(training["model_version"])
        self.links.see("train", True, f"model version {version}, because {dataset['reason']}")
        return version

    def _decide(self, number: int, version: str) -> Row:
        """Wait for the gate's decision on the candidate, and for what serves then."""
        decision = self.api.decision_on(version)
        stored = self.arena.verdict(version)
        if stored is None or (stored.promote, stored.reason) != (decision["promoted"], decision["reason"]):
            said = "no verdict" if stored is None else f"the verdict {stored.reason!r}"
            self.links.fail(
                "gate", f"round {number}: MLflow holds {said} on version {version}, decided was {decision['reason']!r}"
            )
        self.links.see("gate", True, f"MLflow holds of version {version}: {decision['reason']}")
        became = "became the champion" if decision["promoted"] else "was kept back, as all before it"
        self.links.see("promote", decision["promoted"], f"version {version} {became}")
        # Also where this one was kept back: a training on a part of the labels may have been promoted before it.
        champion = str(self.api.status()["champion"])
        if champion != self.served[-1]:
            self.wait_until_served(champion)
        return decision

    def _idle(self, facts: Mapping[str, Any], watch: Watch) -> report.Round:
        """A round without picks: what served serves on, with the labels it had."""
        serving = self.served[-1]
        accuracy = self.arena.accuracy(serving)
        return report.Round(
            **facts,
            labels_used=self.labels_used,
            labels_new=0,
            queue=self.api.status()["queue"]["queued"],
            tasks_pushed=0,
            annotations_collected=0,
            skipped=0,
            wrong_answers=0,
            webhooks_received=0,
            webhooks_missed=0,
            duplicates=0,
            lost=0,
            model_version=serving,
            served_version=serving,
            verdict=report.GateVerdict(promoted=False, reason="Nothing was picked, so there is no candidate."),
            accuracy=accuracy,
            served_accuracy=accuracy,
            seconds=report.StageSeconds(**watch.seconds),
        )

    def _summary(
        self, facts: Mapping[str, Any], watch: Watch, picked: Sequence[Row], candidate: str, decision: Row
    ) -> report.Round:
        number = facts["number"]
        samples = {item["sample_id"] for item in picked}
        rows = [a for a in self.api.rows("annotations") if a["sample_id"] in samples]
        new = [row for row in self.api.rows("labels") if row["label"] is not None and row["sample_id"] in samples]
        hinted = {i for hook in self.api.rows("webhooks") for i in hook["annotation_ids"]}
        heard = sum(row["annotation_id"] in hinted for row in rows)
        skipped = sum(bool(row["skipped"]) for row in rows)
        self.links.see("webhook", heard, f"webhooks named {heard} of {len(rows)} answers of round {number}")
        audit = evidence.audit(evidence.tasks_of(self.connections, self._project()), samples, rows)
        self._held(number, picked, audit, len(new), skipped)
        return report.Round(
            **facts,
            labels_used=self.labels_used,
            labels_new=len(new),
            queue=self.api.status()["queue"]["queued"],
            annotations_collected=len(rows),
            skipped=skipped,
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

    def _held(self, number: int, picked: Sequence[Row], audit: evidence.Audit, labels: int, skipped: int) -> None:
        """Every pick of the round must be a task with what the model says of it, where it does, and become a label."""
        said = sum(item["receipt"]["predicted"] >= 0 for item in picked)
        found = f"{audit.tasks} tasks in Label Studio, {audit.pre_annotated} of them with a pre-annotation"
        if audit.tasks < len(picked) or audit.pre_annotated < said:
            self.links.fail("send", f"round {number}: {found}, of {len(picked)} picks of which the model judged {said}")
        self.links.see("send", min(audit.tasks, audit.pre_annotated), found)
        became = f"{labels} labels from {len(picked)} picks, of which {skipped} were skipped"
        if labels + skipped < len(picked):
            self.links.fail("collect", f"round {number}: {became}")
        self.links.see("collect", labels, became)

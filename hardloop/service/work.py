"""What the database knows of people's work in one loop: selections, the queue, tasks, annotations and labels."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from hardloop.core.errors import Conflict, Missing
from hardloop.core.records import Annotation, RefusedAnnotation, Selection, TaskState
from hardloop.service import database as db

GIVEN = ("seed", "legacy")  # origins of labels the user brought, which no annotation can change
VANISHED = 5  # so many tasks, all gone at once, are another Label Studio rather than somebody deleting
_BATCH = 500  # tasks taken over in one transaction: others wait for SQLite's write lock meanwhile


class Work:
    """The queue, tasks, annotations and labels of one loop."""

    def __init__(self, engine: Engine, loop: str) -> None:
        self._engine = engine
        self.loop = loop

    # ------------------------------------------------------------ selections and the queue

    def add_selection(
        self, selection_id: str, selection: Selection, state: str, encoder: str, model_version: str | None,
        policy: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Store a selection and its queue items together. Returns False where the selection is there already.

        policy: the settings it was made with, for the history; the selection itself holds their digest.
        """
        at = db.now()
        with db.transaction(self._engine) as connection:
            number = self._next_number(connection, db.selections)
            row = {
                "loop": self.loop,
                "selection_id": selection_id,
                "number": number,
                "method": selection.method,
                "seed": selection.seed,
                "budget": selection.budget,
                "policy_digest": selection.policy_digest,
                "model_version": model_version,
                "encoder": encoder,
                "objective": selection.objective,
                "terms": dict(selection.terms),
                "shortfall": list(selection.shortfall),
                "at": at,
            }
            if not db.insert_new(connection, db.selections, [row]):
                return False
            items = [
                {
                    "loop": self.loop,
                    "sample_id": pick.sample_id,
                    "selection_id": selection_id,
                    "arm": pick.receipt.arm.value,
                    "rank": pick.receipt.rank,
                    "receipt": dataclasses.asdict(pick.receipt),
                    "state": state,
                    "decided_by": None,
                    "decided_at": None,
                }
                for pick in selection.picks
            ]
            if items:
                connection.execute(sa.insert(db.queue_items), items)
            detail = {"selection": selection_id, "picks": len(items), "policy": policy}
            self._event(connection, "miner", "selection", detail)
        return True

    def selection(self, selection_id: str) -> dict[str, Any] | None:
        """One selection with its numbers, or None."""
        table = db.selections
        return self._one(sa.select(table).where(table.c.loop == self.loop, table.c.selection_id == selection_id))

    def selections(self) -> list[dict[str, Any]]:
        """All selections, the oldest first."""
        table = db.selections
        return self._rows(sa.select(table).where(table.c.loop == self.loop).order_by(table.c.number))

    def last_selection(self) -> dict[str, Any] | None:
        """The newest selection with how many `picks` it made, None before the first."""
        table, items = db.selections, db.queue_items
        picks = sa.select(sa.func.count()).where(_on(items, table, "selection_id")).scalar_subquery().label("picks")
        query = sa.select(table, picks).where(table.c.loop == self.loop).order_by(table.c.number.desc()).limit(1)
        return self._one(query)

    def queue(
        self, state: str | None = None, selection_id: str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Queue items in the order of selection and rank, with the task each became, if any."""
        items, tasks = db.queue_items, db.tasks
        query = (
            sa.select(items, tasks.c.task_id, tasks.c.deleted_at, db.selections.c.number.label("selection_number"))
            .join(db.selections, _on(items, db.selections, "selection_id"))
            .outerjoin(tasks, _on(items, tasks, "sample_id"))
            .where(items.c.loop == self.loop)
            .order_by(db.selections.c.number, items.c.rank)
            .offset(offset)
            .limit(limit)
        )
        if state is not None:
            query = query.where(items.c.state == state)
        if selection_id is not None:
            query = query.where(items.c.selection_id == selection_id)
        return self._rows(query)

    def decide(self, state: str, actor: str, sample_ids: Iterable[str] | None = None) -> int:
        """Approve or reject queue items that wait; None decides all of them. Returns how many changed.

        Raises Missing naming the first sample that is not in the queue.
        """
        items = db.queue_items
        waiting = sa.and_(items.c.loop == self.loop, items.c.state == "queued")
        with db.transaction(self._engine) as connection:
            if sample_ids is not None:
                wanted = set(sample_ids)
                query = sa.select(items.c.sample_id).where(items.c.loop == self.loop)
                unknown = wanted - set(connection.scalars(query))
                if unknown:
                    raise Missing(f"sample {min(unknown)} is not in the queue of loop {self.loop!r}: mine first")
                waiting = sa.and_(waiting, items.c.sample_id.in_(wanted))
            change = sa.update(items).where(waiting).values(state=state, decided_by=actor, decided_at=db.now())
            changed = connection.execute(change).rowcount
            if changed:
                self._event(connection, actor, state, {"items": changed})
        return changed

    def drop(self, sample_ids: Iterable[str], actor: str) -> int:
        """Reject queue items that have no task yet, whatever was decided about them. Returns how many changed."""
        items, tasks = db.queue_items, db.tasks
        sent = sa.select(tasks.c.sample_id).where(_on(items, tasks, "sample_id"))
        changed = 0
        with db.transaction(self._engine) as connection:
            for sample_id in sample_ids:
                here = sa.and_(items.c.loop == self.loop, items.c.sample_id == sample_id, items.c.state != "rejected")
                change = sa.update(items).where(here, ~sent.exists())
                values = {"state": "rejected", "decided_by": actor, "decided_at": db.now()}
                changed += connection.execute(change.values(**values)).rowcount
        return changed

    def to_send(self) -> list[dict[str, Any]]:
        """Approved queue items that have no task yet, the most valuable first; none whose label was brought since, or
        whose sample was withdrawn.
        """
        settled = self._settled()
        return [item for item in self.queue("approved") if item["task_id"] is None and item["sample_id"] not in settled]

    def counts(self) -> dict[str, int]:
        """How much work is where: items (all ever picked), queued, approved (no task yet), rejected, open (a task
        without a usable answer: a label or a skip), labelled (an agreed label).

        An item whose label was brought meanwhile, or whose sample was withdrawn, waits for nobody: it is neither
        queued, approved nor open.
        """
        labelled = {row["sample_id"] for row in self.labels() if row["label"] is not None}
        settled, answered = self._settled(), self._answered()
        counts = dict.fromkeys(("items", "queued", "approved", "rejected", "open", "labelled"), 0)
        for item in self.queue():
            counts["items"] += 1
            counts["labelled"] += item["sample_id"] in labelled
            if item["task_id"] is None and (item["state"] == "rejected" or item["sample_id"] not in settled):
                counts[item["state"]] += 1
            counts["open"] += _waits(item, settled | answered)
        return counts

    def open_items(self) -> list[dict[str, Any]]:
        """Queue items whose task waits for a first usable answer."""
        settled = self._settled() | self._answered()
        return [item for item in self.queue() if _waits(item, settled)]

    def _settled(self) -> set[str]:
        """Samples nobody needs to be asked about: their label was brought, or they were withdrawn."""
        given = {row["sample_id"] for row in self.labels() if row["label"] is not None and row["origin"] in GIVEN}
        query = sa.select(db.samples.c.sample_id).where(db.samples.c.loop == self.loop, db.samples.c.role == "gone")
        with self._engine.connect() as connection:
            return given | set(connection.scalars(query))

    def _answered(self) -> set[str]:
        return {row["sample_id"] for row in self.annotations() if row["deleted_at"] is None and row["refused"] is None}

    # ------------------------------------------------------------ tasks and answers

    def add_tasks(self, project_id: int, task_ids: Mapping[str, int]) -> int:
        """Remember which task each sample became. Returns how many were new.

        Raises Conflict where a task's number is another sample's already: numbers begin again in another Label Studio.
        """
        at = db.now()
        rows: list[dict[str, Any]] = [
            {
                "loop": self.loop,
                "sample_id": s,
                "project_id": project_id,
                "task_id": t,
                "sent_at": at,
                "deleted_at": None,
            }
            for s, t in task_ids.items()
        ]
        with db.transaction(self._engine) as connection:
            new = db.insert_new(connection, db.tasks, rows)
            stored = set(connection.scalars(sa.select(db.tasks.c.sample_id).where(db.tasks.c.loop == self.loop)))
            strange = sorted(task_ids.keys() - stored)
            if strange:
                raise Conflict(self._other_place(f"task {task_ids[strange[0]]} of project {project_id} is another's"))
            if new:
                self._event(connection, "service", "tasks", {"new": new})
        return new

    def has_tasks(self) -> bool:
        """Whether anything was ever sent."""
        query = sa.select(db.tasks.c.task_id).where(db.tasks.c.loop == self.loop).limit(1)
        with self._engine.connect() as connection:
            return connection.scalar(query) is not None

    def tasks(self) -> list[dict[str, Any]]:
        """Every task of the loop."""
        return self._rows(sa.select(db.tasks).where(db.tasks.c.loop == self.loop))

    def check_project(self, project_id: int, alive: frozenset[int], states: Sequence[TaskState] = ()) -> None:
        """Raises Conflict where the annotation tool's project is not the one our tasks are in.

        alive: every task the project holds. states: tasks as they are there. Whatever is missing counts as deleted by
        somebody, so that the wrong project would take back every answer.
        """
        live = [task for task in self.tasks() if task["deleted_at"] is None]
        elsewhere = sorted({task["project_id"] for task in live} - {project_id})
        if elsewhere:
            raise Conflict(
                f"the tasks of loop {self.loop!r} are in project {elsewhere[0]} of Label Studio, and what answers now "
                f"is project {project_id}: set label_studio.project_id to {elsewhere[0]} and start again. Nothing was "
                'taken back. If that project is gone, restore it from a backup, or collect once with "deleted": true '
                "to take back its answers"
            )
        if len(live) >= VANISHED and not any(task["task_id"] in alive for task in live):
            raise Conflict(self._other_place(f"all {len(live)} tasks are gone from project {project_id}"))
        samples = {task["task_id"]: task["sample_id"] for task in live}
        for state in states:
            if samples.get(state.task_id, state.sample_id) != state.sample_id:
                raise Conflict(self._other_place(f"task {state.task_id} of project {project_id} is another's"))

    def _other_place(self, what: str) -> str:
        return (
            f"loop {self.loop!r}: {what}, as in a Label Studio that was set up anew. Nothing was taken back: restore "
            "its database, or begin a new loop with this one's labels. If somebody deleted all tasks on purpose, "
            'collect once with "deleted": true to take back their answers'
        )

    def mark_deleted_tasks(self, project_id: int, alive: frozenset[int]) -> int:
        """Mark tasks that are not in the annotation tool's project; their answers are retracted with them."""
        task = db.tasks.c
        with db.transaction(self._engine) as connection:
            query = sa.select(task.project_id, task.task_id, task.sample_id).where(
                task.loop == self.loop, task.deleted_at.is_(None)
            )
            gone = [row for row in connection.execute(query) if row[0] != project_id or row[1] not in alive]
            for _, task_id, sample_id in gone:
                where = sa.and_(task.loop == self.loop, task.sample_id == sample_id)
                connection.execute(sa.update(db.tasks).where(where).values(deleted_at=db.now()))
                self._retract(connection, sample_id, task_id, keep=set())
                self._agree(connection, sample_id)
                self._event(connection, "annotation tool", "task deleted", {"task": task_id, "sample": sample_id})
        return len(gone)

    def collect(self, states: Sequence[TaskState], cursor: str) -> dict[str, int]:
        """Take over the answers of tasks and then move the reading position, in transactions of bounded size.

        Killed in between, the same answers are read again. Returns counts of new, changed, deleted and refused answers
        and of labels that changed.
        """
        counts = dict.fromkeys(("new", "changed", "unchanged", "deleted", "refused", "labels"), 0)
        for start in range(0, len(states) or 1, _BATCH):
            with db.transaction(self._engine) as connection:
                for state in states[start : start + _BATCH]:
                    self._take(connection, state, counts)
                if start + _BATCH >= len(states):
                    db.upsert(connection, db.cursors, [{"loop": self.loop, "name": "annotations", "value": cursor}])
        return counts

    def annotations(self, sample_id: str | None = None) -> list[dict[str, Any]]:
        """Answers as last collected, deleted ones included; of one sample or of all."""
        table = db.annotations
        query = sa.select(table).where(table.c.loop == self.loop).order_by(table.c.annotation_id)
        return self._rows(query if sample_id is None else query.where(table.c.sample_id == sample_id))

    # ------------------------------------------------------------ labels

    def give_labels(self, given: Mapping[str, str], origin: str) -> dict[str, dict[str, Any]]:
        """Labels the user brought (origin "seed" or "legacy"). A sample that has one keeps it, one whose label was
        retracted takes the new one. Returns the samples' label rows as they are then.
        """
        at = db.now()
        rows: list[dict[str, Any]] = [
            {"loop": self.loop, "sample_id": s, "label": label, "origin": origin, "selection_id": None,
             "annotation_ids": [], "changed_at": at, "used_in": None}
            for s, label in sorted(given.items())
        ]  # fmt: skip
        with db.transaction(self._engine) as connection:
            db.upsert(connection, db.labels, rows, where=db.labels.c.label.is_(None))
        return {row["sample_id"]: row for row in self.labels() if row["sample_id"] in given}

    def labels(self) -> list[dict[str, Any]]:
        """Label rows; `label` is None where it was retracted."""
        return self._rows(sa.select(db.labels).where(db.labels.c.loop == self.loop).order_by(db.labels.c.sample_id))

    # ------------------------------------------------------------ hints and events

    def add_webhook(self, action: str, annotation_ids: Sequence[int]) -> None:
        """Count a hint that arrived."""
        row = {"loop": self.loop, "action": action, "annotation_ids": list(annotation_ids), "at": db.now()}
        with db.transaction(self._engine) as connection:
            connection.execute(sa.insert(db.webhooks), [row])

    def webhooks(self) -> list[dict[str, Any]]:
        """Hints received, the oldest first."""
        table = db.webhooks
        return self._rows(sa.select(table).where(table.c.loop == self.loop).order_by(table.c.id))

    def webhook_count(self) -> int:
        """How many hints were received."""
        query = sa.select(sa.func.count()).where(db.webhooks.c.loop == self.loop)
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def event(self, actor: str, kind: str, detail: Mapping[str, Any]) -> None:
        """Append to the loop's history."""
        with db.transaction(self._engine) as connection:
            self._event(connection, actor, kind, detail)

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest events, the newest first."""
        table = db.events
        return self._rows(sa.select(table).where(table.c.loop == self.loop).order_by(table.c.id.desc()).limit(limit))

    # ------------------------------------------------------------ inside a transaction

    def _take(self, connection: Connection, state: TaskState, counts: dict[str, int]) -> None:
        known = self._known(connection, state.sample_id, state.task_id)
        seen: set[int] = set()
        answers: list[Annotation | RefusedAnnotation] = [*state.annotations, *state.refused]
        for answer in answers:
            seen.add(answer.annotation_id)
            counts[self._store(connection, state.sample_id, answer, known.get(answer.annotation_id))] += 1
        counts["deleted"] += self._retract(connection, state.sample_id, state.task_id, keep=seen)
        counts["labels"] += self._agree(connection, state.sample_id)

    def _known(self, connection: Connection, sample_id: str, task_id: int) -> dict[int, Any]:
        table = db.annotations.c
        query = sa.select(db.annotations).where(
            table.loop == self.loop, table.sample_id == sample_id, table.task_id == task_id
        )
        return {row.annotation_id: row for row in connection.execute(query)}

    def _store(self, connection: Connection, sample: str, answer: Annotation | RefusedAnnotation, known: Any) -> str:
        refused = answer.reason if isinstance(answer, RefusedAnnotation) else None
        content = {
            "label": None if isinstance(answer, RefusedAnnotation) else answer.label,
            "skipped": isinstance(answer, Annotation) and answer.skipped,
            "refused": refused,
            "annotator": answer.annotator,
        }
        if known is not None and known.deleted_at is None and all(getattr(known, k) == v for k, v in content.items()):
            return "unchanged"
        row = {
            "loop": self.loop,
            "annotation_id": answer.annotation_id,
            "task_id": answer.task_id,
            "sample_id": sample,
            **content,
            "origin": answer.origin if isinstance(answer, Annotation) else "manual",
            "lead_time_s": answer.lead_time_s if isinstance(answer, Annotation) else None,
            "updated_at": answer.updated_at,
            "collected_at": db.now(),
            "deleted_at": None,
        }
        db.upsert(connection, db.annotations, [row])
        kind = "refused" if refused else "new" if known is None else "changed"
        detail = {"annotation": answer.annotation_id, "sample": sample, "label": content["label"], "why": refused}
        self._event(connection, answer.annotator, f"annotation {kind}", detail)
        return kind

    def _retract(self, connection: Connection, sample_id: str, task_id: int, keep: set[int]) -> int:
        known = self._known(connection, sample_id, task_id)
        gone = [a for a, row in known.items() if a not in keep and row.deleted_at is None]
        for annotation_id in gone:
            where = sa.and_(db.annotations.c.loop == self.loop, db.annotations.c.annotation_id == annotation_id)
            connection.execute(sa.update(db.annotations).where(where).values(deleted_at=db.now()))
            self._event(connection, "annotation tool", "annotation deleted", {"annotation": annotation_id})
        return len(gone)

    def _agree(self, connection: Connection, sample_id: str) -> int:
        """Derive the sample's label from its answers: what more than half of them say. Returns 1 if it changed."""
        table = db.annotations
        query = sa.select(table.c.annotation_id, table.c.label).where(
            table.c.loop == self.loop, table.c.sample_id == sample_id, table.c.deleted_at.is_(None),
            table.c.label.is_not(None), table.c.refused.is_(None), table.c.skipped.is_(False),
        )  # fmt: skip
        answers: dict[int, str] = {row.annotation_id: row.label for row in connection.execute(query)}
        agreed = majority(list(answers.values()))
        current = connection.execute(
            sa.select(db.labels).where(db.labels.c.loop == self.loop, db.labels.c.sample_id == sample_id)
        ).first()
        if (current is None and agreed is None) or (current is not None and current.origin in GIVEN):
            return 0
        made_by = sorted(a for a, label in answers.items() if label == agreed)
        if current is not None and current.label == agreed:
            if current.annotation_ids != made_by:  # the same label by other answers: no news, but its lineage
                own = sa.and_(
                    db.labels.c.loop == self.loop, db.labels.c.sample_id == sample_id, db.labels.c.origin.not_in(GIVEN)
                )
                connection.execute(sa.update(db.labels).where(own).values(annotation_ids=made_by))
            return 0
        item = connection.execute(
            sa.select(db.queue_items.c.arm, db.queue_items.c.selection_id).where(
                db.queue_items.c.loop == self.loop, db.queue_items.c.sample_id == sample_id
            )
        ).first()
        row = {
            "loop": self.loop,
            "sample_id": sample_id,
            "label": agreed,
            "origin": item.arm if item else "coverage",
            "selection_id": item.selection_id if item else None,
            "annotation_ids": made_by,
            "changed_at": db.now(),
            "used_in": None,
        }
        # A label that the user brought since the look above stays.
        db.upsert(connection, db.labels, [row], where=db.labels.c.origin.not_in(GIVEN))
        return 1

    def _next_number(self, connection: Connection, table: sa.Table) -> int:
        return 1 + (connection.scalar(sa.select(sa.func.max(table.c.number)).where(table.c.loop == self.loop)) or 0)

    def _event(self, connection: Connection, actor: str, kind: str, detail: Mapping[str, Any]) -> None:
        row = {"loop": self.loop, "at": db.now(), "actor": actor, "kind": kind, "detail": dict(detail)}
        connection.execute(sa.insert(db.events), [row])

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def _one(self, query: sa.Select[Any]) -> dict[str, Any] | None:
        rows = self._rows(query)
        return rows[0] if rows else None


def majority(answers: Sequence[str]) -> str | None:
    """What more than half of the answers say; None for no answers or no majority."""
    for label in set(answers):
        if 2 * answers.count(label) > len(answers):
            return label
    return None


def _waits(item: Mapping[str, Any], settled: set[str]) -> bool:
    return item["task_id"] is not None and item["deleted_at"] is None and item["sample_id"] not in settled


def _on(left: sa.Table, right: sa.Table, column: str) -> sa.ColumnElement[bool]:
    return sa.and_(left.c.loop == right.c.loop, left.c[column] == right.c[column])

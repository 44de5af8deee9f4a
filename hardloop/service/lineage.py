"""What the database knows of one loop's dataset versions, trainings and decisions about models."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from hardloop.core.errors import Conflict, Missing
from hardloop.core.records import DatasetVersion, Verdict
from hardloop.service import database as db


class Lineage:
    """Dataset versions, trainings and gate decisions of one loop, each once."""

    def __init__(self, engine: Engine, loop: str) -> None:
        self._engine = engine
        self.loop = loop

    # ------------------------------------------------------------ dataset versions

    def datasets(self) -> list[dict[str, Any]]:
        """All dataset versions, the oldest first."""
        table = db.dataset_versions
        return self._rows(sa.select(table).where(table.c.loop == self.loop).order_by(table.c.number))

    def dataset(self, number: int, labels: tuple[str, ...]) -> DatasetVersion:
        """One dataset version as rooms know it. Raises Missing."""
        found = {row["number"]: row for row in self.datasets()}
        if number not in found:
            raise Missing(f"no dataset version {number} in loop {self.loop!r}: there are {len(found)}, from 1")
        row = found[number]
        return DatasetVersion(self.loop, number, row["digest"], row["key"], labels, row["counts"])

    # ------------------------------------------------------------ trainings

    def claim_training(
        self, training_key: str, recipe: str, seed: int, *, digest: str, key: str, counts: Mapping[str, int],
        excluded: Sequence[str], reason: str, used: Sequence[tuple[str, datetime]],
    ) -> dict[str, Any] | None:  # fmt: skip
        """Store a dataset version and claim its training, all at once: a crash leaves both or neither.

        Equal content keeps its number. used: (sample id, changed_at) of the labels it took account of; one that has
        changed since stays unused. Returns the training's row, None where it has been trained before; one that failed
        is begun afresh. Raises Conflict while another training of the loop runs.
        """
        at = db.now()
        try:
            with db.transaction(self._engine) as connection:
                number = self._dataset_number(connection, digest, key, counts, excluded, reason, at)
                for sample_id, changed_at in used:
                    label = db.labels.c
                    where = sa.and_(
                        label.loop == self.loop, label.sample_id == sample_id, label.changed_at == changed_at
                    )
                    connection.execute(sa.update(db.labels).where(where).values(used_in=number))
                claimed = self._claim(connection, training_key, number, recipe, seed, at)
        except sa.exc.IntegrityError:
            raise Conflict(f"loop {self.loop!r} is training already: wait until that training has ended") from None
        return next(t for t in self.trainings("running") if t["training_key"] == training_key) if claimed else None

    def _dataset_number(
        self, connection: Connection, digest: str, key: str, counts: Mapping[str, int], excluded: Sequence[str],
        reason: str, at: datetime,
    ) -> int:  # fmt: skip
        table = db.dataset_versions
        known = connection.scalar(sa.select(table.c.number).where(table.c.loop == self.loop, table.c.digest == digest))
        if known is not None:
            return int(known)
        newest = connection.scalar(sa.select(sa.func.max(table.c.number)).where(table.c.loop == self.loop))
        number = 1 + (newest or 0)
        row = {"loop": self.loop, "number": number, "digest": digest, "key": key, "counts": dict(counts),
               "excluded": list(excluded), "reason": reason, "at": at}  # fmt: skip
        connection.execute(sa.insert(table), [row])
        return number

    def _claim(
        self, connection: Connection, training_key: str, number: int, recipe: str, seed: int, at: datetime
    ) -> bool:
        table = db.trainings
        here = sa.and_(table.c.loop == self.loop, table.c.training_key == training_key)
        state = connection.scalar(sa.select(table.c.state).where(here))
        fresh = {"dataset_number": number, "recipe": recipe, "seed": seed, "state": "running", "attempts": 0,
                 "model_version": None, "error": None, "started_at": at, "finished_at": None}  # fmt: skip
        if state is None:
            # A second row that says "running" is refused by the database, whoever races.
            row = {"loop": self.loop, "training_key": training_key, "failures": 0, **fresh}
            connection.execute(sa.insert(table), [row])
        elif state == "failed":
            connection.execute(sa.update(table).where(here).values(**fresh))
        elif state == "running":
            raise Conflict(f"loop {self.loop!r} is training already: wait until that training has ended")
        return state in (None, "failed")

    def attempt_training(self, training_key: str, by: int = 1) -> int:
        """Count one more attempt at a running training, or take one back; returns how many there are then."""
        table = db.trainings
        here = sa.and_(table.c.loop == self.loop, table.c.training_key == training_key)
        with db.transaction(self._engine) as connection:
            connection.execute(sa.update(table).where(here).values(attempts=table.c.attempts + by))
            return int(connection.scalar(sa.select(table.c.attempts).where(here)) or 0)

    def end_training(self, training_key: str, model_version: str | None, error: str | None = None) -> None:
        """Record that a training became a model version, or failed and why; then its labels are unused again."""
        table = db.trainings
        here = sa.and_(table.c.loop == self.loop, table.c.training_key == training_key)
        state = "trained" if error is None else "failed"
        with db.transaction(self._engine) as connection:
            values = {"state": state, "model_version": model_version, "error": error, "finished_at": db.now()}
            connection.execute(sa.update(table).where(here).values(**values))
            if error is not None:
                connection.execute(sa.update(table).where(here).values(failures=table.c.failures + 1))
                number = sa.select(table.c.dataset_number).where(here).scalar_subquery()
                where = sa.and_(db.labels.c.loop == self.loop, db.labels.c.used_in == number)
                connection.execute(sa.update(db.labels).where(where).values(used_in=None))

    def trainings(self, state: str | None = None) -> list[dict[str, Any]]:
        """Trainings, the oldest first."""
        table = db.trainings
        query = sa.select(table).where(table.c.loop == self.loop).order_by(table.c.started_at, table.c.training_key)
        return self._rows(query if state is None else query.where(table.c.state == state))

    # ------------------------------------------------------------ decisions

    def decide(self, model_version: str, verdict: Verdict) -> bool:
        """Store what the gate decided, before it is carried out. False where it had decided already."""
        row = {
            "loop": self.loop,
            "model_version": model_version,
            "promoted": verdict.promote,
            "reason": verdict.reason,
            "verdict": asdict(verdict),
            "at": db.now(),
            "applied_at": None,
        }
        with db.transaction(self._engine) as connection:
            return bool(db.insert_new(connection, db.decisions, [row]))

    def applied(self, model_version: str) -> None:
        """Record that the registry has done what was decided."""
        table = db.decisions
        here = sa.and_(table.c.loop == self.loop, table.c.model_version == model_version)
        with db.transaction(self._engine) as connection:
            connection.execute(sa.update(table).where(here).values(applied_at=db.now()))

    def decisions(self) -> list[dict[str, Any]]:
        """Gate decisions, the oldest first."""
        table = db.decisions
        return self._rows(sa.select(table).where(table.c.loop == self.loop).order_by(table.c.at))

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

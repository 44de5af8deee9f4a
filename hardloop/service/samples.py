"""What the database knows of one loop's samples, predictions and capture files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Engine

from hardloop.core.records import Floats
from hardloop.service import database as db

MINED = ("pool", "audit", "seed")  # roles that take part in a selection: to be picked, or as what is labelled already
_CHUNK = 500  # bound parameters per statement stay under SQLite's smallest compiled limit


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of `samples`: one image of a loop. role: pool, audit, seed, legacy, or gone once it was withdrawn."""

    sample_id: str
    image_key: str
    source: str
    group_id: str
    burst_id: str | None
    role: str
    width: int
    height: int
    fingerprint: str
    captured_at: datetime


@dataclass(frozen=True, slots=True, eq=False)
class StoredPrediction:
    """What a model version said of a sample; policies and propensity as captured, empty for a later scoring.

    encoder: the space of the model's embeddings. A user's own model may carry the version name of one of ours; it does
    not share its encoder.
    """

    sample_id: str
    model_version: str
    probs_C: Floats
    member_probs_MC: Floats | None
    encoder: str | None
    policies: Mapping[str, float]
    propensity: float | None
    at: datetime


class Samples:
    """Samples of one loop. Adding what is there already changes nothing."""

    def __init__(self, engine: Engine, loop: str) -> None:
        self._engine = engine
        self.loop = loop

    def add(
        self,
        samples: Sequence[Sample],
        predictions: Sequence[StoredPrediction] = (),
        capture_file: tuple[str, int] | None = None,
        refusals: Sequence[tuple[str, str, str]] = (),
    ) -> int:
        """Store samples with their predictions in one transaction. Returns how many samples were new.

        capture_file: the key they came from and its number of records; it is then never read again.
        refusals: (kind, reference, reason) of what was turned away.
        """
        at = db.now()
        with db.transaction(self._engine) as connection:
            new = db.insert_new(
                connection, db.samples, [{"loop": self.loop, "ingested_at": at, **_columns(s)} for s in samples]
            )
            db.upsert(connection, db.predictions, [self._prediction(p) for p in predictions])
            self._refuse(connection, refusals, at)
            if capture_file is not None:
                key, records = capture_file
                row = {"loop": self.loop, "key": key, "records": records, "refused": len(refusals), "at": at}
                db.insert_new(connection, db.capture_files, [row])
        return new

    def hold_out(self, sample_ids: Iterable[str]) -> None:
        """Make legacy samples of pool samples: somebody brought their labels to measure with, not to train on."""
        table, wanted = db.samples, list(sample_ids)
        with db.transaction(self._engine) as connection:
            for start in range(0, len(wanted), _CHUNK):
                here = sa.and_(table.c.loop == self.loop, table.c.role == "pool")
                part = table.c.sample_id.in_(wanted[start : start + _CHUNK])
                connection.execute(sa.update(table).where(here, part).values(role="legacy"))

    def withdraw(self, reasons: Mapping[str, str]) -> int:
        """Give samples the role "gone", and remember why, by sample id. Returns how many had another role."""
        table, changed = db.samples, 0
        with db.transaction(self._engine) as connection:
            for sample_id, reason in reasons.items():
                here = sa.and_(table.c.loop == self.loop, table.c.sample_id == sample_id, table.c.role != "gone")
                if connection.execute(sa.update(table).where(here).values(role="gone")).rowcount:
                    changed += 1
                    self._refuse(connection, [("sample", sample_id, reason)], db.now())
        return changed

    def refuse(self, refusals: Sequence[tuple[str, str, str]]) -> None:
        """Remember what was turned away at a door: (kind, reference, reason); of one reference, the newest reason."""
        with db.transaction(self._engine) as connection:
            self._refuse(connection, refusals, db.now())

    def refusals(self) -> list[tuple[str, str, str]]:
        """Everything turned away: (kind, reference, reason)."""
        table = db.refusals
        query = sa.select(table.c.kind, table.c.reference, table.c.reason).where(table.c.loop == self.loop)
        with self._engine.connect() as connection:
            return [(kind, reference, reason) for kind, reference, reason in connection.execute(query)]

    def capture_files(self, after: str) -> set[str]:
        """Keys of capture files already read, those after a key."""
        table = db.capture_files
        query = sa.select(table.c.key).where(table.c.loop == self.loop, table.c.key > after)
        with self._engine.connect() as connection:
            return set(connection.scalars(query))

    def all(self) -> list[Sample]:
        """Every sample of the loop."""
        return self._select(db.samples.c.loop == self.loop)

    def of_role(self, role: str) -> list[Sample]:
        """The samples of one role."""
        return self._select(db.samples.c.loop == self.loop, db.samples.c.role == role)

    def get(self, sample_ids: Iterable[str]) -> dict[str, Sample]:
        """The samples with these ids, those that exist."""
        found: dict[str, Sample] = {}
        wanted = list(sample_ids)
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            rows = self._select(db.samples.c.loop == self.loop, db.samples.c.sample_id.in_(part))
            found.update({sample.sample_id: sample for sample in rows})
        return found

    def count(self) -> dict[str, int]:
        """Samples by role."""
        table = db.samples
        query = sa.select(table.c.role, sa.func.count()).where(table.c.loop == self.loop).group_by(table.c.role)
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def unasked(self) -> int:
        """How many samples of the pool were never picked."""
        table, items = db.samples, db.queue_items
        picked = sa.exists().where(items.c.loop == table.c.loop, items.c.sample_id == table.c.sample_id)
        query = sa.select(sa.func.count()).where(table.c.loop == self.loop, table.c.role == "pool", ~picked)
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def predictions(self, model_version: str) -> dict[str, StoredPrediction]:
        """What one model version said, by sample id."""
        table = db.predictions
        query = sa.select(table).where(table.c.loop == self.loop, table.c.model_version == model_version)
        with self._engine.connect() as connection:
            return {row.sample_id: _stored(row) for row in connection.execute(query)}

    def newest_version(self) -> str | None:
        """The model version of the latest prediction, None before the first."""
        table = db.predictions
        query = sa.select(table.c.model_version).where(table.c.loop == self.loop).order_by(table.c.at.desc()).limit(1)
        with self._engine.connect() as connection:
            return connection.scalar(query)

    def pool_since(self, at: datetime) -> int:
        """How many samples joined the pool after a moment."""
        table = db.samples
        query = sa.select(sa.func.count()).where(
            table.c.loop == self.loop, table.c.role == "pool", table.c.ingested_at > at
        )
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def predictions_of(self, sample_id: str) -> list[StoredPrediction]:
        """What every model version said of one sample, the oldest first."""
        table = db.predictions
        query = sa.select(table).where(table.c.loop == self.loop, table.c.sample_id == sample_id).order_by(table.c.at)
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def predict(self, predictions: Sequence[StoredPrediction]) -> None:
        """Store predictions of known samples, replacing the same model version's earlier ones."""
        with db.transaction(self._engine) as connection:
            db.upsert(connection, db.predictions, [self._prediction(p) for p in predictions])

    def cursor(self, name: str) -> str:
        """A named reading position, "" before the first."""
        table = db.cursors
        query = sa.select(table.c.value).where(table.c.loop == self.loop, table.c.name == name)
        with self._engine.connect() as connection:
            return connection.scalar(query) or ""

    def move_cursor(self, name: str, value: str) -> None:
        """Remember a reading position."""
        with db.transaction(self._engine) as connection:
            db.upsert(connection, db.cursors, [{"loop": self.loop, "name": name, "value": value}])

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Sample]:
        columns = [db.samples.c[name] for name in Sample.__dataclass_fields__]
        query = sa.select(*columns).where(*conditions).order_by(db.samples.c.sample_id)
        with self._engine.connect() as connection:
            return [Sample(*row) for row in connection.execute(query)]

    def _refuse(self, connection: sa.Connection, refusals: Sequence[tuple[str, str, str]], at: datetime) -> None:
        rows = [
            {"loop": self.loop, "kind": kind, "reference": _shown(reference[:512]), "reason": _shown(reason), "at": at}
            for kind, reference, reason in refusals
        ]
        db.upsert(connection, db.refusals, rows)

    def _prediction(self, prediction: StoredPrediction) -> dict[str, object]:
        members = prediction.member_probs_MC
        return {
            "loop": self.loop,
            "sample_id": prediction.sample_id,
            "model_version": prediction.model_version,
            "probs": np.asarray(prediction.probs_C, dtype="<f4").tobytes(),
            "member_probs": None if members is None or not len(members) else np.asarray(members, dtype="<f4").tobytes(),
            "encoder": prediction.encoder,
            "policies": dict(prediction.policies),
            "propensity": prediction.propensity,
            "at": prediction.at,
        }


def _shown(text: str) -> str:
    """Text from outside as every database stores it: PostgreSQL takes no NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _columns(sample: Sample) -> dict[str, object]:
    return {name: getattr(sample, name) for name in Sample.__dataclass_fields__}


def _stored(row: sa.Row[tuple[object, ...]]) -> StoredPrediction:
    probs_C: NDArray[np.float32] = np.frombuffer(row.probs, dtype="<f4")
    members = None if row.member_probs is None else np.frombuffer(row.member_probs, dtype="<f4")
    return StoredPrediction(
        row.sample_id,
        row.model_version,
        probs_C,
        None if members is None else members.reshape(-1, len(probs_C)),
        row.encoder,
        row.policies,
        row.propensity,
        row.at,
    )

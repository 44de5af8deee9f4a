"""The database: tables, engine and transactions, the same on SQLite (WAL) and PostgreSQL.

Rows are appended and unique keys make a repeated step harmless: what must happen once has its key here.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Column, ForeignKeyConstraint, Index, Table, UniqueConstraint, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from hardloop.core.errors import BadSettings, Unavailable


class UtcTime(sa.TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets time zones, so they are added back on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _loop() -> Column[str]:
    return Column("loop", sa.String(48), primary_key=True)


samples = Table(
    "samples",
    metadata,
    _loop(),
    Column("sample_id", sa.String(32), primary_key=True),
    Column("image_key", sa.Text, nullable=False),
    Column("source", sa.Text, nullable=False),
    Column("group_id", sa.Text, nullable=False),
    Column("burst_id", sa.Text),
    # pool, audit (the holdout), seed or legacy (labels the user brought), gone (withdrawn)
    Column("role", sa.String(8), nullable=False),
    Column("width", sa.Integer, nullable=False),
    Column("height", sa.Integer, nullable=False),
    Column("fingerprint", sa.Text, nullable=False),
    Column("captured_at", UtcTime, nullable=False),
    Column("ingested_at", UtcTime, nullable=False),
    Index("ix_samples_role", "loop", "role"),
)

predictions = Table(
    "predictions",
    metadata,
    _loop(),
    Column("sample_id", sa.String(32), primary_key=True),
    Column("model_version", sa.Text, primary_key=True),  # in captures from elsewhere it may be any name
    Column("probs", sa.LargeBinary, nullable=False),  # float32, in the order of the loop's labels
    Column("member_probs", sa.LargeBinary),  # float32, members after one another
    Column("encoder", sa.Text),  # the space of the model's embeddings; tells versions of one name apart
    Column("policies", sa.JSON, nullable=False),
    Column("propensity", sa.Float),
    Column("at", UtcTime, nullable=False),
    ForeignKeyConstraint(["loop", "sample_id"], ["samples.loop", "samples.sample_id"]),
)

capture_files = Table(
    "capture_files",
    metadata,
    _loop(),
    Column("key", sa.Text, primary_key=True),
    Column("records", sa.Integer, nullable=False),
    Column("refused", sa.Integer, nullable=False),
    Column("at", UtcTime, nullable=False),
)

# What was turned away at a door and why: shown, counted, never silent.
refusals = Table(
    "refusals",
    metadata,
    _loop(),
    Column("kind", sa.String(32), primary_key=True),
    Column("reference", sa.String(512), primary_key=True),
    Column("reason", sa.Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)

selections = Table(
    "selections",
    metadata,
    _loop(),
    Column("selection_id", sa.String(64), primary_key=True),
    Column("number", sa.Integer, nullable=False),
    Column("method", sa.String(64), nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    Column("budget", sa.Integer, nullable=False),
    Column("policy_digest", sa.String(64), nullable=False),
    Column("model_version", sa.Text),  # like the encoder, of any name: see predictions
    Column("encoder", sa.Text, nullable=False),
    Column("objective", sa.Float, nullable=False),
    Column("terms", sa.JSON, nullable=False),
    Column("shortfall", sa.JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
    UniqueConstraint("loop", "number"),
)

queue_items = Table(
    "queue_items",
    metadata,
    _loop(),
    Column("sample_id", sa.String(32), primary_key=True),
    Column("selection_id", sa.String(64), nullable=False),
    Column("arm", sa.String(16), nullable=False),
    Column("rank", sa.Integer, nullable=False),
    Column("receipt", sa.JSON, nullable=False),
    Column("state", sa.String(16), nullable=False),  # queued, approved, rejected
    Column("decided_by", sa.Text),
    Column("decided_at", UtcTime),
    ForeignKeyConstraint(["loop", "sample_id"], ["samples.loop", "samples.sample_id"]),
    ForeignKeyConstraint(["loop", "selection_id"], ["selections.loop", "selections.selection_id"]),
    Index("ix_queue_items_state", "loop", "state"),
)

tasks = Table(
    "tasks",
    metadata,
    _loop(),
    Column("sample_id", sa.String(32), primary_key=True),
    Column("project_id", sa.BigInteger, nullable=False),
    Column("task_id", sa.BigInteger, nullable=False),
    Column("sent_at", UtcTime, nullable=False),
    Column("deleted_at", UtcTime),
    ForeignKeyConstraint(["loop", "sample_id"], ["samples.loop", "samples.sample_id"]),
    UniqueConstraint("loop", "project_id", "task_id"),
)

annotations = Table(
    "annotations",
    metadata,
    _loop(),
    Column("annotation_id", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("task_id", sa.BigInteger, nullable=False),
    Column("sample_id", sa.String(32), nullable=False),
    Column("annotator", sa.Text, nullable=False),
    Column("label", sa.Text),
    Column("skipped", sa.Boolean, nullable=False),
    Column("refused", sa.Text),
    Column("origin", sa.String(32), nullable=False),
    Column("lead_time_s", sa.Float),
    Column("updated_at", UtcTime, nullable=False),
    Column("collected_at", UtcTime, nullable=False),
    Column("deleted_at", UtcTime),
    ForeignKeyConstraint(["loop", "sample_id"], ["samples.loop", "samples.sample_id"]),
    Index("ix_annotations_sample", "loop", "sample_id"),
)

labels = Table(
    "labels",
    metadata,
    _loop(),
    Column("sample_id", sa.String(32), primary_key=True),
    Column("label", sa.Text),  # none: there was one and it was retracted, or annotators disagree
    Column("origin", sa.String(16), nullable=False),  # seed, legacy or an arm of the budget
    Column("selection_id", sa.String(64)),
    Column("annotation_ids", sa.JSON, nullable=False),
    Column("changed_at", UtcTime, nullable=False),
    # The dataset version that took account of the label as it is now; none: it waits for the next training.
    Column("used_in", sa.Integer),
    ForeignKeyConstraint(["loop", "sample_id"], ["samples.loop", "samples.sample_id"]),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    _loop(),
    Column("number", sa.Integer, primary_key=True, autoincrement=False),
    Column("digest", sa.String(64), nullable=False),
    Column("key", sa.Text, nullable=False),
    Column("counts", sa.JSON, nullable=False),
    Column("excluded", sa.JSON, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    UniqueConstraint("loop", "digest"),
)

trainings = Table(
    "trainings",
    metadata,
    _loop(),
    Column("training_key", sa.String(64), primary_key=True),
    Column("dataset_number", sa.Integer, nullable=False),
    Column("recipe", sa.String(64), nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    Column("state", sa.String(16), nullable=False),  # running, trained, failed
    Column("attempts", sa.Integer, nullable=False),  # that began and have not ended, by a crash or a kill
    Column("failures", sa.Integer, nullable=False),
    Column("model_version", sa.String(32)),
    Column("error", sa.Text),
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    ForeignKeyConstraint(["loop", "dataset_number"], ["dataset_versions.loop", "dataset_versions.number"]),
    # Two rows can never be "running" at once: whoever comes second is refused by the database.
    Index("uq_trainings_running", "loop", unique=True, sqlite_where=sa.text("state = 'running'"),
          postgresql_where=sa.text("state = 'running'")),
)  # fmt: skip

decisions = Table(
    "decisions",
    metadata,
    _loop(),
    Column("model_version", sa.String(32), primary_key=True),
    Column("promoted", sa.Boolean, nullable=False),
    Column("reason", sa.Text, nullable=False),
    Column("verdict", sa.JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("applied_at", UtcTime),  # when the registry had done what was decided
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("loop", sa.String(48), nullable=False, index=True),
    Column("action", sa.String(64), nullable=False),
    Column("annotation_ids", sa.JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("loop", sa.String(48), nullable=False, index=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", sa.Text, nullable=False),
    Column("kind", sa.String(64), nullable=False),
    Column("detail", sa.JSON, nullable=False),
)

cursors = Table(
    "cursors",
    metadata,
    _loop(),
    Column("name", sa.String(64), primary_key=True),
    Column("value", sa.Text, nullable=False),
)


_WRITES: dict[str, Any] = {"hardloop_writes": True}  # marks a connection whose transactions write


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def connect(url: str) -> Engine:
    """An engine for a `sqlite:///` or `postgresql://` address. Raises BadSettings for others.

    What is raised later where the database is away, locked or full is Unavailable, with the reason in one line.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # It is not shown: where it cannot be taken apart, nobody knows which part of it is the password.
        raise BadSettings(
            "the database address cannot be read: expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from None
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            _make_folder(Path(parsed.database).parent)
        engine = sa.create_engine(parsed, connect_args={"timeout": 30}, json_serializer=_json)
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    elif parsed.get_backend_name() == "postgresql":
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=10, json_serializer=_json
        )
    else:
        raise BadSettings(f"database {parsed.get_backend_name()!r} is not supported: use sqlite or postgresql")
    event.listen(engine, "handle_error", _unavailable)
    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to a revision; raises Unavailable where the database does not answer."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(**_WRITES) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def reason(error: sa.exc.DBAPIError) -> str:
    """What the database said, in one line and without the statement."""
    return " ".join(str(error.orig).split())


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; all of it is stored or nothing. Who only reads takes a plain connection."""
    with engine.connect().execution_options(**_WRITES) as connection, connection.begin():
        yield connection


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose keys are free; the others stay as they are. Returns how many were new."""
    if not rows:
        return 0
    keys = list(table.primary_key.columns)
    statement = _insert(connection, table).on_conflict_do_nothing().returning(*keys)
    return len(connection.execute(statement, [dict(row) for row in rows]).all())


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    where: sa.ColumnElement[bool] | None = None,
) -> None:
    """Insert rows, or replace every given column of the rows whose primary key is there.

    where: replace only those of the rows there for which it holds, decided when they are written.
    """
    if not rows:
        return
    keys = [column.name for column in table.primary_key.columns]
    statement = _insert(connection, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    written = statement.on_conflict_do_update(index_elements=keys, set_=changed, where=where)
    connection.execute(written, [dict(row) for row in rows])


def _insert(connection: Connection, table: Table) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a term that could not be worked out is stored as null: JSON knows no NaN and no infinity
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadSettings(f"cannot make the database's folder {folder}: {error.strerror}") from None


def _unavailable(context: sa.engine.ExceptionContext) -> Unavailable | None:
    """The one place where a driver's complaint about its connection becomes an error of ours."""
    error = context.sqlalchemy_exception
    # A stale connection that the pool found out by asking is made anew, which nobody needs to hear of.
    if context.is_pre_ping or context.engine is None or not isinstance(error, sa.exc.OperationalError):
        return None
    # A password may stand among the address's options too.
    address = context.engine.url.set(query={}).render_as_string()
    return Unavailable(f"the database {address} does not answer: {reason(error)}")


def _sqlite_connect(raw: Any, _record: Any) -> None:
    raw.isolation_level = None  # we begin transactions ourselves, see _sqlite_begin
    for pragma in ("journal_mode=wal", "synchronous=normal", "foreign_keys=on", "busy_timeout=30000"):
        raw.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    # Taking the write lock at the start makes writers queue; upgrading a read lock later fails at once instead. Readers
    # take none: in WAL mode they neither wait for a writer nor hold one up.
    writes = connection.get_execution_options().get("hardloop_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

"""The schema and its guarantees, on SQLite and on PostgreSQL."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from hardloop.core.errors import BadSettings, Conflict, Missing, Unavailable
from hardloop.core.records import (
    Annotation,
    Arm,
    Pick,
    Receipt,
    RefusedAnnotation,
    Selection,
    SliceVerdict,
    TaskState,
    Verdict,
)
from hardloop.core.records import Interval as Between
from hardloop.service import database as db
from hardloop.service.lineage import Lineage
from hardloop.service.samples import Sample, Samples, StoredPrediction
from hardloop.service.work import Work, majority

AT = datetime(2026, 11, 23, 6, 0, 0, 123456, tzinfo=UTC)


def sample(name: str, role: str = "pool") -> Sample:
    return Sample(name, f"images/{name}.png", "camera-1", name, None, role, 8, 8, "00" * 96, AT)


def selection(*names: str) -> Selection:
    picks = tuple(
        Pick(
            name,
            Receipt(
                Arm.COVERAGE, rank, 1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0, 1.0, 3, None, None, None, 0, 0.6, 7, "d", ("x",)
            ),
        )
        for rank, name in enumerate(names)
    )
    return Selection(picks, len(names), 7, "uncertainty-coverage", "d", 2.0, {"lam": 0.0}, ())


def answer(number: int, label: str | None, task: int = 10, at: datetime = AT, skipped: bool = False) -> Annotation:
    return Annotation(number, task, "ann@example.org", label, skipped, at)


@pytest.fixture
def samples(engine: Engine) -> Samples:
    return Samples(engine, "shoes")


@pytest.fixture
def work(engine: Engine, samples: Samples) -> Work:
    """Work with two samples queued and sent as tasks 10 and 11."""
    samples.add([sample("a"), sample("b"), sample("c")])
    work = Work(engine, "shoes")
    work.add_selection("first", selection("a", "b"), "queued", "enc", "1")
    work.decide("approved", "me")
    work.add_tasks(5, {"a": 10, "b": 11})
    return work


def test_the_migrations_make_exactly_the_declared_schema(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, db.metadata) == []


def test_the_schema_goes_down_and_up_again(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    db.migrate(engine)
    assert Samples(engine, "shoes").add([sample("a")]) == 1


def test_a_time_comes_back_as_it_went_in(samples: Samples) -> None:
    samples.add([sample("a")])
    assert samples.get(["a"])["a"].captured_at == AT


def test_adding_a_sample_twice_keeps_the_first(samples: Samples) -> None:
    assert samples.add([sample("a"), sample("b")]) == 2
    assert samples.add([sample("b", role="seed"), sample("c")]) == 1
    assert {s.sample_id: s.role for s in samples.all()} == {"a": "pool", "b": "pool", "c": "pool"}


def test_loops_do_not_see_each_other(engine: Engine, samples: Samples) -> None:
    samples.add([sample("a")])
    other = Samples(engine, "hats")
    assert other.all() == []
    assert other.add([sample("a")]) == 1


def test_predictions_keep_their_numbers_and_the_newest_wins(samples: Samples) -> None:
    first = StoredPrediction(
        "a", "1", np.array([0.25, 0.75]), np.array([[0.5, 0.5], [1.0, 0.0]]), "enc", {"x": 0.1}, 0.2, AT
    )
    samples.add([sample("a")], [first])
    stored = samples.predictions("1")["a"]
    np.testing.assert_array_equal(stored.probs_C, [0.25, 0.75])
    assert stored.member_probs_MC is not None
    np.testing.assert_array_equal(stored.member_probs_MC, [[0.5, 0.5], [1.0, 0.0]])
    assert (stored.encoder, dict(stored.policies), stored.propensity) == ("enc", {"x": 0.1}, 0.2)
    samples.predict([StoredPrediction("a", "1", np.array([0.5, 0.5]), None, None, {}, None, AT)])
    assert samples.predictions("1")["a"].member_probs_MC is None


def test_a_capture_file_is_remembered_with_its_refusals(samples: Samples) -> None:
    samples.add([sample("a")], capture_file=("captures/shoes/2", 3), refusals=[("capture record", "2#1", "broken")])
    assert samples.capture_files("captures/shoes/1") == {"captures/shoes/2"}
    assert samples.capture_files("captures/shoes/2") == set()
    assert samples.refusals() == [("capture record", "2#1", "broken")]


def test_a_selection_is_stored_once(work: Work) -> None:
    assert not work.add_selection("first", selection("c"), "queued", "enc", "1")
    assert [item["sample_id"] for item in work.queue()] == ["a", "b"]
    assert work.add_selection("second", selection("c"), "queued", "enc", "1")
    assert [s["number"] for s in work.selections()] == [1, 2]


def test_a_selection_takes_a_model_version_and_an_encoder_of_any_name(work: Work) -> None:
    """A foreign writer names its models as it likes; one long name must not end all mining."""
    assert work.add_selection("long", selection("c"), "queued", "e" * 300, "v" * 300)
    stored = work.selection("long")
    assert stored is not None
    assert (stored["encoder"], stored["model_version"]) == ("e" * 300, "v" * 300)


def test_a_sample_cannot_stand_in_the_queue_twice(work: Work) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        work.add_selection("second", selection("c", "a"), "queued", "enc", "1")
    assert work.selection("second") is None, "a refused selection must leave nothing behind"
    assert [item["sample_id"] for item in work.queue()] == ["a", "b"]


def test_only_waiting_items_are_decided_and_unknown_ones_are_named(work: Work) -> None:
    work.add_selection("second", selection("c"), "queued", "enc", "1")
    with pytest.raises(Missing, match="zzz"):
        work.decide("approved", "me", ["c", "zzz"])
    assert work.decide("rejected", "me", ["a", "c"]) == 1
    assert {i["sample_id"]: i["state"] for i in work.queue()} == {"a": "approved", "b": "approved", "c": "rejected"}


def test_tasks_keep_their_first_number(work: Work) -> None:
    assert work.add_tasks(5, {"a": 99}) == 0
    assert {t["sample_id"]: t["task_id"] for t in work.tasks()} == {"a": 10, "b": 11}


def test_answers_become_changed_and_retracted_labels(work: Work) -> None:
    def labels() -> dict[str, str | None]:
        return {row["sample_id"]: row["label"] for row in work.labels()}

    assert work.collect([TaskState(10, "a", AT, (answer(1, "boot"),))], "c1")["new"] == 1
    assert labels() == {"a": "boot"}
    again = work.collect([TaskState(10, "a", AT, (answer(1, "boot"),))], "c2")
    assert (again["new"], again["changed"], again["unchanged"], again["labels"]) == (0, 0, 1, 0)
    later = AT + timedelta(minutes=1)
    assert work.collect([TaskState(10, "a", later, (answer(1, "sandal", at=later),))], "c3")["changed"] == 1
    assert labels() == {"a": "sandal"}
    assert work.collect([TaskState(10, "a", later, ())], "c4")["deleted"] == 1
    assert labels() == {"a": None}
    assert work.labels()[0]["annotation_ids"] == []


def test_a_label_needs_more_than_half_of_the_answers(work: Work) -> None:
    work.collect([TaskState(10, "a", AT, (answer(1, "boot"), answer(2, "sandal")))], "c1")
    assert [row["label"] for row in work.labels()] == []
    work.collect([TaskState(10, "a", AT, (answer(1, "boot"), answer(2, "sandal"), answer(3, "boot")))], "c2")
    assert [(row["label"], row["annotation_ids"]) for row in work.labels()] == [("boot", [1, 3])]


def test_skips_and_refused_answers_make_no_label_but_are_kept(work: Work) -> None:
    refused = RefusedAnnotation(2, 11, "ann@example.org", AT, "label 'cat' is not in the schema")
    counts = work.collect(
        [TaskState(10, "a", AT, (answer(1, None, skipped=True),)), TaskState(11, "b", AT, (), (refused,))], "c1"
    )
    assert (counts["new"], counts["refused"], counts["labels"]) == (1, 1, 0)
    assert work.labels() == []
    assert [(row["skipped"], row["refused"]) for row in work.annotations()] == [(True, None), (False, refused.reason)]


def test_a_label_the_user_brought_is_never_overruled(work: Work, samples: Samples) -> None:
    work.give_labels({"a": "boot"}, "seed")
    work.collect([TaskState(10, "a", AT, (answer(1, "sandal"),))], "c1")
    assert [(row["label"], row["origin"]) for row in work.labels()] == [("boot", "seed")]


def test_a_deleted_task_takes_its_answers_with_it(work: Work) -> None:
    work.collect([TaskState(10, "a", AT, (answer(1, "boot"),))], "c1")
    assert work.mark_deleted_tasks(5, frozenset({11})) == 1
    assert work.mark_deleted_tasks(5, frozenset({11})) == 0
    assert [row["label"] for row in work.labels()] == [None]


def test_collecting_is_all_or_nothing(work: Work, samples: Samples) -> None:
    unknown = TaskState(12, "nobody", AT, (answer(9, "boot", task=12),))
    with pytest.raises(sa.exc.IntegrityError):
        work.collect([TaskState(10, "a", AT, (answer(1, "boot"),)), unknown], "c1")
    assert work.annotations() == []
    assert samples.cursor("annotations") == ""


def test_counts_say_where_the_work_is(work: Work) -> None:
    work.add_selection("second", selection("c"), "queued", "enc", "1")
    work.collect([TaskState(10, "a", AT, (answer(1, "boot"),))], "c1")
    assert work.counts() == {"items": 3, "queued": 1, "approved": 0, "rejected": 0, "open": 1, "labelled": 1}


def test_reading_goes_on_while_somebody_writes_and_sees_nothing_unfinished(engine: Engine, samples: Samples) -> None:
    samples.add([sample("a")])
    began = time.monotonic()
    with db.transaction(engine) as writer:
        writer.execute(sa.update(db.samples).values(source="elsewhere"))
        assert samples.get(["a"])["a"].source == "camera-1"
    assert time.monotonic() - began < 5, "a reader waited for the writer's lock"
    assert samples.get(["a"])["a"].source == "elsewhere"


def test_writing_goes_on_while_somebody_reads_and_the_reader_sees_one_moment(engine: Engine, samples: Samples) -> None:
    samples.add([sample("a")])
    count = sa.select(sa.func.count()).select_from(db.samples)
    with engine.connect().execution_options(isolation_level=_one_moment(engine)) as reader:
        assert reader.scalar(count) == 1
        began = time.monotonic()
        assert samples.add([sample("b")]) == 1
        assert time.monotonic() - began < 5, "a writer waited for a reader"
        assert reader.scalar(count) == 1
    assert len(samples.all()) == 2


def test_writers_that_read_first_queue_up_instead_of_failing(engine: Engine, samples: Samples) -> None:
    samples.add([sample("a")])
    together = threading.Barrier(4)
    failures: list[Exception] = []

    def add_one() -> None:
        together.wait()
        try:
            for _ in range(25):
                with db.transaction(engine) as connection:
                    row = sa.select(db.samples.c.width).where(db.samples.c.sample_id == "a").with_for_update()
                    width = connection.scalar(row)
                    connection.execute(sa.update(db.samples).values(width=width + 1))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=add_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert samples.get(["a"])["a"].width == 8 + 4 * 25


def _one_moment(engine: Engine) -> str:
    """PostgreSQL reads one moment per statement unless asked for more; SQLite always reads one per transaction."""
    return "REPEATABLE READ" if engine.dialect.name == "postgresql" else "SERIALIZABLE"


def claim(lineage: Lineage, training: str, digest: str = "d1", used: list[tuple[str, datetime]] | None = None) -> bool:
    row = lineage.claim_training(
        training, "linear-probe", 0, digest=digest, key=f"k-{digest}", counts={"train": 3}, excluded=[], reason="x",
        used=used or [],
    )  # fmt: skip
    return row is not None


def test_equal_content_is_one_dataset_version(engine: Engine) -> None:
    lineage = Lineage(engine, "shoes")
    for number, digest in enumerate(("d1", "d2", "d1")):
        assert claim(lineage, f"t{number}", digest)
        lineage.end_training(f"t{number}", str(number))
    assert [(row["number"], row["digest"]) for row in lineage.datasets()] == [(1, "d1"), (2, "d2")]
    assert [t["dataset_number"] for t in lineage.trainings()] == [1, 2, 1]


def test_two_trainings_of_a_loop_never_run_at_once(engine: Engine) -> None:
    lineage = Lineage(engine, "shoes")
    assert claim(lineage, "t1")
    with pytest.raises(Conflict, match="training already"):
        claim(lineage, "t1")
    with pytest.raises(Conflict, match="training already"):
        claim(lineage, "t2", "d2")
    assert [row["digest"] for row in lineage.datasets()] == ["d1"], "a refused claim leaves nothing behind"
    lineage.end_training("t1", "1")
    assert not claim(lineage, "t1"), "trained before"
    assert claim(lineage, "t2")
    assert claim(Lineage(engine, "hats"), "t1")


def test_a_claim_uses_the_labels_it_saw_and_a_failure_gives_them_back(work: Work, engine: Engine) -> None:
    lineage = Lineage(engine, "shoes")
    work.give_labels({"a": "boot", "b": "boot"}, "seed")
    seen = [(row["sample_id"], row["changed_at"]) for row in work.labels()]
    later = [(sample, at if sample == "a" else at - timedelta(seconds=1)) for sample, at in seen]
    assert claim(lineage, "t1", used=later)
    assert {row["sample_id"]: row["used_in"] for row in work.labels()} == {"a": 1, "b": None}, "b changed since"
    lineage.end_training("t1", None, "disk full")
    assert {row["used_in"] for row in work.labels()} == {None}
    assert claim(lineage, "t1", used=seen), "a failed training is begun afresh"
    assert {row["used_in"] for row in work.labels()} == {1}


def test_an_answer_that_changes_a_label_makes_it_unused_again(work: Work, engine: Engine) -> None:
    work.collect([TaskState(10, "a", AT, (answer(1, "boot"),))], "c1")
    assert claim(Lineage(engine, "shoes"), "t1", used=[(r["sample_id"], r["changed_at"]) for r in work.labels()])
    work.collect([TaskState(10, "a", AT, (answer(1, "boot"),))], "c2")
    assert [row["used_in"] for row in work.labels()] == [1]
    work.collect([TaskState(10, "a", AT, (answer(1, "sandal"),))], "c3")
    assert [row["used_in"] for row in work.labels()] == [None]


def test_of_racing_claims_to_train_exactly_one_wins(engine: Engine) -> None:
    lineage = Lineage(engine, "shoes")
    outcomes: list[bool] = []

    def race(number: int) -> None:
        try:
            outcomes.append(claim(lineage, f"t{number}"))
        except Conflict:
            outcomes.append(False)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    assert len(lineage.trainings("running")) == 1
    assert len(lineage.datasets()) == 1


def test_a_verdict_survives_the_database_and_is_given_once(engine: Engine) -> None:
    lineage = Lineage(engine, "shoes")
    part = SliceVerdict("mined", "better", 40, None, Between(0.5, 0.4, 0.6), None, None)
    verdict = Verdict(True, "better on what was mined", (part,), None, 3)
    assert lineage.decide("1", verdict)
    assert not lineage.decide("1", Verdict(False, "other", (), None, 3))
    (row,) = lineage.decisions()
    assert (row["promoted"], row["applied_at"]) == (True, None)
    assert row["verdict"]["slices"][0]["candidate"] == {"value": 0.5, "low": 0.4, "high": 0.6}


def test_an_address_that_is_no_database_is_refused_by_name() -> None:
    with pytest.raises(BadSettings, match="mysql"):
        db.connect("mysql://localhost/x")


@pytest.mark.parametrize(
    "address", ["nonsense hunter2", "postgresql//u:hunter2@host/x", "postgresql://u:hunter2@host:port/x"]
)
def test_an_address_that_cannot_be_read_is_not_shown_for_its_password(address: str) -> None:
    with pytest.raises(BadSettings, match="expected sqlite:///PATH or postgresql://") as refused:
        db.connect(address)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:hunter2@127.0.0.1:1/x",
        "postgresql://u@127.0.0.1:1/x?password=hunter2",
        "sqlite:///{folder}",
    ],
)
def test_a_database_that_is_away_is_told_in_one_line_without_its_password(address: str, tmp_path: Path) -> None:
    engine = db.connect(address.format(folder=tmp_path))
    for ask in (lambda: db.migrate(engine), lambda: Samples(engine, "shoes").all()):
        with pytest.raises(Unavailable, match=r"^the database (post|sql).* does not answer: .+$") as away:
            ask()
        assert "hunter2" not in str(away.value)
        assert "\n" not in str(away.value)
        assert "SQL:" not in str(away.value)


def test_a_folder_for_the_database_that_cannot_be_made_is_a_setting_to_correct(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadSettings, match="file/deep: Not a directory"):
        db.connect(f"sqlite:///{tmp_path}/file/deep/test.db")


@pytest.mark.postgres
def test_a_connection_that_was_lost_is_told_and_a_stale_one_of_the_pool_is_made_anew(postgres_url: str) -> None:
    engine, other = db.connect(postgres_url), db.connect(postgres_url)

    def end(backend: int) -> None:
        with other.connect() as connection:
            connection.execute(sa.text("select pg_terminate_backend(:pid)"), {"pid": backend})

    own = sa.text("select pg_backend_pid()")
    with engine.connect() as connection:
        end(connection.scalar(own))
        with pytest.raises(Unavailable, match="does not answer"):
            connection.scalar(own)
    with engine.connect() as connection:
        backend = connection.scalar(own)
    end(backend)
    with engine.connect() as connection:
        assert connection.scalar(own) != backend
    engine.dispose()
    other.dispose()


@given(st.lists(st.sampled_from("abc"), max_size=9))
def test_the_majority_holds_more_than_half(answers: list[str]) -> None:
    agreed = majority(answers)
    counts = {label: answers.count(label) for label in set(answers)}
    if agreed is None:
        assert all(2 * count <= len(answers) for count in counts.values())
    else:
        assert 2 * counts[agreed] > len(answers)

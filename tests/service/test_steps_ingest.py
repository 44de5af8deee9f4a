"""Ingest and uploads on both databases: nothing twice, nothing lost, whatever is unusable named and refused."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from hardloop.core import capture_records, ids
from hardloop.core.errors import BadData, Unavailable
from hardloop.core.records import CaptureRecord
from hardloop.service import database as db
from hardloop.service import retraining, schedule, steps
from hardloop.service.embeddings import EmbeddingStore
from hardloop.service.intake import GivenImage
from tests.fakes.faulty_blobs import FaultyBlobs
from tests.fakes.loops import FakeLoop, fake_loop, picture
from tests.service.scenes import AT, count_of, give, produce, put_capture_file, put_image, record_of


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[FakeLoop]:
    world = fake_loop(engine, tmp_path)
    yield world
    world.capture.close()


def own_record(image: bytes, **changed: object) -> CaptureRecord:
    """A record of a capture that draws the loop's own audit holdout, whatever else is changed."""
    record = record_of(image, **changed)
    return replace(record, audit=ids.reserved(record.group_id, "colours", 0.1))


def reasons(world: FakeLoop) -> dict[str, str]:
    """Refusals by the number of their record, or their whole reference."""
    return {reference.rsplit("#", 1)[-1]: reason for _, reference, reason in world.loop.samples.refusals()}


def test_ingesting_again_finds_nothing_new_and_stores_nothing_twice(world: FakeLoop) -> None:
    made = produce(world, 12, np.random.default_rng(0))
    totals = steps.ingest(world.loop)
    assert (totals["records"], totals["new"], totals["refused"]) == (12, 12, 0)
    again = steps.ingest(world.loop)
    assert again == {"files": 0, "records": 0, "new": 0, "refused": 0}
    assert steps.ingest(world.loop, everything=True) == again
    assert {s.sample_id for s in world.loop.samples.all()} == set(made)
    assert set(world.loop.embeddings.load(world.loop.encoder.version)[0]) == set(made)


def test_a_file_that_arrives_late_is_found_within_the_overlap_and_an_older_one_by_the_daily_look(
    world: FakeLoop,
) -> None:
    rng = np.random.default_rng(1)
    pictures = [put_image(world.blobs, picture("red", rng)) for _ in range(3)]
    put_capture_file(world.blobs, [own_record(pictures[0])], AT)
    assert steps.ingest(world.loop)["new"] == 1
    put_capture_file(world.blobs, [own_record(pictures[1])], AT - timedelta(minutes=2))
    assert steps.ingest(world.loop)["new"] == 1
    put_capture_file(world.blobs, [own_record(pictures[2])], AT - timedelta(hours=3))
    assert steps.ingest(world.loop)["new"] == 0
    assert steps.ingest(world.loop, everything=True)["new"] == 1
    assert count_of(world) == 3


def test_each_unusable_record_is_refused_by_name_and_its_neighbours_are_kept(world: FakeLoop) -> None:
    rng = np.random.default_rng(2)
    good, foreign, labelled, missing, altered, last = (picture("green", rng) for _ in range(6))
    for image in (good, foreign, labelled, last):
        put_image(world.blobs, image)
    world.blobs.put(ids.image_key(ids.sample_id(altered), "png"), picture("red", rng))
    notes = b"these are not pixels, whatever the name says"
    put_image(world.blobs, notes)
    records = [
        own_record(good),
        replace(own_record(foreign), loop="shoes"),
        replace(own_record(labelled), labels=("red", "green", "purple")),
        own_record(missing),
        own_record(altered),
        own_record(notes),
        own_record(last),
    ]
    key = put_capture_file(world.blobs, records)
    totals = steps.ingest(world.loop)
    assert totals == {"files": 1, "records": 7, "new": 2, "refused": 5}
    found = reasons(world)
    assert set(found) == {"1", "2", "3", "4", "5"}
    assert "loop 'shoes', not 'colours'" in found["1"]
    assert "purple" in found["2"]
    assert "no object" in found["3"]
    assert "content hash" in found["4"]
    assert "not an image" in found["5"]
    assert all(reference.startswith(key) for _, reference, _ in world.loop.samples.refusals())
    assert {s.sample_id for s in world.loop.samples.all()} == {ids.sample_id(good), ids.sample_id(last)}


def test_a_corrupt_capture_file_is_refused_once_and_the_next_file_is_read(world: FakeLoop) -> None:
    prefix = capture_records.prefix("colours")
    bad = f"{prefix}{ids.time_ordered_key(AT)}.parquet"
    world.blobs.put(bad, b"PAR1 and then nothing")
    image = put_image(world.blobs, picture("blue", np.random.default_rng(3)))
    put_capture_file(world.blobs, [own_record(image)], AT + timedelta(seconds=1))
    assert steps.ingest(world.loop) == {"files": 2, "records": 1, "new": 1, "refused": 1}
    ((kind, reference, reason),) = world.loop.samples.refusals()
    assert (kind, reference) == ("capture file", bad)
    assert "not a Parquet file" in reason
    assert steps.ingest(world.loop)["files"] == 0


def test_a_stray_file_among_the_captures_is_refused_and_does_not_stop_the_loop(world: FakeLoop) -> None:
    prefix = capture_records.prefix("colours")
    world.blobs.put(f"{prefix}readme.txt", b"captures go here")
    assert steps.ingest(world.loop)["refused"] == 1
    image = put_image(world.blobs, picture("blue", np.random.default_rng(4)))
    put_capture_file(world.blobs, [own_record(image)], db.now())
    assert steps.ingest(world.loop)["new"] == 1
    attention = schedule.Attention(swept_at=0.0, listed_at=0.0, collected_at=0.0)
    assert schedule.due(world.loop, attention, 1.0, 30.0) == [], "a file that was read already is no reason to look"


def test_probabilities_that_sum_to_one_only_nearly_are_stored_as_shares_of_one(world: FakeLoop) -> None:
    rng = np.random.default_rng(14)
    certain, rounded = (put_image(world.blobs, picture("red", rng)) for _ in range(2))
    above = np.array([1.0000001, 0.0, 0.0], dtype=np.float32)
    below = np.array([0.4995, 0.3, 0.2], dtype=np.float32)
    assert above.max() > 1
    members = np.stack([np.array([1.0005, -1e-7, 0.0], dtype=np.float32), below])
    put_capture_file(
        world.blobs,
        [own_record(certain, probs_C=above), own_record(rounded, probs_C=below, member_probs_MC=members)],
    )
    assert steps.ingest(world.loop)["new"] == 2
    said = world.loop.samples.predictions("1")
    assert said[ids.sample_id(certain)].probs_C.tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(said[ids.sample_id(rounded)].probs_C, below / 0.9995, rtol=1e-6)
    stored = said[ids.sample_id(rounded)].member_probs_MC
    assert stored is not None
    assert stored[0].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(stored.sum(axis=1), 1.0, atol=1e-7)


@pytest.mark.parametrize(
    "changed",
    [
        {"source": "line\x001"},
        {"group_id": "camera\x00"},
        {"burst_id": "burst\x00"},
        {"encoder": "resnet\x00", "embedding_D": np.ones(2)},
        {"policies": {"own_policy": float("nan")}},
        {"policies": {"own_policy": float("inf")}},
        {"model_version": "resnet50-2026-11-23-with-a-long-name-of-its-own"},
    ],
    ids=[
        "NUL in source",
        "NUL in group",
        "NUL in burst",
        "NUL in encoder",
        "NaN policy",
        "infinite policy",
        "long model version",
    ],
)
def test_no_value_a_record_can_hold_stops_the_ingestion_for_ever(world: FakeLoop, changed: dict[str, object]) -> None:
    rng = np.random.default_rng(5)
    odd, plain = (put_image(world.blobs, picture("red", rng)) for _ in range(2))
    put_capture_file(world.blobs, [own_record(odd, **changed), own_record(plain)])
    totals = steps.ingest(world.loop)
    assert totals["new"] + totals["refused"] == 2
    assert ids.sample_id(plain) in {s.sample_id for s in world.loop.samples.all()}
    assert steps.ingest(world.loop)["files"] == 0


@pytest.mark.parametrize("changed", [{"group_id": ""}, {"model_version": ""}, {"model_version": "v" * 257}])
def test_a_record_that_a_later_step_would_stumble_over_is_refused_at_the_door(
    world: FakeLoop, changed: dict[str, object]
) -> None:
    image = put_image(world.blobs, picture("red", np.random.default_rng(17)))
    put_capture_file(world.blobs, [own_record(image, **changed)])
    assert steps.ingest(world.loop)["refused"] == 1
    assert "a group and a model version of 1 to 256 characters are needed" in reasons(world)["0"]


_odd = st.text(st.sampled_from("a\x00\ud7ff\uffff☃'\"\\%"), max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("source", "group_id", "burst_id", "model_version", "image_key"), _odd)
    ),
    encoder=st.none() | _odd,
    policies=st.dictionaries(_odd, st.floats(), max_size=2),
    propensity=st.none() | st.floats(),
    metadata=st.dictionaries(_odd, _odd, max_size=2),
)
def test_whatever_a_record_holds_the_one_beside_it_and_the_next_file_are_read(
    world: FakeLoop, texts: dict[str, str], encoder: str | None, policies: dict[str, float],
    propensity: float | None, metadata: dict[str, str],
) -> None:  # fmt: skip
    rng = np.random.default_rng(count_of(world))
    odd, plain, later = (put_image(world.blobs, picture("red", rng)) for _ in range(3))
    embedding = None if encoder is None else np.ones(2)
    changed = {"encoder": encoder, "embedding_D": embedding, "policies": policies, "propensity": propensity}
    put_capture_file(world.blobs, [own_record(odd, metadata=metadata, **changed, **texts), own_record(plain)])
    put_capture_file(world.blobs, [own_record(later)])
    totals = steps.ingest(world.loop)
    assert (totals["files"], totals["new"] + totals["refused"]) == (2, 3)
    assert {ids.sample_id(plain), ids.sample_id(later)} <= {s.sample_id for s in world.loop.samples.all()}


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_RECORDS", "MAX_VALUES"])
def test_a_capture_file_too_large_to_read_is_refused_and_the_next_one_is_read(
    world: FakeLoop, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(15)
    images_ = [put_image(world.blobs, picture("red", rng)) for _ in range(40)]
    huge = put_capture_file(world.blobs, [own_record(image) for image in images_[1:]], AT)
    put_capture_file(world.blobs, [own_record(images_[0])], AT + timedelta(seconds=1))
    small = {"MAX_BYTES": len(world.blobs.get(huge)) - 1, "MAX_RECORDS": 38, "MAX_VALUES": 600}
    monkeypatch.setattr(capture_records, limit, small[limit])
    assert steps.ingest(world.loop) == {"files": 2, "records": 1, "new": 1, "refused": 1}
    ((kind, reference, reason),) = world.loop.samples.refusals()
    assert (kind, reference) == ("capture file", huge)
    assert "accepted" in reason


def test_a_group_that_capture_did_not_hold_out_as_the_loop_does_is_refused_with_the_share_to_set(
    world: FakeLoop,
) -> None:
    rng = np.random.default_rng(16)
    share = world.loop.settings.capture.audit_share
    drawn = [put_image(world.blobs, picture("red", rng)) for _ in range(60)]
    held_out = {ids.sample_id(i) for i in drawn if ids.reserved(ids.sample_id(i), "colours", share)}
    assert held_out
    # A capture whose share is smaller marks none of these; it took them only where the model was unsure.
    put_capture_file(world.blobs, [record_of(image, audit=False) for image in drawn])
    totals = steps.ingest(world.loop)
    assert (totals["new"], totals["refused"]) == (60 - len(held_out), len(held_out))
    assert all("give both the same audit_share (loop: 0.1)" in reason for reason in reasons(world).values())
    assert world.loop.samples.count() == {"pool": 60 - len(held_out)}
    # A larger share marks more than the loop would: they are held out, and were all captured.
    more = put_image(world.blobs, picture("green", rng))
    put_capture_file(world.blobs, [record_of(more, audit=True)], AT + timedelta(seconds=1))
    assert steps.ingest(world.loop)["new"] == 1
    assert world.loop.samples.count()["audit"] == 1


def test_a_sample_captured_twice_is_one_sample_with_its_latest_prediction(world: FakeLoop) -> None:
    image = put_image(world.blobs, picture("red", np.random.default_rng(6)))
    later = own_record(image, captured_at=AT + timedelta(hours=1), probs_C=np.array([0.1, 0.2, 0.7], dtype=np.float32))
    put_capture_file(world.blobs, [own_record(image), own_record(image)], AT)
    put_capture_file(world.blobs, [later], AT + timedelta(hours=1))
    put_capture_file(world.blobs, [own_record(image, model_version="2")], AT + timedelta(hours=2))
    totals = steps.ingest(world.loop)
    assert (totals["records"], totals["new"]) == (4, 1)
    predictions = {p.model_version: p for p in world.loop.samples.predictions_of(ids.sample_id(image))}
    assert set(predictions) == {"1", "2"}
    np.testing.assert_allclose(predictions["1"].probs_C, [0.1, 0.2, 0.7], rtol=1e-6)


def test_while_the_store_is_away_nothing_is_stored_and_afterwards_nothing_is_missing(world: FakeLoop) -> None:
    made = produce(world, 8, np.random.default_rng(7))
    faulty = FaultyBlobs(world.blobs)
    away = replace(world.loop, blobs=faulty, embeddings=EmbeddingStore(faulty, "colours"))
    faulty.fail_next, faulty.only = 1, "images/"
    with pytest.raises(Unavailable):
        steps.ingest(away)
    assert count_of(world) == 0
    assert world.loop.samples.refusals() == [], "an absent store is no fault of the record's"
    faulty.away = True
    with pytest.raises(Unavailable):
        steps.ingest(away)
    faulty.away = False
    assert steps.ingest(away)["new"] == 8
    assert {s.sample_id for s in world.loop.samples.all()} == set(made)


def test_an_ingestion_that_breaks_between_two_files_goes_on_where_it_stopped(world: FakeLoop) -> None:
    rng = np.random.default_rng(8)
    for number in range(3):
        image = put_image(world.blobs, picture("green", rng))
        put_capture_file(world.blobs, [own_record(image)], AT + timedelta(seconds=number))
    faulty = FaultyBlobs(world.blobs)
    seen: list[int] = []

    def breaks(what: str, done: int, total: int) -> None:
        seen.append(done)
        faulty.away = done == 2

    broken = replace(world.loop, blobs=faulty)
    with pytest.raises(Unavailable):
        steps.ingest(broken, progress=breaks)
    assert count_of(world) == 2
    faulty.away = False
    assert steps.ingest(broken) == {"files": 1, "records": 1, "new": 1, "refused": 0}
    assert seen == [1, 2]


# ---------------------------------------------------------------- images that people hand in


def test_images_given_twice_are_known_the_second_time(world: FakeLoop) -> None:
    assert give(world, "pool", 3, np.random.default_rng(9)) == {"new": 9, "known": 0, "refused": 0}
    assert give(world, "pool", 3, np.random.default_rng(9)) == {"new": 0, "known": 9, "refused": 0}
    assert count_of(world) == 9


def test_a_label_that_is_not_the_loops_refuses_the_whole_request_before_anything_is_stored(world: FakeLoop) -> None:
    image = picture("red", np.random.default_rng(10))
    with pytest.raises(BadData, match=r"label 'purple' is not one of the loop's: red, green, blue"):
        steps.add_images(world.loop, [GivenImage("a.png", image, "archive", "seed", "purple")])
    assert count_of(world) == 0


def test_an_image_given_with_two_labels_in_one_request_is_a_mistake_that_is_named(world: FakeLoop) -> None:
    image = picture("red", np.random.default_rng(11))
    given = [
        GivenImage("a.png", image, "archive", "seed", "red"),
        GivenImage("copy of a.png", image, "archive", "seed", "blue"),
    ]
    with pytest.raises(BadData, match=r"'a.png' and 'copy of a.png' are the same image, labelled 'red' and 'blue'"):
        steps.add_images(world.loop, given)
    assert world.loop.work.labels() == []


def test_a_test_image_that_production_sent_before_is_measured_on_and_never_trained_on(world: FakeLoop) -> None:
    image = put_image(world.blobs, picture("red", np.random.default_rng(12)))
    put_capture_file(world.blobs, [own_record(image)])
    steps.ingest(world.loop)
    steps.add_images(world.loop, [GivenImage("test.png", image, "archive", "legacy", "red")])
    (row,) = retraining.labelled_rows(world.loop, world.loop.work.labels())
    assert row.split.value == "legacy"


def test_an_image_without_a_usable_byte_is_refused_by_name_and_the_others_are_kept(world: FakeLoop) -> None:
    good = picture("red", np.random.default_rng(13))
    given = [
        GivenImage("good.png", good, "archive"),
        GivenImage("empty.png", b"", "archive"),
        GivenImage("cut.png", good[:60], "archive"),
    ]
    assert steps.add_images(world.loop, given) == {"new": 1, "known": 0, "refused": 2}
    assert set(reasons(world)) == {"empty.png", "cut.png"}

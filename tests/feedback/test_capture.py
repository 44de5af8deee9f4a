"""Capture: what is decided on the caller's thread, and what then lies in the store."""

import io
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedback.capture import Capture, CapturePolicy, WriterSettings
from hardloop.core import capture_records, ids, images
from hardloop.core.blobs import DirectoryBlobs, S3Blobs, S3Settings
from hardloop.core.errors import BadImage, BadInput, BadSettings, BadShape
from hardloop.core.records import CaptureRecord
from tests.fakes.faulty_blobs import FaultyBlobs

LABELS = ["boot", "sandal", "shirt"]
SURE = [0.98, 0.01, 0.01]
UNSURE = [0.40, 0.35, 0.25]
ONLY_CONFIDENCE = CapturePolicy(small_margin=None, disagreement=None, audit_share=0.0, exploration_share=0.0)
QUICK = WriterSettings(flush_interval_s=0.02, first_retry_s=0.01, last_retry_s=0.05)


def png(value: int, size: int = 8) -> bytes:
    """A PNG whose bytes differ for every value under 2^24."""
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:, :] = (value & 255, value >> 8 & 255, value >> 16 & 255)
    return images.encode_png(pixels)


def written(store: DirectoryBlobs | S3Blobs | FaultyBlobs, loop: str = "shoes") -> list[CaptureRecord]:
    keys = list(store.keys(capture_records.prefix(loop)))
    return [record for key in keys for record in capture_records.read(store.get(key), key)]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "store")


def capture_to(store, **changes) -> Capture:
    given = {"policy": ONLY_CONFIDENCE, "model_version": "3", "strict": True, "writer": QUICK} | changes
    return Capture(store, "shoes", LABELS, **given)


# ------------------------------------------------------------ what is written


def test_an_unsure_prediction_is_written_with_everything_said_about_it(store):
    before = datetime.now(UTC)
    with capture_to(store) as capture:
        decision = capture.log(
            image=png(7),
            probabilities=UNSURE,
            member_probabilities=[[0.1, 0.8, 0.1], UNSURE],
            embedding=[3.0, 4.0],
            encoder="pca-2",
            source="shop-4",
            group_id="camera-1",
            burst_id="burst-9",
            metadata={"lane": 2, "night": True},
        )
    assert decision.taken
    assert decision.sample_id == ids.sample_id(png(7))
    assert dict(decision.policies) == {"low_confidence": pytest.approx(0.40)}
    (record,) = written(store)
    assert before <= record.captured_at <= datetime.now(UTC)
    assert record.sample_id == decision.sample_id
    assert store.get(record.image_key) == png(7)
    assert (record.loop, record.model_version, record.labels) == ("shoes", "3", tuple(LABELS))
    np.testing.assert_allclose(record.probs_C, UNSURE, rtol=1e-6)
    np.testing.assert_allclose(record.member_probs_MC, [[0.1, 0.8, 0.1], UNSURE], rtol=1e-6)
    np.testing.assert_array_equal(record.embedding_D, [3.0, 4.0])
    assert (record.encoder, record.source, record.group_id, record.burst_id) == (
        "pca-2", "shop-4", "camera-1", "burst-9",
    )  # fmt: skip
    assert dict(record.metadata) == {"lane": "2", "night": "True"}
    assert dict(record.policies) == {"low_confidence": pytest.approx(0.40)}
    assert (record.audit, record.propensity) == (False, None)


def test_a_sure_prediction_is_not_written_and_is_counted_as_offered(store):
    with capture_to(store) as capture:
        decision = capture.log(image=png(1), probabilities=SURE)
        assert decision == type(decision)(ids.sample_id(png(1)))
    assert written(store) == []
    assert list(store.keys("images/")) == []
    assert (capture.stats.offered, capture.stats.accepted, dict(capture.stats.taken)) == (1, 0, {})


def test_without_a_group_the_sample_is_its_own_group(store):
    with capture_to(store) as capture:
        capture.log(image=png(1), probabilities=UNSURE)
    (record,) = written(store)
    assert record.group_id == record.sample_id


def test_one_batch_becomes_one_file_in_the_order_of_the_calls(store):
    with capture_to(store, writer=WriterSettings(flush_interval_s=60.0)) as capture:
        logged = [capture.log(image=png(n), probabilities=UNSURE).sample_id for n in range(20)]
    assert len(list(store.keys(capture_records.prefix("shoes")))) == 1
    assert [record.sample_id for record in written(store)] == logged


def test_the_same_image_twice_is_stored_once_and_recorded_twice(store):
    with capture_to(store) as capture:
        capture.log(image=png(1), probabilities=UNSURE, model_version="3")
        capture.log(image=png(1), probabilities=UNSURE, model_version="4")
    assert len(list(store.keys("images/"))) == 1
    assert [record.model_version for record in written(store)] == ["3", "4"]


@pytest.mark.parametrize("size", [(5, 3), (4, 8), (1, 1)])
def test_pixels_come_back_from_the_store_as_they_went_in(store, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with capture_to(store) as capture:
        capture.log(image=pixels, probabilities=UNSURE)
        capture.log(image=Image.fromarray(pixels), probabilities=UNSURE)
    first, second = written(store)
    assert first.sample_id == second.sample_id
    assert first.image_key == ids.image_key(first.sample_id, "bmp")
    np.testing.assert_array_equal(np.asarray(images.decode(store.get(first.image_key))), pixels)


def test_grey_pixels_and_transparent_pil_images_are_stored_as_a_person_sees_them(store):
    grey = np.array([[0, 200], [50, 255]], dtype=np.uint8)
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    with capture_to(store) as capture:
        capture.log(image=grey, probabilities=UNSURE)
        capture.log(image=clear, probabilities=UNSURE)
    first, second = (np.asarray(images.decode(store.get(r.image_key))) for r in written(store))
    np.testing.assert_array_equal(first, np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(second, np.full((2, 2, 3), 255))


def test_later_changes_to_the_callers_arrays_do_not_reach_the_record(store):
    probs = np.array(UNSURE, dtype=np.float32)
    with capture_to(store, writer=WriterSettings(flush_interval_s=60.0)) as capture:
        capture.log(image=png(1), probabilities=probs)
        probs[:] = [0.0, 0.0, 1.0]
    np.testing.assert_allclose(written(store)[0].probs_C, UNSURE, rtol=1e-6)


def test_a_waiting_sample_is_written_after_the_flush_interval_without_being_asked(store):
    with capture_to(store) as capture:
        capture.log(image=png(1), probabilities=UNSURE)
        for _ in range(500):
            if capture.stats.written:
                break
            threading.Event().wait(0.01)
        assert capture.stats.written == 1
        assert len(written(store)) == 1


# ------------------------------------------------------------ bad input


BAD = {
    "nan": ({"probabilities": [float("nan"), 0.5, 0.5]}, BadShape, "finite"),
    "opposite infinities": ({"probabilities": [float("inf"), -float("inf"), 1.0]}, BadShape, "finite"),
    "not summing to one": ({"probabilities": [0.9, 0.9, 0.9]}, BadShape, "sum to 2.7"),
    "negative": ({"probabilities": [-0.5, 0.75, 0.75]}, BadShape, "least is -0.5"),
    "wrong length": ({"probabilities": [0.5, 0.5]}, BadShape, r"shape \(2,\): expected \(3,\)"),
    "words": ({"probabilities": ["a", "b", "c"]}, BadShape, "not an array of numbers"),
    "bad member": ({"member_probabilities": [UNSURE, [0.5, 0.5, 0.5]]}, BadShape, r"member_probabilities\[1\]"),
    "one axis of members": ({"member_probabilities": UNSURE}, BadShape, r"shape \(3,\)"),
    "embedding alone": ({"embedding": [1.0]}, BadInput, "come together"),
    "embedding not finite": ({"embedding": [float("inf")], "encoder": "e"}, BadShape, "not finite"),
    "empty source": ({"source": ""}, BadInput, "source ''"),
    "control character": ({"group_id": "a\nb"}, BadInput, "group_id"),
    "number as group": ({"group_id": 7}, BadInput, "group_id 7"),
    "much metadata": ({"metadata": {"a": "x" * 20_000}}, BadInput, "20,001 characters"),
    "no bytes": ({"image": b""}, BadImage, "zero bytes"),
    "text": ({"image": b"hello, world"}, BadImage, "12 bytes of something else"),
    "cut header": ({"image": png(1)[:20]}, BadImage, "cannot be read"),
    "huge": ({"image": b"BM" + b"\0" * images.MAX_BYTES}, BadImage, "more than the"),
    "float pixels": ({"image": np.zeros((4, 4, 3))}, BadImage, "float64"),
    "no pixels": ({"image": np.zeros((0, 4, 3), dtype=np.uint8)}, BadImage, "empty"),
    "a path": ({"image": "/tmp/x.jpg"}, BadImage, "is a str"),
    "16-bit image": ({"image": Image.new("I;16", (2, 2))}, BadImage, "'I;16'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises_where_capture_is_strict_and_is_counted_where_it_is_not(store, case):
    changes, error, words = BAD[case]
    given = {"image": png(1), "probabilities": UNSURE} | changes
    with capture_to(store) as strict, pytest.raises(error, match=words):
        strict.log(**given)
    with capture_to(store, strict=False) as lenient:
        decision = lenient.log(**given)
        assert (decision.taken, dict(decision.policies)) == (False, {})
        assert dict(lenient.stats.refused) == {decision.refused: 1}
        assert decision.refused in ("bad_image", "bad_shape", "bad_input")
        assert lenient.log(image=png(2), probabilities=UNSURE).taken
    assert [record.sample_id for record in written(store)] == [ids.sample_id(png(2))]


def test_a_decompression_bomb_is_refused_on_its_header(store):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    with capture_to(store) as capture, pytest.raises(BadImage, match=r"20000 x 20000|DecompressionBomb"):
        capture.log(image=bomb.getvalue(), probabilities=UNSURE)


def test_each_reason_is_logged_once(store, caplog):
    with capture_to(store, strict=False) as capture:
        for _ in range(5):
            capture.log(image=b"no image", probabilities=UNSURE)
            capture.log(image=png(1), probabilities=[1.0])
    assert dict(capture.stats.refused) == {"bad_image": 5, "bad_shape": 5}
    assert len([r for r in caplog.records if "logged once" in r.message]) == 2


def test_a_fault_of_our_own_never_reaches_the_model_server(store, monkeypatch):
    monkeypatch.setattr("feedback.capture.decide", lambda *_: 1 / 0)
    with capture_to(store, strict=False) as capture:
        assert capture.log(image=png(1), probabilities=UNSURE).refused == "internal_error"
    assert dict(capture.stats.refused) == {"internal_error": 1}


def test_an_image_cut_off_after_its_header_is_dropped_by_the_writer_and_the_rest_of_the_batch_is_kept(store):
    noise = images.encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with capture_to(store) as capture:
        assert capture.log(image=noise[: len(noise) // 2], probabilities=UNSURE).taken
        kept = capture.log(image=png(1), probabilities=UNSURE)
    assert [record.sample_id for record in written(store)] == [kept.sample_id]
    assert dict(capture.stats.dropped) == {"bad_image": 1}
    assert (capture.stats.accepted, capture.stats.written, capture.stats.pending) == (2, 1, 0)


def test_a_record_that_does_not_fit_the_schema_does_not_take_its_batch_with_it(store, monkeypatch):
    real = capture_records.write

    def refuse_shop_13(records):
        if any(record.source == "shop-13" for record in records):
            raise ValueError("does not fit")
        return real(records)

    monkeypatch.setattr(capture_records, "write", refuse_shop_13)
    with capture_to(store, writer=WriterSettings(flush_interval_s=60.0)) as capture:
        for number in (12, 13, 14):
            capture.log(image=png(number), probabilities=UNSURE, source=f"shop-{number}")
    assert [record.source for record in written(store)] == ["shop-12", "shop-14"]
    assert dict(capture.stats.dropped) == {"unwritable": 1}


@pytest.mark.parametrize(
    ("labels", "words"), [(["one"], "1 labels"), (["a", "a"], "1 of them distinct"), ("ab", "list"), (["a", ""], "''")]
)
def test_impossible_labels_are_refused_at_once(store, labels, words):
    with pytest.raises(BadInput, match=words):
        Capture(store, "shoes", labels)


def test_a_loop_name_that_cannot_stand_in_a_key_is_refused(store):
    with pytest.raises(BadSettings, match="Shoes!"):
        Capture(store, "Shoes!", LABELS)


# ------------------------------------------------------------ the store goes away


def test_nothing_promised_is_lost_when_the_store_goes_away_and_comes_back(store):
    faulty = FaultyBlobs(store)
    faulty.away = True
    with capture_to(faulty) as capture:
        promised = [capture.log(image=png(n), probabilities=UNSURE).sample_id for n in range(30)]
        assert not capture.flush(timeout_s=0.3)
        assert capture.stats.pending == 30
        assert capture.stats.retries > 0
        assert "the store is away" in capture.stats.last_error
        faulty.away = False
        promised += [capture.log(image=png(n), probabilities=UNSURE).sample_id for n in range(30, 40)]
        assert capture.flush(timeout_s=10.0)
    assert sorted(record.sample_id for record in written(store)) == sorted(promised)
    assert capture.stats.dropped == {}


@pytest.mark.parametrize("failures", [1, 2, 3, 5, 8, 13])
def test_a_store_that_fails_now_and_then_ends_with_every_sample_once(store, failures):
    faulty = FaultyBlobs(store)
    with capture_to(faulty) as capture:
        promised = []
        for round_ in range(3):
            faulty.fail_next = failures
            promised += [capture.log(image=png(10 * round_ + n), probabilities=UNSURE).sample_id for n in range(5)]
            assert capture.flush(timeout_s=10.0)
    assert sorted(record.sample_id for record in written(store)) == sorted(promised)
    assert capture.stats.retries == 3 * failures


def test_a_put_whose_answer_was_lost_is_repeated_under_the_same_name(store):
    faulty = FaultyBlobs(store)
    faulty.lose_answers = 1
    with capture_to(faulty) as capture:
        capture.log(image=png(1), probabilities=UNSURE)
    names = [key for key in faulty.writes if key.startswith("captures/")]
    assert len(names) == 2
    assert names[0] == names[1]
    assert len(written(store)) == 1


def test_a_name_grown_old_is_renewed_only_if_its_put_never_arrived(store, monkeypatch):
    monkeypatch.setattr("feedback.capture_writer.NAME_TTL_S", 0.0)
    arrived = FaultyBlobs(store)
    arrived.lose_answers = 1
    with capture_to(arrived) as capture:
        capture.log(image=png(1), probabilities=UNSURE)
    assert len([key for key in arrived.writes if key.startswith("captures/")]) == 1

    failing = FaultyBlobs(store)
    with capture_to(failing, writer=QUICK.model_copy(update={"flush_interval_s": 60.0})) as capture:
        failing.only, failing.fail_next = "captures/", 3  # a put, then two looks whether it arrived
        capture.log(image=png(1), probabilities=UNSURE)
    names = [key for key in failing.writes if key.startswith("captures/")]
    assert names == sorted(names)
    assert len(names) == len(set(names)) == 2
    assert len(written(store)) == 2


def test_a_full_queue_drops_the_new_sample_says_so_and_keeps_the_old_ones(store):
    faulty = FaultyBlobs(store)
    faulty.away = True
    with capture_to(faulty, writer=QUICK.model_copy(update={"max_pending": 4})) as capture:
        decisions = [capture.log(image=png(n), probabilities=UNSURE) for n in range(6)]
        assert [decision.taken for decision in decisions] == [True] * 4 + [False] * 2
        assert [decision.dropped for decision in decisions] == [None] * 4 + ["queue_full"] * 2
        faulty.away = False
    assert {record.sample_id for record in written(store)} == {d.sample_id for d in decisions[:4]}
    assert dict(capture.stats.dropped) == {"queue_full": 2}
    assert dict(capture.stats.taken) == {"low_confidence": 6}


def test_memory_is_bounded_by_bytes_too(store):
    faulty = FaultyBlobs(store)
    faulty.away = True
    picture = np.zeros((100, 100, 3), dtype=np.uint8)  # 30 kB
    with capture_to(faulty, writer=QUICK.model_copy(update={"max_pending_bytes": 100_000})) as capture:
        for value in range(10):
            capture.log(image=picture + np.uint8(value), probabilities=UNSURE)
        assert capture.stats.pending == 3
        assert 90_000 < capture.stats.pending_bytes <= 100_000
        assert dict(capture.stats.dropped) == {"queue_full": 7}
        faulty.away = False
    assert (capture.stats.pending, capture.stats.pending_bytes) == (0, 0)


def test_closing_while_the_store_is_away_counts_what_is_lost(store):
    faulty = FaultyBlobs(store)
    faulty.away = True
    capture = capture_to(faulty)
    for number in range(5):
        capture.log(image=png(number), probabilities=UNSURE)
    assert not capture.close(timeout_s=0.2)
    for _ in range(500):
        if not capture.stats.pending:
            break
        threading.Event().wait(0.01)
    assert dict(capture.stats.dropped) == {"closed": 5}
    decision = capture.log(image=png(9), probabilities=UNSURE)
    assert (decision.taken, decision.dropped) == (False, "closed")
    assert capture.close()


def test_many_threads_lose_and_double_nothing(store):
    faulty = FaultyBlobs(store)
    capture = capture_to(faulty, writer=QUICK.model_copy(update={"batch_records": 7}))
    promised: list[str] = []

    def work(worker: int) -> None:
        for n in range(50):
            if n % 10 == 0:
                faulty.fail_next = 2
            decision = capture.log(image=png(worker * 1000 + n), probabilities=UNSURE if n % 2 else SURE)
            if decision.taken:
                promised.append(decision.sample_id)

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert capture.close(timeout_s=30.0)
    assert len(promised) == 6 * 25
    assert sorted(record.sample_id for record in written(store)) == sorted(promised)
    stats = capture.stats
    assert (stats.offered, stats.accepted, stats.written, stats.pending) == (300, 150, 150, 0)


# ------------------------------------------------------------ processes


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"PYTHONPATH": root} | environ,
    )  # fmt: skip


def test_importing_capture_loads_no_server_no_torch_and_nothing_slow():
    done = run_python(
        "import sys; from hardloop import Capture; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = set(done.stdout.split())
    heavy = {"torch", "fastapi", "onnxruntime", "sklearn", "faiss", "mlflow", "sqlalchemy", "scipy", "numba", "dbos"}
    assert loaded & heavy == set()
    assert loaded & {"minio", "pyarrow"} == set()  # the base install has them; they are imported when first used


USER_CODE = """
from hardloop import Capture, CapturePolicy
capture = Capture.from_env("shoes", labels=["a", "b"], policy=CapturePolicy(take_all=True), model_version="1")
{body}
"""
ONE_PNG = repr(png(5))


def test_a_process_that_simply_ends_has_written_what_it_promised(tmp_path):
    body = f"assert capture.log(image={ONE_PNG}, probabilities=[0.5, 0.5]).taken"
    run_python(USER_CODE.format(body=body), HARDLOOP_S3_URL=(tmp_path / "store").as_uri())
    (record,) = written(DirectoryBlobs(tmp_path / "store"))
    assert (record.model_version, record.labels) == ("1", ("a", "b"))


def test_forked_workers_each_write_their_own_and_the_parent_keeps_its_own(tmp_path):
    body = """
import os, sys, numpy as np
image = lambda n: np.full((2, 2, 3), n, dtype=np.uint8)
capture.log(image=image(0), probabilities=[0.5, 0.5], source="parent")
children = []
for number in (1, 2):
    pid = os.fork()
    if pid == 0:
        assert capture.stats.offered == 0
        capture.log(image=image(number), probabilities=[0.5, 0.5], source=f"child-{number}")
        sys.exit(0)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
"""
    run_python(USER_CODE.format(body=body), HARDLOOP_S3_URL=(tmp_path / "store").as_uri())
    records = written(DirectoryBlobs(tmp_path / "store"))
    assert sorted(record.source for record in records) == ["child-1", "child-2", "parent"]


def test_missing_environment_variables_are_all_named():
    with pytest.raises(BadSettings, match="HARDLOOP_S3_BUCKET, HARDLOOP_S3_SECRET_KEY"):
        Capture.from_env(
            "shoes", LABELS, environ={"HARDLOOP_S3_URL": "http://127.0.0.1:1", "HARDLOOP_S3_ACCESS_KEY": "a"}
        )


def test_an_impossible_address_is_refused_by_the_constructor():
    with pytest.raises(BadSettings, match=r"s3\.example"):
        Capture(S3Settings("s3.example", "bucket", "a", "b"), "shoes", LABELS)


# ------------------------------------------------------------ a real server


@pytest.mark.real
def test_a_real_server_gets_every_sample_of_several_writers_in_an_order_a_poller_can_follow(s3):
    blobs = S3Blobs(s3)
    captures = [capture_to(s3, writer=QUICK.model_copy(update={"batch_records": 10})) for _ in range(3)]
    promised, seen = set(), set()
    for n in range(60):
        promised.add(captures[n % 3].log(image=png(n), probabilities=UNSURE).sample_id)
        if n % 20 == 19:
            seen |= {record.sample_id for record in written(blobs)}
    assert all(capture.close(timeout_s=30.0) for capture in captures)
    records = written(blobs)
    assert {record.sample_id for record in records} == promised
    assert len(records) == 60
    assert seen <= promised
    assert all(blobs.get(record.image_key) for record in records)


@pytest.mark.real
def test_an_unreachable_server_costs_the_caller_nothing_and_is_named_in_the_counters(s3):
    nobody = S3Settings("http://127.0.0.1:9", s3.bucket, s3.access_key, s3.secret_key)
    capture = capture_to(nobody)
    assert capture.log(image=png(1), probabilities=UNSURE).taken
    assert not capture.flush(timeout_s=2.0)
    assert "127.0.0.1:9" in capture.stats.last_error
    capture.close(timeout_s=0.0)


def test_captured_at_is_the_moment_of_the_prediction_and_the_name_that_of_the_write(store):
    faulty = FaultyBlobs(store)
    faulty.away = True
    with capture_to(faulty) as capture:
        capture.log(image=png(1), probabilities=UNSURE)
        assert not capture.flush(timeout_s=0.2)
        back = datetime.now(UTC)
        faulty.away = False
    (key,) = store.keys(capture_records.prefix("shoes"))
    (record,) = written(store)
    stamp = datetime.strptime(key.rsplit("/", 1)[1].split("-")[0], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    assert record.captured_at <= back - timedelta(seconds=0.2) < back <= stamp

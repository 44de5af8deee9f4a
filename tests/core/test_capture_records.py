"""Capture files: what was written is read back, and a file that is not one of ours is refused by name."""

import io
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core import capture_records
from hardloop.core.errors import BadInput
from hardloop.core.records import CaptureRecord

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
probabilities = st.lists(st.floats(0.001, 1.0), min_size=2, max_size=6).map(
    lambda values: (np.array(values) / np.sum(values)).astype(np.float32)
)
moments = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
finite = st.floats(-1e6, 1e6, width=32)


@st.composite
def records(draw: st.DrawFn) -> CaptureRecord:
    probs_C = draw(probabilities)
    members = draw(st.integers(0, 3))
    embedding = draw(st.none() | st.lists(finite, min_size=1, max_size=5))
    return CaptureRecord(
        sample_id=draw(texts),
        image_key=draw(texts),
        captured_at=draw(moments),
        loop=draw(texts),
        model_version=draw(texts),
        labels=tuple(f"class {number}" for number in range(len(probs_C))),
        probs_C=probs_C,
        policies=draw(st.dictionaries(texts, st.floats(allow_nan=False), max_size=3)),
        source=draw(texts),
        group_id=draw(texts),
        audit=draw(st.booleans()),
        propensity=draw(st.none() | st.floats(0, 1)),
        burst_id=draw(st.none() | texts),
        member_probs_MC=np.stack([np.roll(probs_C, m + 1) for m in range(members)]) if members else None,
        embedding_D=None if embedding is None else np.array(embedding, dtype=np.float32),
        encoder=None if embedding is None else draw(texts),
        metadata=draw(st.dictionaries(texts, texts, max_size=3)),
    )


def plain(record: CaptureRecord) -> dict[str, object]:
    """A record as values that `==` compares."""
    fields = {name: getattr(record, name) for name in CaptureRecord.__dataclass_fields__}
    fields |= {name: value.tolist() for name, value in fields.items() if isinstance(value, np.ndarray)}
    return fields | {name: dict(value) for name, value in fields.items() if isinstance(value, Mapping)}


def example(**changes: Any) -> CaptureRecord:
    values: dict[str, Any] = {
        "sample_id": "0" * 32, "image_key": "images/00/0.png", "captured_at": datetime(2026, 11, 23, tzinfo=UTC),
        "loop": "cats", "model_version": "3", "labels": ("cat", "dog"), "probs_C": np.array([0.25, 0.75]),
        "policies": {"low_confidence": 0.25}, "source": "camera-1", "group_id": "camera-1",
    }  # fmt: skip
    return CaptureRecord(**(values | changes))


@settings(deadline=None)
@given(written=st.lists(records(), max_size=4))
def test_records_come_back_as_they_were_written_in_their_order(written: list[CaptureRecord]) -> None:
    back = capture_records.read(capture_records.write(written))
    assert [plain(record) for record in back] == [plain(record) for record in written]


def test_a_moment_of_another_time_zone_comes_back_as_the_same_instant() -> None:
    moment = datetime(2026, 11, 23, 8, 0, 0, 5, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    (back,) = capture_records.read(capture_records.write([example(captured_at=moment)]))
    assert back.captured_at == moment
    assert back.captured_at.utcoffset() == timedelta(0)


def test_probabilities_are_kept_in_single_precision() -> None:
    (back,) = capture_records.read(capture_records.write([example(probs_C=np.array([1 / 3, 2 / 3]))]))
    assert back.probs_C.dtype == np.float32
    assert back.probs_C.tolist() == [np.float32(1 / 3), np.float32(2 / 3)]


def test_files_of_a_loop_lie_in_a_folder_of_their_own() -> None:
    assert capture_records.prefix("cats") == "captures/cats/"


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_bad_input_naming_the_file(data: bytes) -> None:
    with pytest.raises(BadInput, match="captures/x is not a Parquet file"):
        capture_records.read(data, "captures/x")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_broken_bytes_raises_nothing_but_bad_input(data: st.DataObject) -> None:
    whole = bytearray(capture_records.write([example(metadata={"a": "b"}, embedding_D=np.ones(3), encoder="e")] * 3))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadInput):
        assert len(capture_records.read(bytes(whole))) <= 3


def altered(**columns: list[Any]) -> bytes:
    """The file of one record with some columns replaced, types unchanged."""
    table = pq.read_table(io.BytesIO(capture_records.write([example(embedding_D=np.ones(2), encoder="e")])))
    for name, values in columns.items():
        field = capture_records.SCHEMA.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"probs": [[0.5, 0.4]]}, "sum to 1"),
        ({"probs": [[1.5, -0.5]]}, "not negative"),
        ({"probs": [[float("nan"), 1.0]]}, "finite"),
        ({"probs": [[None, 1.0]]}, "finite"),
        ({"probs": [[1.0]]}, "1 probabilities for 2 labels"),
        ({"probs": [[0.2, 0.3, 0.5]]}, "3 probabilities for 2 labels"),
        ({"labels": [["cat"]], "probs": [[1.0]]}, "at least 2"),
        ({"labels": [["cat", None]]}, "labels"),
        ({"labels": [["cat", "cat"]]}, "labels"),
        ({"member_probs": [[[0.5, 0.5], [0.9, 0.9]]]}, "sum to 1"),
        ({"member_probs": [[None]]}, "probabilities"),
        ({"embedding": [[float("inf"), 0.0]]}, "not finite"),
        ({"embedding": [None]}, "come together"),
        ({"encoder": [None]}, "come together"),
        ({"metadata": ["[1]"]}, "JSON object"),
        ({"metadata": ["{"]}, "JSON object"),
        ({"metadata": ['{"a": "' + "x" * 2**20 + '"}']}, "1,048,576 characters"),
        ({"metadata": ["[" * 200_000]}, "JSON object"),
        ({"metadata": ['{"a":' + "[" * 200_000]}, "JSON object"),
    ],
)
def test_impossible_values_are_refused_with_the_row_they_stand_in(
    columns: dict[str, list[Any]], complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint) as caught:
        capture_records.read(altered(**columns), "captures/cats/1.parquet")
    assert "captures/cats/1.parquet, row 0" in str(caught.value)


def test_a_moment_after_the_calendar_is_refused() -> None:
    with pytest.raises(BadInput, match="cats/1 holds values that its columns cannot have"):
        capture_records.read(altered(captured_at=[2**62]), "cats/1")


def test_another_version_is_refused_by_its_number() -> None:
    table = pq.read_table(io.BytesIO(capture_records.write([example()])))
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"hardloop.capture.version": b"99"}), out)
    with pytest.raises(BadInput, match="version 99: this Hardloop reads version 1; upgrade"):
        capture_records.read(out.getvalue())


def test_any_other_parquet_file_is_refused() -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), out)
    with pytest.raises(BadInput, match="version none"):
        capture_records.read(out.getvalue())


def test_a_file_of_our_version_with_other_columns_is_refused() -> None:
    table = pq.read_table(io.BytesIO(capture_records.write([example()]))).drop_columns(["source"])
    out = io.BytesIO()
    pq.write_table(table, out)
    with pytest.raises(BadInput, match="its columns differ"):
        capture_records.read(out.getvalue())


def file_of(rows: int, repeat: str = "", **how: Any) -> bytes:
    """A file of so many equal records, `repeat` in each one's metadata."""
    table = pq.read_table(io.BytesIO(capture_records.write([example(metadata={"a": repeat})])))
    out = io.BytesIO()
    pq.write_table(pa.concat_tables([table] * rows), out, compression="zstd", **how)
    return out.getvalue()


@pytest.mark.parametrize(
    ("limit", "at", "unit"),
    [("MAX_RECORDS", 100, "records"), ("MAX_VALUES", 2_000, "values"), ("MAX_BYTES", 9_700, "bytes of text")],
)
def test_a_file_at_a_limit_is_read_and_one_beyond_it_is_refused_by_number(
    limit: str, at: int, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file_of(100)  # 14 columns of one value, 2 labels, 2 probabilities, a policy's name and number a record
    monkeypatch.setattr(capture_records, limit, at)
    assert len(capture_records.read(data)) == 100
    monkeypatch.setattr(capture_records, limit, at - 1)
    with pytest.raises(BadInput, match=f"captures/x holds {at:,} {unit}, more than the {at - 1:,} accepted"):
        capture_records.read(data, "captures/x")


def test_a_file_of_too_many_bytes_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_records, "MAX_BYTES", 99)
    with pytest.raises(BadInput, match="captures/x holds 100 bytes, more than the 99 accepted"):
        capture_records.read(b"x" * 100, "captures/x")


@pytest.mark.parametrize(
    "how", [{"use_dictionary": False}, {"dictionary_pagesize_limit": 2**30}], ids=["plain", "once"]
)
def test_a_small_file_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_unpacked(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file_of(200, "x" * 1_000_000, **how)
    assert len(data) < 100_000
    monkeypatch.setattr(capture_records, "MAX_BYTES", 50_000_000)
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(BadInput, match="more than the 50,000,000 accepted"):
        capture_records.read(data, "captures/x")
    assert pa.default_memory_pool().max_memory() <= max(peak, before + 60_000_000)

"""The evaluation file: what goes in comes out, and nothing impossible comes out."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core import evaluations
from hardloop.core.errors import BadInput, BadShape
from hardloop.core.records import Evaluation


def three_samples(**changes: object) -> Evaluation:
    fields: dict[str, object] = {
        "ids": ("a", "b", "c"),
        "truth_N": np.array([0, 1, 1]),
        "probs_NC": np.array([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]]),
        "slices": ("mined", "audit", "legacy"),
    }
    return Evaluation(**(fields | changes))  # type: ignore[arg-type]


@settings(deadline=None)  # the first call pays for the import of pyarrow
@given(n=st.integers(0, 40), n_classes=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_reading_gives_back_what_was_written(n: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs_NC = rng.dirichlet(np.ones(n_classes), size=n).astype(np.float32)
    written = Evaluation(
        tuple(f"s{i}" for i in range(n)),
        rng.integers(n_classes, size=n),
        probs_NC,
        tuple(rng.choice(evaluations.SLICES, size=n).tolist()),
    )
    read = evaluations.read(evaluations.write(written))
    assert (read.ids, read.slices) == (written.ids, written.slices)
    np.testing.assert_array_equal(read.truth_N, written.truth_N)
    np.testing.assert_array_equal(read.probs_NC, probs_NC if n else np.empty((0, 0)))
    assert read.probs_NC.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ids": ("a", "b", "a")}, r"row 2 \(sample 'a'\): the sample id is there twice"),
        ({"truth_N": np.array([0, 2, 1])}, r"row 1 \(sample 'b'\): the truth is not a class index from 0 to 1"),
        ({"truth_N": np.array([-1, 1, 1])}, r"row 0 \(sample 'a'\): the truth is not a class index"),
        ({"slices": ("mined", "audit", "train")}, r"row 2 \(sample 'c'\): the slice is none of mined, audit, legacy"),
        ({"probs_NC": np.array([[0.7, 0.3], [np.nan, 1], [0, 1]])}, r"row 1 .*not a finite number"),
        ({"probs_NC": np.array([[0.7, 0.3], [0.6, 0.6], [0, 1]])}, r"row 1 .*do not sum to 1"),
        ({"probs_NC": np.array([[0.7, 0.3], [1.1, -0.1], [0, 1]])}, r"row 1 .*is negative"),
        ({"probs_NC": np.ones((3, 1))}, "1 classes; at least 2 are needed"),
        ({"probs_NC": np.array([[0.7, 0.3]])}, "do not belong together"),
    ],
)
def test_an_impossible_evaluation_is_refused_naming_the_row(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadShape, match=sentence):
        evaluations.write(three_samples(**changes))


def test_what_is_not_parquet_is_refused() -> None:
    whole = evaluations.write(three_samples())
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"x" * 100):
        with pytest.raises(BadInput, match=r"taken\.parquet is not a Parquet file"):
            evaluations.read(damaged, "taken.parquet")


def test_a_parquet_file_of_something_else_is_refused() -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), out)
    with pytest.raises(BadInput, match="evaluation schema version none"):
        evaluations.read(out.getvalue())


def test_values_are_checked_on_reading_too_whoever_wrote_the_file() -> None:
    table = pq.read_table(io.BytesIO(evaluations.write(three_samples())))
    position = table.schema.get_field_index("truth")
    forged = table.set_column(position, evaluations.SCHEMA.field("truth"), pa.array([0, 7, 1]))
    out = io.BytesIO()
    pq.write_table(forged, out)
    with pytest.raises(BadShape, match=r"row 1 \(sample 'b'\): the truth is not a class index from 0 to 1"):
        evaluations.read(out.getvalue())


def test_rows_of_different_length_are_refused() -> None:
    table = pq.read_table(io.BytesIO(evaluations.write(three_samples())))
    ragged = pa.array([[1.0], [0.5, 0.5], [0.5, 0.5]], type=pa.list_(pa.float32()))
    out = io.BytesIO()
    pq.write_table(table.set_column(3, evaluations.SCHEMA.field("probs"), ragged), out)
    with pytest.raises(BadShape, match="rows hold 1 to 2 probabilities"):
        evaluations.read(out.getvalue())


def test_a_file_that_would_fill_the_memory_is_refused_by_its_footer(monkeypatch: pytest.MonkeyPatch) -> None:
    data = evaluations.write(three_samples())
    monkeypatch.setattr(evaluations, "MAX_VALUES", 14)  # the file holds 3 * (3 + 2) = 15
    with pytest.raises(BadInput, match="holds 15 values, more than the 14 accepted"):
        evaluations.read(data)
    monkeypatch.setattr(evaluations, "MAX_BYTES", 100)
    with pytest.raises(BadInput, match="more than the 100 accepted"):
        evaluations.read(data)

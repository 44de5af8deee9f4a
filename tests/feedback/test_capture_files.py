"""Names of capture files: a reader that follows the rules misses none, whatever the writers' clocks do."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.capture_files import OVERLAP_S, FileNames, relist_from, written_at
from hardloop.core.errors import BadInput

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_a_name_says_when_its_write_was_begun():
    key = FileNames("shoes").new(NOON)
    assert key.startswith("captures/shoes/20261123T120000000000Z-")
    assert key.endswith(".parquet")
    assert written_at(key) == NOON


def test_other_keys_are_refused_by_name():
    with pytest.raises(BadInput, match="captures/shoes/readme"):
        written_at("captures/shoes/readme.txt")


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30))
def test_names_of_one_writer_never_go_backwards_even_when_its_clock_does(clock):
    names = FileNames("shoes")
    made = [names.new(at(second)) for second in clock]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_listing_starts_an_overlap_before_the_newest_name_but_never_later_than_an_overlap_before_now():
    names = FileNames("shoes")
    assert relist_from("shoes", None, NOON) == ""
    assert relist_from("shoes", names.new(at(0)), at(1000)) == "captures/shoes/20261123T115000000000Z"
    assert relist_from("shoes", names.new(at(5000)), at(0)) == "captures/shoes/20261123T115000000000Z"


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5000),  # when the write begins
            st.integers(0, 2),  # which writer
            st.integers(0, 300),  # how long the put takes to become visible
        ),
        min_size=1,
        max_size=25,
    ),
    st.tuples(*[st.integers(-100, 100)] * 3),  # how wrong each writer's clock is
    st.integers(20, 700),  # how often the reader looks
)
def test_a_reader_with_overlap_reads_every_file_once_whatever_the_delays_and_clocks(writes, skews, every):
    names = [FileNames("shoes") for _ in skews]
    files = [(names[w].new(at(begun + skews[w])), begun + takes) for begun, w, takes in sorted(writes)]
    read: list[str] = []
    newest: str | None = None
    for look in range(0, 6500 + every, every):
        start = relist_from("shoes", newest, at(look))
        listed = sorted(key for key, visible in files if visible <= look and key > start)
        fresh = [key for key in listed if key not in read]
        read += fresh
        newest = max([*fresh, newest or ""]) or None
    assert sorted(read) == sorted(key for key, _ in files)
    assert OVERLAP_S >= 300 + 200


def test_without_an_overlap_a_late_file_is_missed_which_is_what_the_overlap_is_for():
    early, late = FileNames("shoes").new(at(0)), FileNames("shoes").new(at(5))
    assert early < relist_from("shoes", late, at(10), overlap_s=0.0)
    assert early > relist_from("shoes", late, at(10))

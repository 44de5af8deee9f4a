"""Identities: equal for equal content in every process, ordered by time, and a fair draw for the holdout."""

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardloop.core import ids
from hardloop.core.blobs import check_key
from hardloop.core.errors import BadSettings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def test_a_sample_is_named_after_its_bytes() -> None:
    assert ids.sample_id(b"abc") == "ba7816bf8f01cfea414140de5dae2223"  # SHA-256's own test vector, first half
    assert ids.sample_id(b"abd") != ids.sample_id(b"abc")


def test_a_digest_is_that_of_sorted_compact_json() -> None:
    assert ids.digest({"b": 1, "a": "é"}) == hashlib.sha256('{"a":"é","b":1}'.encode()).hexdigest()
    assert ids.short_digest([1, 2]) == ids.digest([1, 2])[:16]


@given(pairs=st.dictionaries(st.text(max_size=5), JSON, max_size=6))
def test_the_order_of_keys_does_not_change_a_digest(pairs: dict[str, object]) -> None:
    assert ids.digest(dict(reversed(pairs.items()))) == ids.digest(pairs)
    assert ids.settings_digest(pairs) == ids.short_digest(pairs)


@given(left=JSON, right=JSON)
def test_values_with_equal_digests_are_equal(left: object, right: object) -> None:
    assert (ids.digest(left) == ids.digest(right)) == (repr(left) == repr(right) or _same(left, right))


def _same(left: object, right: object) -> bool:
    """Equality that tells True from 1, as JSON does, and ignores the order of keys."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and left == right


@pytest.mark.parametrize("name", ["a0", "camera-7", "0-0", "x" * 48])
def test_names_that_fit_everywhere_are_taken(name: str) -> None:
    assert ids.loop_name(name) == name


@pytest.mark.parametrize("name", ["", "a", "-a", "A1", "a_b", "a b", "a/b", "é1", "x" * 49, "ab\n", "../x"])
def test_names_that_would_break_a_key_or_an_address_are_refused(name: str) -> None:
    with pytest.raises(BadSettings, match="loop name"):
        ids.loop_name(name)


def test_the_draw_is_the_same_in_another_process() -> None:
    code = "from hardloop.core import ids; print(repr(ids.uniform('audit', 'salt', 'camera-1')))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(other) == ids.uniform("audit", "salt", "camera-1")


@given(parts=st.lists(st.text(max_size=10), min_size=1, max_size=4))
def test_a_draw_lies_in_zero_to_one(parts: list[str]) -> None:
    assert 0.0 <= ids.uniform(*parts) < 1.0


def test_parts_are_not_run_together() -> None:
    assert ids.uniform("ab", "c") != ids.uniform("a", "bc")


def test_draws_are_uniform() -> None:
    """Kolmogorov-Smirnov against the uniform law: 1.63 / sqrt(n) is passed by 99 % of truly uniform samples."""
    n = 20_000
    draws = sorted(ids.uniform("group", str(number)) for number in range(n))
    gap = max(max((i + 1) / n - x, x - i / n) for i, x in enumerate(draws))
    assert gap < 1.63 / n**0.5


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_holdout_takes_its_share_of_groups(share: float) -> None:
    n = 20_000
    taken = sum(ids.reserved(f"group-{number}", "salt", share) for number in range(n))
    assert abs(taken / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_no_share_takes_nobody_and_all_takes_everybody() -> None:
    assert not any(ids.reserved(str(number), "salt", 0.0) for number in range(1000))
    assert all(ids.reserved(str(number), "salt", 1.0) for number in range(1000))


def test_a_larger_holdout_holds_the_smaller_one_and_another_salt_another_one() -> None:
    groups = [str(number) for number in range(2000)]
    small, large = ({g for g in groups if ids.reserved(g, "s", share)} for share in (0.1, 0.3))
    other = {g for g in groups if ids.reserved(g, "t", 0.3)}
    assert small < large
    assert 0.2 < len(large & other) / len(large) < 0.4


moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


@given(left=moments, right=moments, rank=st.integers(0, 999_998))
def test_keys_sort_by_time_and_then_by_rank(left: datetime, right: datetime, rank: int) -> None:
    first, second = sorted([left, right])
    if first < second:
        assert ids.time_ordered_key(first, rank=rank + 1) < ids.time_ordered_key(second, rank=rank)
    assert ids.time_ordered_key(left, rank=rank) < ids.time_ordered_key(left, rank=rank + 1)


def test_a_key_tells_its_moment_in_universal_time() -> None:
    moment = datetime(2026, 11, 23, 8, 39, 42, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert ids.time_ordered_key(moment, rank=7).startswith("20261123T063942123456Z-000007-")


def test_keys_of_one_moment_differ() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert len({ids.time_ordered_key(moment) for _ in range(500)}) == 500


def test_an_image_lies_under_its_hash_in_one_of_256_folders() -> None:
    assert ids.image_key("ba7816bf", "png") == "images/ba/ba7816bf.png"
    check_key(ids.image_key(ids.sample_id(b""), "jpg"))

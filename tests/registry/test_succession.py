"""The line of champions: promotions and rollbacks, killed between any two writes."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardloop.core.errors import Conflict
from registry.succession import MAX_EVENTS, MAX_LINE, Succession

AT = datetime(2026, 11, 23, tzinfo=UTC)


class Killed(Exception):
    pass


class Store:
    """The two things a registry keeps, and a kill after a number of writes."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.alias: str | None = None
        self.writes_left: int | None = None

    def write(self, **changes: str) -> None:
        if self.writes_left == 0:
            raise Killed
        if self.writes_left is not None:
            self.writes_left -= 1
        for name, value in changes.items():
            setattr(self, name, value)

    def finished(self) -> Succession:
        line = Succession.loads(self.text)
        if line.pending is not None:
            self.point(line)
            return line.settled()
        return line.agreed(self.alias, AT)

    def point(self, line: Succession) -> None:
        assert line.pending is not None
        self.write(alias=line.pending.to)
        self.write(text=line.settled().dumps())

    def promote(self, version: str) -> None:
        line = self.finished()
        if line.line and line.line[-1] == version:
            return
        moved = line.promoting(version, AT, "why")
        self.write(text=moved.dumps())
        self.point(moved)

    def rollback(self) -> None:
        pending = Succession.loads(self.text).pending
        line = self.finished()
        if pending is None or pending.kind != "rollback":
            moved = line.rolling_back(set("12345"), AT, "why")
            self.write(text=moved.dumps())
            self.point(moved)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", "4", "5", "back"]), st.integers(0, 4)), max_size=25))
def test_a_kill_between_any_two_writes_followed_by_a_repetition_changes_nothing(steps: list[tuple[str, int]]) -> None:
    store, line = Store(), []
    for what, writes in steps:
        if what == "back" and len(line) < 2:
            with pytest.raises(Conflict, match="cannot roll back"):
                store.rollback()
            continue
        act = store.rollback if what == "back" else lambda what=what: store.promote(what)
        store.writes_left = writes
        killed = False
        try:
            act()
        except Killed:
            killed = True
        store.writes_left = None
        if killed:
            act()
        if what == "back":
            line.pop()
        elif line[-1:] != [what]:
            line.append(what)
        assert store.alias == (line[-1] if line else None)
        assert Succession.loads(store.text).line == tuple(line)


def test_history_stays_within_what_one_tag_holds() -> None:
    line = Succession()
    for number in range(300):
        line = line.promoting(str(10_000 + number), AT, "ü" * 2_000).settled()
    assert (len(line.line), len(line.moves)) == (MAX_LINE, MAX_EVENTS)
    assert len(line.dumps()) < 100_000
    assert Succession.loads(line.dumps()) == line


def test_text_that_is_no_history_is_refused_saying_what_to_do() -> None:
    for text in ("{", '{"line": 3}', '{"line": [], "other": 1}'):
        with pytest.raises(Conflict, match=r"delete the tag hardloop\.champions"):
            Succession.loads(text)


def test_a_promotion_is_remembered_with_its_reason() -> None:
    line = Succession().promoting("1", AT, "first").settled().promoting("2", AT, "better")
    assert line.pending is not None
    assert (line.pending.kind, line.pending.to, line.pending.taken_from, line.pending.reason) == (
        "promote", "2", "1", "better",
    )  # fmt: skip

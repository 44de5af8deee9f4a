"""Who was champion before whom: pure bookkeeping that survives being killed between any two writes.

The registry keeps one text (`dumps`) and one pointer (the alias). Before the pointer moves, the intended move is
written down; afterwards it is cleared. Whoever comes next finishes a move it finds written down, so that a repeated
call never moves twice and a lost one never leaves the two at odds.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hardloop.core.errors import Conflict

MAX_LINE = 50  # so many rollbacks in a row are possible
MAX_EVENTS = 100
MAX_REASON = 300  # characters; 100 events stay under the 100,000 MLflow takes in one tag


class Move(BaseModel):
    """One change of the champion. kind "found": the alias had been moved by other hands, and we took note."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["promote", "rollback", "found"]
    to: str
    taken_from: str | None
    at: datetime
    reason: Annotated[str, Field(max_length=MAX_REASON)]


class Succession(BaseModel):
    """line: the champions up to the present one, each the one to go back to from the next. moves: what happened.

    pending: a move written down whose pointer may not have moved yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    line: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    pending: Move | None = None

    def dumps(self) -> str:
        """As text, bounded in length."""
        return self.model_dump_json()

    @classmethod
    def loads(cls, text: str | None) -> "Succession":
        """From text; an empty one from None. Raises Conflict for text that is none."""
        try:
            return cls() if not text else cls.model_validate_json(text)
        except ValidationError:
            raise Conflict(
                "the champions' history stored with the model was altered and cannot be read: "
                "delete the tag hardloop.champions in MLflow to begin a new one"
            ) from None

    def settled(self) -> "Succession":
        """The pending move done."""
        return self.model_copy(update={"pending": None})

    def agreed(self, alias: str | None, at: datetime) -> "Succession":
        """In line with where the alias points, nothing pending: a champion set by other hands joins the line."""
        if alias is None or (self.line and self.line[-1] == alias):
            return self
        found = Move(kind="found", to=alias, taken_from=self.line[-1] if self.line else None, at=at, reason="")
        return self._moved(found, (*self.line, alias)).settled()

    def promoting(self, version: str, at: datetime, reason: str) -> "Succession":
        """With a promotion written down."""
        move = Move(kind="promote", to=version, taken_from=self._last(), at=at, reason=reason[:MAX_REASON])
        return self._moved(move, (*self.line, version))

    def rolling_back(self, there: set[str], at: datetime, reason: str) -> "Succession":
        """With a rollback written down, to the nearest earlier champion that still exists (`there`).

        Raises Conflict where there is none.
        """
        earlier = [place for place, version in enumerate(self.line[:-1]) if version in there]
        if not earlier:
            present = f"version {self._last()} is the first champion" if self.line else "there is no champion yet"
            raise Conflict(f"cannot roll back: {present}; train a better one instead")
        line = self.line[: earlier[-1] + 1]
        move = Move(kind="rollback", to=line[-1], taken_from=self._last(), at=at, reason=reason[:MAX_REASON])
        return self._moved(move, line)

    def _last(self) -> str | None:
        return self.line[-1] if self.line else None

    def _moved(self, move: Move, line: tuple[str, ...]) -> "Succession":
        return Succession(line=line[-MAX_LINE:], moves=(*self.moves, move)[-MAX_EVENTS:], pending=move)

"""Reading rows unlike those that Label Studio gives today: whatever they hold, the good answers come through."""

from typing import Any

import pytest

from annotation.label_schema import LabelSchema
from annotation.label_studio import LabelStudioTool

SCHEMA = LabelSchema(("cat", "dog"))


class Rows:
    """The calls of `LabelStudioApi` that reading changes makes; `asked` counts how often names were."""

    def __init__(self, *answers: Any) -> None:
        row = {"id": 1, "data": {"sample_id": "0" * 32}, "updated_at": "2026-11-23T10:00:00.000000Z"}
        self._row = {**row, "annotations": list(answers)}
        self.asked = 0

    def newest_update(self, _project: int) -> str:
        return str(self._row["updated_at"])

    def tasks(self, *_: object, **__: object) -> list[dict[str, Any]]:
        return [self._row]

    def users(self) -> dict[int, str]:
        self.asked += 1
        return {7: "anna@example.org"}


def answer(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": number, "result": SCHEMA.result("dog"), **fields}


def annotators(rows: Rows) -> list[str]:
    tool = object.__new__(LabelStudioTool)
    tool._api, tool._project_id, tool._names, tool._schema = rows, 1, {}, SCHEMA  # type: ignore[assignment]
    (state,) = tool.changes("").tasks
    return [answer.annotator for answer in state.annotations]


@pytest.mark.parametrize("who", [{"id": 8, "email": "bo@example.org"}, [7], {}, "anna", None, 1.5])
def test_an_answerer_of_any_form_does_not_hide_the_answer_or_its_neighbours(who: Any) -> None:
    rows = Rows(answer(5, completed_by=who), answer(6, completed_by=7))
    told, known = annotators(rows)
    assert known == "anna@example.org"
    assert told == ("bo@example.org" if who == {"id": 8, "email": "bo@example.org"} else "unknown")
    assert rows.asked == 1

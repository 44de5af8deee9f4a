"""The room's documents name what there is: every column, policy, setting and route, and its default."""

from pathlib import Path

import pytest

from feedback.policies import NAMES, CapturePolicy
from feedback.server import ServerSettings, create_app
from feedback.trigger import TriggerPolicy
from hardloop.core import capture_records

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = (DOCS / "capture-schema.md").read_text(encoding="utf-8")
SERVING = (DOCS / "serving.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, str]:
    """Table rows by every name in backquotes in their first cell."""
    cells = [line.split("|")[1:] for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("` "): "|".join(row[1:]) for row in cells for name in row[0].split(",")}


def test_every_column_is_documented_and_none_that_is_not_there():
    table = SCHEMA.split("## Columns")[1].split("##")[0]
    assert list(rows(table)) == capture_records.SCHEMA.names
    assert f"## Columns, version {capture_records.VERSION}" in SCHEMA


def test_columns_that_may_be_null_are_said_to_be():
    table = rows(SCHEMA.split("## Columns")[1].split("##")[0])
    assert [name for name, row in table.items() if "null" in row.split("|")[0]] == [
        field.name for field in capture_records.SCHEMA if field.nullable
    ]


def test_every_policy_is_documented_with_its_default():
    table = rows(SCHEMA.split("## Policies")[1].split("##")[0])
    assert tuple(table) == NAMES
    defaults = CapturePolicy()
    for name, row in table.items():
        value = getattr(defaults, name if hasattr(defaults, name) else f"{name}_share")
        assert ("(off)" if value in (None, False) else f"({value:g})") in row


@pytest.mark.parametrize("model", [ServerSettings, TriggerPolicy])
def test_every_setting_is_documented(model):
    assert set(model.model_fields) <= set(rows(SERVING))


def test_every_route_is_documented():
    app = create_app(lambda: None, None)
    routes = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    assert routes <= set(rows(SERVING))

"""The reference pages are complete and true: every setting, command, route, status and table, and nothing else."""

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel, SecretStr

from hardloop.core import errors
from hardloop.core.errors import HardloopError
from hardloop.service import database
from hardloop.service.api import STATUS, create_app
from hardloop.service.cli import app
from hardloop.service.settings import (
    CapturePolicy,
    GatePolicy,
    LabelStudioSettings,
    LoopSettings,
    MiningPolicy,
    MlflowSettings,
    Settings,
    StoreSettings,
    TriggerPolicy,
)
from tests.docs.pages import fenced, read, section, table, tables

SETTINGS = {
    "The service": Settings,
    "`[store]`": StoreSettings,
    "`[label_studio]`": LabelStudioSettings,
    "`[mlflow]`": MlflowSettings,
    "`[[loops]]`": LoopSettings,
    "`[loops.capture]`": CapturePolicy,
    "`[loops.mining]`": MiningPolicy,
    "`[loops.trigger]`": TriggerPolicy,
    "`[loops.gate]`": GatePolicy,
}


def written(value: Any) -> str:
    """A default as the page writes it."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, BaseModel):
        return "see below"
    if value is None:
        return "none"
    if value in ("", {}) and not isinstance(value, bool):
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"`{value}`" if isinstance(value, str | Path) else str(value)


@pytest.mark.parametrize(("heading", "model"), SETTINGS.items(), ids=[m.__name__ for m in SETTINGS.values()])
def test_every_setting_is_documented_with_its_default_and_no_other(heading, model):
    rows = table(section(read("docs/settings.md"), heading))
    expected = {
        f"`{name}`": "**required**" if field.is_required() else written(field.default)
        for name, field in model.model_fields.items()
    }
    assert {name: row[0] for name, row in rows.items()} == expected
    assert all(row[1] for row in rows.values())


def test_no_table_of_settings_is_left_out():
    def nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for field in model.model_fields.values():
            if isinstance(field.default, BaseModel):
                yield from nested(type(field.default))

    assert {*nested(Settings), *nested(LoopSettings)} == set(SETTINGS.values())


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command and subcommand with its full name; groups other than the program itself have no page section."""
    for child, sub in command.commands.items():
        if hasattr(sub, "commands"):
            yield from commands(sub, f"{name} {child}")
        else:
            yield f"{name} {child}", sub


def test_the_examples_of_settings_are_settings():
    text = read("docs/settings.md")
    (example,) = fenced(text, "toml")
    settings = Settings(**tomllib.loads(example))
    assert (settings.port, settings.loops[0].trigger.min_new_labels) == (8420, 80)
    (quotas,) = re.findall(r"`(class_quotas = .*?)`", text)
    assert MiningPolicy(**tomllib.loads(quotas)).class_quotas == {0: 5}


CLI = read("docs/cli.md")
PROGRAM = typer.main.get_command(app)
EVERY = [("hardloop", PROGRAM), *commands(PROGRAM, "hardloop")]


def options(command: Any) -> set[str]:
    """The option strings of a command, --help left out."""
    found = {name for parameter in command.params if parameter.param_type_name == "option" for name in parameter.opts}
    return found - {"--help"}


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_command_is_documented_with_its_options_and_no_others(name, command):
    cells = table(section(CLI, name))
    documented = {
        part.strip("` ").split()[0] for cell in cells for part in cell.split(",") if part.strip("` ").startswith("-")
    }
    assert documented - {"--help"} == options(command)


@pytest.mark.parametrize(("name", "command"), EVERY[1:], ids=[name for name, _ in EVERY[1:]])
def test_every_default_of_a_command_is_the_one_documented(name, command):
    defaults = {
        cell.split("`")[-2].split()[0]: row[0].replace(",", "") for cell, row in table(section(CLI, name)).items()
    }
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.default in (None, False) or parameter.name == "help":
            continue
        assert defaults[parameter.opts[0] if parameter.name != "config" else "--config"] == str(parameter.default)


@pytest.mark.parametrize(("name", "command"), EVERY[1:], ids=[name for name, _ in EVERY[1:]])
def test_every_argument_of_a_command_is_named(name, command):
    text = section(CLI, name)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            assert f"`{parameter.name.upper()}`" in text


def test_no_command_is_documented_that_does_not_exist():
    headings = [line[3:] for line in CLI.splitlines() if line.startswith("## ")]
    assert sorted(headings) == sorted(name for name, _ in EVERY)


@dataclasses.dataclass
class NoJobs:
    """What the routes of a service without loops look at."""

    loops: dict[str, Any]
    errors: dict[str, Any]


API = create_app(NoJobs({}, {}), "token", "secret")  # type: ignore[arg-type]


def test_every_route_is_documented_and_no_other():
    routes = {f"{method.upper()} {path}" for path, methods in API.openapi()["paths"].items() for method in methods}
    assert {cell.strip("`") for cell in table(section(read("docs/api.md"), "Routes"))} == routes


def test_every_query_parameter_is_named_beside_its_route():
    rows = table(section(read("docs/api.md"), "Routes"))
    for path, methods in API.openapi()["paths"].items():
        for method, route in methods.items():
            for parameter in route.get("parameters", ()):
                if parameter["in"] == "query":
                    assert f"`{parameter['name']}`" in rows[f"`{method.upper()} {path}`"][0]


def test_every_error_stands_under_its_status():
    rows = table(section(read("docs/api.md"), "Errors"))
    documented = {name: int(status) for status, row in rows.items() for name in row[0].split("`")[1::2]}
    assert documented.pop("BadRequest") == 422
    assert documented == {kind.__name__: status for kind, status in STATUS.items()}


def test_every_error_class_has_a_status():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HardloopError)}
    assert kinds - {HardloopError} == set(STATUS)


def test_every_table_of_the_database_is_documented_with_its_key():
    rows = table(section(read("docs/architecture.md"), "Exactly once"))
    documented = {name.strip("`"): row[1] for cell, row in rows.items() for name in cell.split(", ")}
    assert set(documented) == set(database.metadata.tables)
    for name, key in documented.items():
        columns = [column.name for column in database.metadata.tables[name].primary_key if column.name != "loop"]
        assert columns == ["id"] or all(f"`{column}`" in key for column in columns), name


def test_no_word_of_the_glossary_is_explained_twice():
    words = [word for cell in tables(read("docs/glossary.md"))[0] for word in cell.split(", ")]
    assert len(words) == len(set(words))
    assert {"**sample**", "**receipt**", "**champion**", "**group**", "**loop**"} <= set(words)


def test_every_dependency_is_named_with_its_licence():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    required = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[\[<>=; ]", name)[0] for name in required} - {"hardloop"}
    page = read("docs/adr/0013-libraries.md")
    named = {name for cell in table(page) for name in cell.split(", ")}
    checks = set(re.findall(r"([\w-]+) \([\w.-]+\)", page))
    assert names <= named | checks

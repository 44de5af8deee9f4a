"""Writes settings files: the commented one a user starts from, and the demo's."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from hardloop.core.errors import BadSettings
from hardloop.service.settings import LoopSettings, told

_TEMPLATE = """\
# Hardloop's settings. Everything left out has a sensible default; docs/settings.md lists all of it.
# Any setting can come from the environment instead: HARDLOOP_STORE__SECRET_KEY, HARDLOOP_DATABASE_URL, ...

# data_dir = ".hardloop"                # embedded servers, the database and logs live here
# port = 8420                           # the service's own port
# database_url = "postgresql://..."     # SQLite in the data folder without it

[[loops]]
name = {name}
labels = {labels}
budget = 100                            # samples per selection
review = "manual"                       # "automatic": picks become tasks without a person approving them
recipe = "linear-probe"                 # or "small-cnn"

[loops.trigger]
min_new_labels = 50                     # retrain after so many new labels

# Your own servers: what has no url is started here, on loopback, with generated secrets.
# [store]
# url = "https://s3.example.com"
# bucket = "hardloop"
# access_key = "..."
# secret_key = "..."
#
# [label_studio]
# url = "https://labels.example.com"
# api_key = "..."
#
# [mlflow]
# url = "https://mlflow.example.com"
"""

_DEMO = """\
# Written by `hardloop demo`: every step by its own trigger, only mining and approval are asked for by the demo.
data_dir = "data"
port = 0
tick_s = 0.3
poll_s = 5.0

[[loops]]
name = {name}
labels = {labels}
budget = {budget}
recipe = {recipe}
seed = {seed}
mine = "manual"

[loops.trigger]
min_new_labels = {enough}
max_age_s = {age}
debounce_s = 1.5
max_wait_s = 600.0
cooldown_s = 0.0
"""


def write_new(path: Path, name: str, labels: Sequence[str]) -> None:
    """A commented settings file. Raises BadSettings where one is there already, or name or labels cannot be used."""
    try:
        LoopSettings(name=name, labels=tuple(labels))
    except ValidationError as error:
        raise BadSettings(told(error)) from None
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_TEMPLATE.format(name=_toml(name), labels=_toml(list(labels))))
    except FileExistsError:
        raise BadSettings(f"{path} is there already: edit it, or name another file with --config") from None
    except OSError as error:
        raise BadSettings(f"cannot write {path}: {error.strerror}") from None


def demo_file(name: str, labels: Sequence[str], budget: int, recipe: str, seed: int) -> str:
    """The demo's settings.

    The trigger waits until a quarter of a budget is labelled and answers pause: a round may have fewer picks than its
    budget, and would otherwise wait for the age of its labels.
    """
    return _DEMO.format(
        name=_toml(name),
        labels=_toml(list(labels)),
        budget=budget,
        recipe=_toml(recipe),
        seed=seed,
        enough=max(1, budget // 4),
        age=max(60, min(budget, 300)),
    )


def _toml(value: str | list[str]) -> str:
    """A string or list of strings: TOML's basic strings are JSON's, but for the DEL character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

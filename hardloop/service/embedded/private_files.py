"""Small JSON files that only their owner may read: the secrets of a data folder, and the state of what runs in it."""

import json
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hardloop.core.errors import BadSettings


def private_folder(path: Path) -> Path:
    """The folder, made for its owner alone where it is not there. Raises BadSettings where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BadSettings(f"cannot make the folder {path}: {error.strerror}; name another as data_dir") from None
    return path


def write_private(path: Path, value: Mapping[str, Any]) -> None:
    """Replace the file in one step; mode 0600 from the first byte on. Raises BadSettings where it cannot be written."""
    try:
        _write(path, value)
    except OSError as error:
        raise BadSettings(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_private(path: Path) -> dict[str, Any]:
    """The JSON object in the file, {} where there is none. Raises BadSettings where it is not one or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadSettings(f"{path} does not hold a JSON object: restore it, or start with a new data folder")
    return value


class Secrets:
    """The generated secrets of one data folder (`secrets.json`): made when first asked for, the same ever after."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()

    def get(self, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(24)) -> str:
        """The secret of that name. Processes exclude each other by the data folder's lock, threads by this object's."""
        with self._mutex:
            known = read_private(self._path)
            if name not in known:
                known[name] = make()
                write_private(self._path, known)
        value = known[name]
        if not isinstance(value, str):
            raise BadSettings(f"{self._path}: {name} is not a string: restore the file or start with a new data folder")
        return value

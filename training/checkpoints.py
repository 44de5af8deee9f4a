"""Checkpoints: one safetensors file each, its state as JSON in the file's header, replaced in one step.

Tensors and state in a single file cannot disagree after a kill, as two files could.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import Tensor

from hardloop.core.records import JsonValue

_STATE = "hardloop.state"


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    state: dict[str, JsonValue]


class Checkpoint:
    """One place on disk for the progress of one fit; `job` names what is being fitted.

    A file that was left by another job, or that is damaged, counts as absent: the fit starts over.
    """

    def __init__(self, path: Path | None, job: str) -> None:
        self._path = path
        self._job = job

    def load(self) -> Saved | None:
        """What was saved last, None where nothing usable was."""
        if self._path is None:
            return None
        try:
            with safetensors.safe_open(str(self._path), framework="pt") as file:
                state = json.loads((file.metadata() or {})[_STATE])
                if state.pop("job") != self._job:
                    return None
                return Saved({name: file.get_tensor(name) for name in file.keys()}, state)  # noqa: SIM118
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            return None

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, JsonValue]) -> None:
        """Replace what was saved. Nothing happens without a path."""
        if self._path is not None:
            header = {_STATE: json.dumps({**state, "job": self._job}, sort_keys=True)}
            write_atomically(self._path, save(dict(tensors), metadata=header))


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader, or a restart after a kill, sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

"""The model registry in memory, with the behaviour its contract asks for."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardloop.core import evaluations
from hardloop.core.errors import BadModel, Conflict, Missing
from hardloop.core.model_files import CARD, read_card
from hardloop.core.records import Evaluation, ModelVersion, TrainedModel, Verdict


@dataclass
class _Kept:
    version: ModelVersion
    files: dict[str, bytes]
    verdict: Verdict | None = None


class InMemoryRegistry:
    """`hardloop.core.ports.Registry` without a server. `versions_kept` is open to tests that alter files."""

    def __init__(self, loop: str = "fake") -> None:
        self._name = f"hardloop-{loop}"
        self.versions_kept: list[_Kept] = []
        self._line: list[str] = []

    def register(self, model: TrainedModel, training_key: str, dataset_key: str, dataset_digest: str) -> ModelVersion:
        folder = Path(model.folder)
        card = read_card(folder)
        if evaluations.FILE not in card.files:
            raise BadModel(f"{folder / CARD} does not name {evaluations.FILE}: train again")
        if card.labels != tuple(model.labels):
            raise BadModel(f"{folder / CARD} has labels {list(card.labels)}, the training {list(model.labels)}")
        if found := self.find(training_key):
            return found
        number = str(len(self.versions_kept) + 1)
        version = ModelVersion(self._name, number, f"run-{number}", training_key, dataset_digest, card.labels)
        files = {name: (folder / name).read_bytes() for name in (CARD, *card.files)}
        self.versions_kept.append(_Kept(version, files))
        return version

    def find(self, training_key: str) -> ModelVersion | None:
        return next((v for v in self.versions() if v.training_key == training_key), None)

    def versions(self) -> Sequence[ModelVersion]:
        return [kept.version for kept in self.versions_kept]

    def champion(self) -> ModelVersion | None:
        return self._kept(self._line[-1]).version if self._line else None

    def evaluation(self, version: ModelVersion) -> Evaluation:
        return evaluations.read(self._kept(version.version).files[evaluations.FILE])

    def record(self, version: ModelVersion, verdict: Verdict) -> None:
        self._kept(version.version).verdict = verdict

    def verdict(self, version: ModelVersion) -> Verdict | None:
        return self._kept(version.version).verdict

    def promote(self, version: ModelVersion, reason: str) -> None:
        self._kept(version.version)
        if self._line[-1:] != [version.version]:
            self._line.append(version.version)

    def rollback(self, reason: str) -> ModelVersion:
        if len(self._line) < 2:
            raise Conflict("cannot roll back: there is no earlier champion; promote another version instead")
        self._line.pop()
        return self._kept(self._line[-1]).version

    def fetch(self, version: ModelVersion, folder: Path) -> Path:
        kept = self._kept(version.version)
        if folder.exists() and any(folder.iterdir()) and not (folder / CARD).is_file():
            raise Conflict(f"{folder} holds files that are not a model: name an empty or new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            fetched = Path(temporary) / "model"
            fetched.mkdir()
            for name, data in kept.files.items():
                (fetched / name).write_bytes(data)
            read_card(fetched)
            shutil.rmtree(folder, ignore_errors=True)
            fetched.rename(folder)
        return folder

    def _kept(self, number: str) -> _Kept:
        for kept in self.versions_kept:
            if kept.version.version == number:
                return kept
        raise Missing(f"no version {number} of {self._name!r}: there are {len(self.versions_kept)}")

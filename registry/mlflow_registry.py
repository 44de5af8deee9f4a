"""Model versions in MLflow, behind the port `Registry`. What is written where: `docs/gate.md`.

One experiment and one registered model per loop, both named `hardloop-<loop>`. A training becomes one finished run and
one version, found again by the tag `hardloop.training_key`; the champion is an alias, its history one tag.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hardloop.core.errors import BadInput, BadModel, Missing
from hardloop.core.records import Evaluation, ModelVersion, TrainedModel, Verdict
from registry import mlflow_artifacts as artifacts
from registry import run_contents as contents
from registry.mlflow_client import Calls, Exists, MlflowSettings
from registry.mlflow_runs import finished_run
from registry.succession import Succession

CHAMPION, CANDIDATE = "champion", "candidate"
_HISTORY = "hardloop.champions"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=-]{0,199}")


class MlflowRegistry:
    """`hardloop.core.ports.Registry` on an MLflow server. Every call may be repeated. Safe to share between threads.

    Raises Unavailable where the server does not answer, BadSettings where it refuses us, Missing for models and
    versions that are not there, BadModel for those that are not ours or were altered.
    """

    def __init__(self, settings: MlflowSettings, *, code_commit: str = "unknown") -> None:
        self.settings = settings
        self._commit = code_commit
        self._name = settings.model_name
        self._calls = Calls(settings.tracking_url)

    # ------------------------------------------------------------ registering

    def register(self, model: TrainedModel, training_key: str, dataset_key: str, dataset_digest: str) -> ModelVersion:
        """See `Registry.register`. A half-written run of an earlier, interrupted call is discarded and begun anew."""
        if not _KEY.fullmatch(training_key):
            raise BadInput(f"training key {training_key!r}: 1 to 200 of A-Z a-z 0-9 . _ : / = - are allowed")
        trained = contents.opened(model)
        tags = {
            contents.LOOP: self.settings.loop,
            contents.TRAINING_KEY: training_key,
            contents.DATASET_KEY: dataset_key,
            contents.DATASET_DIGEST: dataset_digest,
            contents.CARD_DIGEST: trained.card_digest,
            contents.CODE_COMMIT: self._commit,
        }
        version = self.find(training_key)
        if version is None:
            run_id = finished_run(self._calls, self.settings, trained, tags)
            version = self._version(run_id, tags | {contents.LABELS: json.dumps(trained.card.labels)})
        self._newest_is_candidate(version)
        return version

    def _version(self, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """The version of a finished run. Of two made by a race, or by a retried request, the older one stays."""
        try:
            self._calls.create_registered_model(self._name, tags={contents.LOOP: self.settings.loop})
        except Exists:
            self._check_ours()
        self._calls.create_model_version(
            self._name, f"runs:/{run_id}/{contents.MODEL_FOLDER}", run_id=run_id, tags=dict(tags), await_creation_for=0
        )
        first, *others = self._with_key(tags[contents.TRAINING_KEY])
        for other in others:
            self._calls.delete_model_version(self._name, other.version)
        return first

    def _check_ours(self) -> None:
        owner = self._calls.get_registered_model(self._name).tags.get(contents.LOOP)
        if owner != self.settings.loop:
            raise BadModel(
                f"the registered model {self._name!r} in MLflow was not made by Hardloop: rename it or the loop"
            )

    def _newest_is_candidate(self, version: ModelVersion) -> None:
        """`candidate` names the newest version, whatever became of it; a late repetition must not turn it back."""
        present = self._alias(CANDIDATE)
        if present is None or int(present.version) < int(version.version):
            self._calls.set_registered_model_alias(self._name, CANDIDATE, version.version)

    # ------------------------------------------------------------ finding

    def find(self, training_key: str) -> ModelVersion | None:
        """See `Registry.find`."""
        return next(iter(self._with_key(training_key)), None)

    def versions(self) -> Sequence[ModelVersion]:
        """See `Registry.versions`. Versions that other hands added to the model are left out."""
        return self._search(f"name = '{self._name}'")

    def champion(self) -> ModelVersion | None:
        """See `Registry.champion`. One request. Raises BadModel where the alias names a version that is not ours."""
        found = self._alias(CHAMPION)
        return None if found is None else self._record(found)

    def _alias(self, alias: str) -> Any:
        try:
            return self._calls.get_model_version_by_alias(self._name, alias)
        except Missing:
            return None

    def _with_key(self, training_key: str) -> list[ModelVersion]:
        if not _KEY.fullmatch(training_key):
            return []
        return self._search(f"name = '{self._name}' and tags.`{contents.TRAINING_KEY}` = '{training_key}'")

    def _search(self, condition: str) -> list[ModelVersion]:
        found: list[Any] = []
        token = None
        while True:
            page = self._calls.search_model_versions(condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        ours = [self._record(entry) for entry in found if contents.TRAINING_KEY in entry.tags]
        return sorted(ours, key=lambda version: int(version.version))

    def _record(self, entry: Any) -> ModelVersion:
        try:
            return ModelVersion(
                name=entry.name,
                version=str(entry.version),
                run_id=entry.run_id,
                training_key=entry.tags[contents.TRAINING_KEY],
                dataset_digest=entry.tags[contents.DATASET_DIGEST],
                labels=tuple(json.loads(entry.tags[contents.LABELS])),
            )
        except (KeyError, ValueError, TypeError):
            raise BadModel(
                f"version {entry.version} of {entry.name!r} in MLflow was not registered by Hardloop: "
                "move the alias back to one that was"
            ) from None

    # ------------------------------------------------------------ the verdict

    def record(self, version: ModelVersion, verdict: Verdict) -> None:
        """See `Registry.record`: a few short tags on the version, all numbers in `verdict.json` of its run."""
        self._calls.log_text(version.run_id, contents.verdict_json(verdict), contents.VERDICT_FILE)
        for key, value in contents.verdict_tags(verdict).items():
            self._calls.set_model_version_tag(self._name, version.version, key, value)

    def verdict(self, version: ModelVersion) -> Verdict | None:
        """The latest verdict recorded on a version, None where the gate has not decided yet."""
        return artifacts.verdict(self._calls, version)

    # ------------------------------------------------------------ the champion

    def promote(self, version: ModelVersion, reason: str) -> None:
        """See `Registry.promote`. Repeating it changes nothing; the history is on the registered model."""
        self._record(self._calls.get_model_version(self._name, version.version))
        line = self._finished_line()
        if line.line and line.line[-1] == version.version:
            return
        self._move(line.promoting(version.version, datetime.now(UTC), reason))

    def rollback(self, reason: str) -> ModelVersion:
        """See `Registry.rollback`. A call repeated after being killed finishes its move and makes no second one."""
        before = self._succession()
        line = self._finished_line()
        if before.pending is None or before.pending.kind != "rollback":
            there = {version.version for version in self.versions()}
            line = line.rolling_back(there, datetime.now(UTC), reason)
            self._move(line)
        return self._record(self._calls.get_model_version(self._name, line.line[-1]))

    def history(self) -> Succession:
        """Who was champion before whom, when and why."""
        return self._succession()

    def _succession(self) -> Succession:
        try:
            tags = self._calls.get_registered_model(self._name).tags
        except Missing:
            return Succession()
        return Succession.loads(tags.get(_HISTORY))

    def _finished_line(self) -> Succession:
        """The succession with a move that was interrupted brought to its end, in line with the alias."""
        line = self._succession()
        if line.pending is not None:
            self._point(line)
            return line.settled()
        alias = self._alias(CHAMPION)
        return line.agreed(None if alias is None else str(alias.version), datetime.now(UTC))

    def _move(self, line: Succession) -> None:
        self._calls.set_registered_model_tag(self._name, _HISTORY, line.dumps())
        self._point(line)

    def _point(self, line: Succession) -> None:
        assert line.pending is not None
        move = line.pending
        told = f"{move.kind} at {move.at:%Y-%m-%d %H:%M} UTC: {move.reason}"
        self._calls.set_model_version_tag(self._name, move.to, "hardloop.champion_since", told)
        self._calls.set_registered_model_alias(self._name, CHAMPION, move.to)
        self._calls.set_registered_model_tag(self._name, _HISTORY, line.settled().dumps())

    # ------------------------------------------------------------ fetching

    def evaluation(self, version: ModelVersion) -> Evaluation:
        """See `Registry.evaluation`. Raises BadModel where the file was altered."""
        return artifacts.evaluation(self._calls, version)

    def fetch(self, version: ModelVersion, folder: Path) -> Path:
        """See `Registry.fetch`: the folder appears whole or not at all; one that holds this model already is kept.

        Raises Conflict where the folder holds something that is not a model.
        """
        return artifacts.fetch(self._calls, version, folder)

    # ------------------------------------------------------------ where a person looks

    def run_url(self, version: ModelVersion) -> str:
        """The page of the version's run in MLflow's own interface."""
        experiment = self._calls.get_run(version.run_id).info.experiment_id
        return f"{self.settings.tracking_url}/#/experiments/{experiment}/runs/{version.run_id}"

    def version_url(self, version: ModelVersion) -> str:
        """The page of the version, with its verdict, in MLflow's own interface. Asks nobody."""
        return f"{self.settings.tracking_url}/#/models/{self._name}/versions/{version.version}"

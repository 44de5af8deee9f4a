"""Label Studio as the annotation tool: two-step import, one prediction per task and version, a cursor for changes.

Found by running and kept in `docs/label-studio.md`: importing tasks together with predictions loses them silently
while others annotate; imports are not idempotent; nothing that comes back has been validated.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from annotation.answers import read_task
from annotation.label_schema import LabelSchema, task_data
from annotation.label_studio_api import TASKS_CHUNK, LabelStudioApi, LabelStudioSettings, one_of
from annotation.label_studio_predictions import attach
from annotation.label_studio_project import WebhookStatus, ensure_storage, ensure_webhook, find_or_create, use_given
from hardloop.core.errors import BadInput, Unavailable
from hardloop.core.ids import loop_name
from hardloop.core.ports import Progress
from hardloop.core.records import Changes, Prediction, TaskDraft, TaskState

IMPORT_CHUNK = 500  # about a second of a two-core server's work per request
_SAMPLES_CHUNK = 100  # sample ids in one query string: under the 8 KB that proxies accept, quotes escaped
# A row's `updated_at` is taken before its transaction commits, so a row may appear behind the newest one already seen,
# by at most the time a write waits for a busy database.
OVERLAP = timedelta(seconds=30)
_CURSOR_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only one Label Studio's filters read


class LabelStudioTool:
    """The project of one loop in a Label Studio. Safe to share between threads.

    Raises while being made: BadSettings (token, project that does not fit, bucket out of reach), Missing (no such
    project), Unavailable (no server).
    """

    def __init__(
        self,
        settings: LabelStudioSettings,
        labels: Sequence[str],
        loop: str,
        *,
        progress: Progress | None = None,
        settle_s: float = 10.0,
    ) -> None:
        """settle_s: how long to look for what an unanswered import has made before giving up."""
        loop_name(loop)
        self._api = LabelStudioApi(settings)
        self._progress: Progress = progress or _silent
        self._settle_s = settle_s
        self._names: dict[int, str] = {}
        if settings.project_id is None:
            self._project_id, self._schema = find_or_create(self._api, loop, labels)
        else:
            self._project_id = settings.project_id
            self._schema = use_given(self._api, settings.project_id, labels)
        if settings.storage is not None:
            ensure_storage(self._api, self._project_id, settings.storage)

    @property
    def project_id(self) -> int:
        """See `AnnotationTool.project_id`."""
        return self._project_id

    @property
    def schema(self) -> LabelSchema:
        """The labels and the names of the project's tags."""
        return self._schema

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def task_url(self, task_id: int) -> str:
        """See `AnnotationTool.task_url`."""
        return f"{self._api.url}/projects/{self._project_id}/data?task={task_id}"

    def ensure_webhook(self, url: str, secret: str) -> WebhookStatus:
        """Have Label Studio call `url` with the secret when answers move. Repeating it changes nothing."""
        return ensure_webhook(self._api, self._project_id, url, secret)

    # ------------------------------------------------------------ sending

    def send(self, drafts: Sequence[TaskDraft]) -> Mapping[str, int]:
        """See `AnnotationTool.send`.

        Tasks are looked up by their sample id first, so a call repeated after a crash or a lost answer adds only what
        is missing. Raises BadInput for doubled samples or labels the loop does not have, before anything is sent.
        """
        self._check(drafts)
        known = self._find([draft.sample_id for draft in drafts])
        missing = sorted((d for d in drafts if d.sample_id not in known), key=lambda d: (d.rank, d.sample_id))
        for done, chunk in _chunks(missing, IMPORT_CHUNK):
            self._progress("send tasks", done, len(missing))
            known |= self._import(chunk)
        self._progress("send tasks", len(missing), len(missing))
        self.predict({known[d.sample_id]: d.prediction for d in drafts if d.prediction is not None})
        return {draft.sample_id: known[draft.sample_id] for draft in drafts}

    def _check(self, drafts: Sequence[TaskDraft]) -> None:
        doubled = [sample for sample, count in Counter(draft.sample_id for draft in drafts).items() if count > 1]
        if doubled:
            raise BadInput(f"{len(doubled)} samples are given twice in one send, the first is {doubled[0]!r}")
        for draft in drafts:
            if not draft.sample_id or draft.rank < 1:
                raise BadInput(
                    f"draft {draft.sample_id!r} of rank {draft.rank}: a sample id and a rank from 1 are needed"
                )
        self._check_predictions(draft.prediction for draft in drafts if draft.prediction is not None)

    def _check_predictions(self, predictions: Iterable[Prediction]) -> None:
        for prediction in predictions:
            if prediction.label not in self._schema.labels:
                raise BadInput(
                    f"prediction {prediction.label!r} of model version {prediction.model_version!r} is not one of the "
                    f"loop's {len(self._schema.labels)} labels"
                )
            if not (math.isfinite(prediction.score) and 0 <= prediction.score <= 1) or not prediction.model_version:
                raise BadInput(f"prediction {prediction}: a score in [0, 1] and a model version are needed")

    def _import(self, chunk: Sequence[TaskDraft]) -> dict[str, int]:
        """Make the chunk's tasks and read back which are there. Raises Unavailable where some are not."""
        wanted = [draft.sample_id for draft in chunk]
        failure: Unavailable | None = None
        try:
            self._api.import_tasks(self._project_id, [self._data(draft) for draft in chunk])
        except Unavailable as error:
            failure = error  # it may have arrived all the same; importing again could double it, looking cannot
        deadline = time.monotonic() + self._settle_s
        while len(found := self._find(wanted)) < len(wanted):
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"of {len(wanted)} tasks imported, {len(found)} are in project {self._project_id}; nothing is "
                    f"lost: send again later, what is there is kept ({failure or 'the server gave no error'})"
                )
            time.sleep(0.5)
        return found

    def _data(self, draft: TaskDraft) -> dict[str, Any]:
        prediction = draft.prediction
        fields = {
            "sample_id": draft.sample_id,
            "rank": draft.rank,
            "reason": draft.reason,
            "selection_id": draft.selection_id,
            "predicted": prediction.label if prediction else None,
            "score": prediction.score if prediction else None,
        }
        return task_data(self._schema, fields, draft.image_uri)

    def _find(self, sample_ids: Sequence[str]) -> dict[str, int]:
        """Task ids of those samples that have one. Of tasks doubled by a race, the untouched later ones are removed."""
        found: dict[str, list[int]] = {}
        for _, chunk in _chunks(list(sample_ids), _SAMPLES_CHUNK):
            for task in self._api.tasks(self._project_id, [one_of("data.sample_id", chunk)], "id,data"):
                found.setdefault(str(task["data"]["sample_id"]), []).append(int(task["id"]))
        doubled = {sample: ids for sample, ids in found.items() if len(ids) > 1}
        return {sample: min(ids) for sample, ids in found.items()} | self._settled(doubled)

    def _settled(self, doubled: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """One task per doubled sample: the first that somebody has worked on, else the oldest. The rest, where nobody
        has touched them, are deleted."""
        if not doubled:
            return {}
        ids = [task_id for tasks in doubled.values() for task_id in tasks]
        touched = {
            int(task["id"])
            for _, chunk in _chunks(ids, TASKS_CHUNK)
            for task in self._api.tasks(
                self._project_id,
                [one_of("id", chunk)],
                "id,annotations,drafts",
                answers=True,
                page_size=TASKS_CHUNK + 1,
            )
            if task.get("annotations") or task.get("drafts")
        }
        kept = {sample: min(tasks, key=lambda t: (t not in touched, t)) for sample, tasks in doubled.items()}
        spare = [task_id for task_id in ids if task_id not in touched and task_id not in kept.values()]
        if spare:
            self._api.act(self._project_id, "delete_tasks", spare)
        return kept

    # ------------------------------------------------------------ predictions

    def predict(self, predictions: Mapping[int, Prediction]) -> None:
        """See `AnnotationTool.predict`. Tasks that were deleted meanwhile are passed over."""
        if not predictions:
            return
        self._check_predictions(predictions.values())
        for done, chunk in _chunks(sorted(predictions), IMPORT_CHUNK):
            self._progress("send predictions", done, len(predictions))
            attach(self._api, self._project_id, self._schema, {task_id: predictions[task_id] for task_id in chunk})
        self._progress("send predictions", len(predictions), len(predictions))
        # Label Studio shows as pre-annotations those of the project's version only, and imports do not set it.
        version = Counter(p.model_version for p in predictions.values()).most_common(1)[0][0]
        if self._api.project(self._project_id).get("model_version") != version:
            self._api.update_project(self._project_id, model_version=version)

    # ------------------------------------------------------------ reading

    def changes(self, cursor: str) -> Changes:
        """See `AnnotationTool.changes`. Tasks of the project that are not ours are left out.

        The cursor is the newest `updated_at` there was before reading, by the server's own clock; reading starts
        OVERLAP before it. Raises BadInput for a cursor that did not come from here.
        """
        since = _since(cursor)
        newest = self._api.newest_update(self._project_id)
        moved = {
            "filter": "filter:tasks:updated_at",
            "operator": "greater_or_equal",
            "type": "Datetime",
            "value": since,
        }
        fields = "id,data,updated_at,annotations,result,was_cancelled,completed_by,lead_time"
        raw = list(self._api.tasks(self._project_id, [moved] if since else [], fields, answers=True))
        names = self._names_of(raw)
        states = [state for task in raw if (state := read_task(task, self._schema, names)) is not None]
        return Changes(tasks=tuple(sorted(states, key=_when)), cursor=max(cursor, _normal(newest)))

    def task_ids(self) -> frozenset[int]:
        """See `AnnotationTool.task_ids`."""
        return frozenset(int(task["id"]) for task in self._api.tasks(self._project_id, (), "id", page_size=2000))

    def _names_of(self, tasks: Sequence[Mapping[str, Any]]) -> Mapping[int, str]:
        answers = (answer for task in tasks for answer in task.get("annotations") or [] if isinstance(answer, dict))
        # Who comes as an object brings a name along; anything else that is no number has none.
        seen = {who for answer in answers if isinstance(who := answer.get("completed_by"), int)}
        if not seen <= self._names.keys():
            self._names |= self._api.users()
        return self._names


def _silent(_what: str, _done: int, _total: int) -> None:
    return None


def _chunks(items: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """(how many came before, the next `size` items), to the end."""
    for start in range(0, len(items), size):
        yield start, items[start : start + size]


def _when(state: TaskState) -> tuple[datetime, int]:
    return state.updated_at, state.task_id


def _since(cursor: str) -> str:
    if not cursor:
        return ""
    try:
        return (datetime.strptime(cursor, _CURSOR_FORMAT) - OVERLAP).strftime(_CURSOR_FORMAT)
    except (ValueError, OverflowError):
        raise BadInput(f"cursor {cursor[:40]!r} is not one of Label Studio's: start again with an empty one") from None


def _normal(moment: str) -> str:
    """A moment as the server writes it, in the form of our cursors, which sort as text."""
    if not moment:
        return ""
    return datetime.fromisoformat(moment).astimezone(UTC).strftime(_CURSOR_FORMAT)

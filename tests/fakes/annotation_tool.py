"""An annotation tool in memory: the port, and what people would do in it."""

import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hardloop.core.errors import BadInput, Missing, Unavailable
from hardloop.core.records import Annotation, Changes, Prediction, RefusedAnnotation, TaskDraft, TaskState

_SAMPLE_ID = re.compile(r"[0-9a-f]{32}")
_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class _Task:
    draft: TaskDraft
    moved: int
    answers: dict[int, Annotation | RefusedAnnotation] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)


class InMemoryAnnotationTool:
    """The `AnnotationTool` port, with methods for tests to answer, change, delete and skip. Safe between threads.

    Time is a counter that moves with every change; the cursor is that counter, and reading repeats the change it
    names, as the real tool does (overlap).
    """

    def __init__(self, labels: Sequence[str], project_id: int = 1, url: str = "http://annotation.invalid") -> None:
        self.labels = tuple(labels)
        self._project_id, self._url = project_id, url
        self._tasks: dict[int, _Task] = {}
        self._clock = itertools.count(1)
        self._now = 0
        self._task_numbers, self._answer_numbers = itertools.count(1), itertools.count(1)
        self._lock = threading.RLock()
        self._breaks_after: int | None = None

    # ------------------------------------------------------------ the port

    @property
    def project_id(self) -> int:
        return self._project_id

    def send(self, drafts: Sequence[TaskDraft]) -> Mapping[str, int]:
        ids = [draft.sample_id for draft in drafts]
        if len(set(ids)) != len(ids):
            raise BadInput("samples are given twice in one send")
        if any(not draft.sample_id or draft.rank < 1 for draft in drafts):
            raise BadInput("a draft needs a sample id and a rank from 1")
        self._check(draft.prediction for draft in drafts)
        with self._lock:
            known = {task.draft.sample_id: number for number, task in self._tasks.items()}
            for draft in sorted(drafts, key=lambda d: (d.rank, d.sample_id)):
                if draft.sample_id not in known:
                    if self._breaks_after == 0:
                        self._breaks_after = None
                        raise Unavailable("the annotation tool went away in the middle of a send")
                    if self._breaks_after is not None:
                        self._breaks_after -= 1
                    known[draft.sample_id] = number = next(self._task_numbers)
                    self._tasks[number] = _Task(draft, self._tick())
            self.predict({known[d.sample_id]: d.prediction for d in drafts if d.prediction})
            return {sample: known[sample] for sample in ids}

    def predict(self, predictions: Mapping[int, Prediction]) -> None:
        self._check(predictions.values())
        with self._lock:
            for number, prediction in predictions.items():
                if number in self._tasks:
                    self._tasks[number].predictions = [prediction]

    def changes(self, cursor: str) -> Changes:
        if cursor and not cursor.isdigit():
            raise BadInput(f"cursor {cursor!r} is not one of this tool's")
        with self._lock:
            ours = [(n, t) for n, t in self._tasks.items() if _SAMPLE_ID.fullmatch(t.draft.sample_id)]
            moved = [(n, t) for n, t in ours if t.moved >= int(cursor or 0)]
            states = [self._state(n, t) for n, t in sorted(moved, key=lambda item: (item[1].moved, item[0]))]
            return Changes(tuple(states), str(max(int(cursor or 0), self._now)))

    def task_ids(self) -> frozenset[int]:
        with self._lock:
            return frozenset(self._tasks)

    def task_url(self, task_id: int) -> str:
        return f"{self._url}/projects/{self._project_id}/data?task={task_id}"

    # ------------------------------------------------------------ what people do

    def next_task(self) -> int | None:
        """The task an annotator gets next: the oldest without an answer."""
        with self._lock:
            return min((n for n, task in self._tasks.items() if not task.answers), default=None)

    def answer(self, task_id: int, label: str, annotator: str = "anna@example.org") -> int:
        """Answer a task with any text, valid or not; the answer's number."""
        return self._put(task_id, next(self._answer_numbers), label, annotator)

    def skip(self, task_id: int, annotator: str = "anna@example.org") -> int:
        """Skip a task; the answer's number."""
        return self._put(task_id, next(self._answer_numbers), None, annotator)

    def change(self, annotation_id: int, label: str) -> None:
        """Change an answer."""
        task_id, old = self._answer(annotation_id)
        self._put(task_id, annotation_id, label, old.annotator)

    def delete(self, annotation_id: int) -> None:
        """Delete an answer."""
        with self._lock:
            task_id, _ = self._answer(annotation_id)
            del self._tasks[task_id].answers[annotation_id]
            self._tasks[task_id].moved = self._tick()

    def delete_task(self, task_id: int) -> None:
        """Delete a task with its answers."""
        with self._lock:
            del self._tasks[task_id]

    # ------------------------------------------------------------ what tests look at and break

    def predictions(self, task_id: int) -> list[Prediction]:
        """What is attached to a task."""
        return list(self._tasks[task_id].predictions)

    def draft(self, task_id: int) -> TaskDraft:
        """What the task was made from."""
        return self._tasks[task_id].draft

    def break_after(self, tasks: int) -> None:
        """Let the next send make this many tasks, attach nothing and raise Unavailable."""
        self._breaks_after = tasks

    # ------------------------------------------------------------

    def _check(self, predictions: object) -> None:
        for prediction in predictions:  # type: ignore[attr-defined]
            if prediction is not None and prediction.label not in self.labels:
                raise BadInput(f"prediction {prediction.label!r} is not one of the loop's labels")
            if prediction is not None and not (0 <= prediction.score <= 1 and prediction.model_version):
                raise BadInput(f"prediction {prediction}: a score in [0, 1] and a model version are needed")

    def _tick(self) -> int:
        self._now = next(self._clock)
        return self._now

    def _answer(self, annotation_id: int) -> tuple[int, Annotation | RefusedAnnotation]:
        for number, task in self._tasks.items():
            if annotation_id in task.answers:
                return number, task.answers[annotation_id]
        raise Missing(f"no answer {annotation_id}")

    def _put(self, task_id: int, number: int, label: str | None, annotator: str) -> int:
        with self._lock:
            if task_id not in self._tasks:
                raise Missing(f"no task {task_id}")
            task = self._tasks[task_id]
            task.moved = self._tick()
            at = _START + timedelta(seconds=task.moved)
            answer = Annotation(number, task_id, annotator, label, label is None, at)
            if label is not None and label not in self.labels:
                reason = f"label {label!r} is not one of the loop's {len(self.labels)} labels"
                task.answers[number] = RefusedAnnotation(number, task_id, annotator, at, reason)
            elif label is not None and task.predictions:
                same = label == task.predictions[0].label
                task.answers[number] = replace(answer, origin="prediction" if same else "prediction-changed")
            else:
                task.answers[number] = answer
            return number

    def _state(self, number: int, task: _Task) -> TaskState:
        answers = task.answers.values()
        return TaskState(
            task_id=number,
            sample_id=task.draft.sample_id,
            updated_at=_START + timedelta(seconds=task.moved),
            annotations=tuple(a for a in answers if isinstance(a, Annotation)),
            refused=tuple(a for a in answers if isinstance(a, RefusedAnnotation)),
        )

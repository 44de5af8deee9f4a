"""One prediction per task and model version, though Label Studio neither replaces nor refuses doubled ones."""

import math
from collections.abc import Mapping
from typing import Any

from annotation.label_schema import LabelSchema
from annotation.label_studio_api import TASKS_CHUNK, LabelStudioApi, one_of
from hardloop.core.errors import BadInput, Unavailable
from hardloop.core.records import JsonValue, Prediction

_REPAIRS = 4


def attach(api: LabelStudioApi, project_id: int, schema: LabelSchema, predictions: Mapping[int, Prediction]) -> None:
    """Have each task hold exactly the prediction given; tasks that are not there any more are passed over.

    Reads what is there, clears what is wrong, adds what is missing, and reads again until it is right: a request
    whose answer got lost is thereby neither repeated blindly nor forgotten. Raises Unavailable where that fails.
    """
    failure: Exception | None = None
    for _ in range(_REPAIRS):
        wrong, lacking = _amiss(api, project_id, schema, predictions)
        if not lacking:
            return
        if wrong:
            api.act(project_id, "delete_tasks_predictions", wrong)
        try:
            api.import_predictions(project_id, [_row(schema, task, predictions[task]) for task in lacking])
        except (Unavailable, BadInput) as error:  # BadInput: a task of the batch was deleted a moment ago
            failure = error
    _, lacking = _amiss(api, project_id, schema, predictions)
    if lacking:
        raise Unavailable(
            f"{len(lacking)} of {len(predictions)} predictions could not be attached in project {project_id} "
            f"({failure or 'the server gave no error'}): try again later"
        )


def _amiss(
    api: LabelStudioApi, project_id: int, schema: LabelSchema, predictions: Mapping[int, Prediction]
) -> tuple[list[int], list[int]]:
    """Tasks that hold something else than the prediction given, and tasks that do not hold just that one."""
    wrong, lacking = [], []
    numbers = sorted(predictions)
    for start in range(0, len(numbers), TASKS_CHUNK):
        chosen = one_of("id", numbers[start : start + TASKS_CHUNK])
        fields = "id,predictions,result,score,model_version"
        for task in api.tasks(project_id, [chosen], fields, answers=True, page_size=TASKS_CHUNK + 1):
            task_id, there = int(task["id"]), task.get("predictions") or []
            if len(there) == 1 and _same(there[0], schema, predictions[task_id]):
                continue
            lacking.append(task_id)
            if there:
                wrong.append(task_id)
    return wrong, lacking


def _same(there: JsonValue, schema: LabelSchema, prediction: Prediction) -> bool:
    if not isinstance(there, dict):
        return False
    score = there.get("score")
    return (
        there.get("model_version") == prediction.model_version
        and _choice(there.get("result")) == _choice(schema.result(prediction.label))
        and isinstance(score, int | float)
        and math.isclose(score, prediction.score, rel_tol=1e-6, abs_tol=1e-9)
    )


def _choice(result: Any) -> tuple[Any, ...]:
    """What matters of a result: Label Studio adds an id and an origin of its own."""
    parts = result if isinstance(result, list) else [result]
    return tuple((p.get("from_name"), p.get("to_name"), p.get("value")) if isinstance(p, dict) else p for p in parts)


def _row(schema: LabelSchema, task_id: int, prediction: Prediction) -> dict[str, Any]:
    return {
        "task": task_id,
        "result": schema.result(prediction.label),
        "score": float(prediction.score),
        "model_version": prediction.model_version,
    }

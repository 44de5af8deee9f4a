"""What Label Studio hands back, read as untrusted input: every answer becomes an Annotation or a refusal with a reason.

Label Studio itself checks neither labels nor names nor types (`docs/label-studio.md`), so everything is checked here.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from annotation.label_schema import MAX_LABEL_CHARS, LabelSchema
from hardloop.core.errors import BadAnswer
from hardloop.core.records import Annotation, JsonValue, RefusedAnnotation, TaskState

ORIGINS = ("manual", "prediction", "prediction-changed")
MAX_LEAD_TIME_S = 30 * 86_400.0
_SAMPLE_ID = re.compile(r"[0-9a-f]{32}")  # as `hardloop.core.ids.sample_id` makes them
_MAX_ID = 2**63 - 1  # ids are BIGINT in the tool and in our database


def read_task(raw: JsonValue, schema: LabelSchema, names: Mapping[int, str]) -> TaskState | None:
    """A task with all its answers; None where the task is not one of ours (no sample id) or not a task at all.

    names: e-mail addresses by user number, for `annotator`; an unknown user is "user 7".
    """
    if not isinstance(raw, dict) or not isinstance(data := raw.get("data"), dict):
        return None
    task_id, sample_id, updated_at = _identity(raw.get("id")), data.get("sample_id"), _moment(raw.get("updated_at"))
    if task_id is None or updated_at is None:
        return None
    if not isinstance(sample_id, str) or not _SAMPLE_ID.fullmatch(sample_id):
        return None
    answers = raw.get("annotations")
    read = [
        read_annotation(answer, task_id, updated_at, schema, names)
        for answer in (answers if isinstance(answers, list) else [])
    ]
    return TaskState(
        task_id=task_id,
        sample_id=sample_id,
        updated_at=updated_at,
        annotations=tuple(answer for answer in read if isinstance(answer, Annotation)),
        refused=tuple(answer for answer in read if isinstance(answer, RefusedAnnotation)),
    )


def read_annotation(
    raw: JsonValue, task_id: int, fallback_time: datetime, schema: LabelSchema, names: Mapping[int, str]
) -> Annotation | RefusedAnnotation:
    """One answer. Never raises: what does not fit the schema comes back as a refusal that says why.

    fallback_time: stands in where the answer has no readable time of its own. An answer without a number is refused
    under number 0.
    """
    fields = raw if isinstance(raw, dict) else {}
    annotation_id = _identity(fields.get("id"))
    annotator = _annotator(fields.get("completed_by"), names)
    updated_at = _moment(fields.get("updated_at")) or fallback_time
    try:
        if annotation_id is None:
            raise BadAnswer(f"the answer has no number: {_clip(raw)}")
        skipped = _skipped(fields.get("was_cancelled"))
        label, origin = (None, "manual") if skipped else _choice(fields.get("result"), schema)
    except BadAnswer as error:
        return RefusedAnnotation(annotation_id or 0, task_id, annotator, updated_at, str(error))
    return Annotation(
        annotation_id=annotation_id,
        task_id=task_id,
        annotator=annotator,
        label=label,
        skipped=skipped,
        updated_at=updated_at,
        origin=origin,
        lead_time_s=_lead_time(fields.get("lead_time")),
    )


def _skipped(value: JsonValue) -> bool:
    # A skip arrives with whatever the annotator (or the pre-annotation) had filled in: the result counts for nothing.
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadAnswer(f"was_cancelled is {_clip(value)}: expected true or false")


def _choice(result: JsonValue, schema: LabelSchema) -> tuple[str, str]:
    """The chosen label and its origin. Raises BadAnswer."""
    if not isinstance(result, list):
        raise BadAnswer(f"the result is {_clip(result)}: expected a list with one choice")
    if not result:
        raise BadAnswer("the answer is empty: no label was chosen, and it was not skipped")
    if len(result) > 1:
        raise BadAnswer(f"the result has {len(result)} parts: expected one choice")
    part = result[0]
    if not isinstance(part, dict):
        raise BadAnswer(f"the result holds {_clip(part)}: expected a choice")
    if part.get("from_name") != schema.control or part.get("type") != "choices":
        raise BadAnswer(
            f"the result is of {_clip(part.get('type'))} {_clip(part.get('from_name'))}: "
            f"expected 'choices' {schema.control!r}"
        )
    value = part.get("value")
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise BadAnswer("the answer is empty: no label was chosen, and it was not skipped")
    if len(choices) > 1:
        raise BadAnswer(f"{len(choices)} labels were chosen ({_clip(choices)}): expected one")
    label = choices[0]
    if not isinstance(label, str) or label not in schema.labels:
        raise BadAnswer(f"label {_clip(label)} is not one of the loop's {len(schema.labels)} labels")
    origin = part.get("origin")
    return label, origin if isinstance(origin, str) and origin in ORIGINS else "manual"


def _annotator(value: JsonValue, names: Mapping[int, str]) -> str:
    if isinstance(value, dict):
        email = value.get("email")
        if isinstance(email, str) and 0 < len(email) <= 254 and email.isprintable():
            return email
        value = value.get("id")
    number = _identity(value)
    return "unknown" if number is None else names.get(number, f"user {number}")


def _identity(value: JsonValue) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_ID:
        return None
    return value


def _moment(value: JsonValue) -> datetime | None:
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _lead_time(value: JsonValue) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MAX_LEAD_TIME_S and math.isfinite(value) else None


def _clip(value: JsonValue) -> str:
    """The value as a person may see it, however large or deep it is."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= MAX_LABEL_CHARS else text[:MAX_LABEL_CHARS] + "…"

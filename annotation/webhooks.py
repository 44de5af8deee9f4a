"""The webhook door's words: a call from Label Studio is a hint to look, never data.

Label Studio sends each hint once, waits a second and never repeats it (`docs/label-studio.md`); what happened is
read through the cursor of `AnnotationTool.changes`.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from hardloop.core.errors import BadInput, Forbidden
from hardloop.core.records import JsonValue

SECRET_HEADER = "X-Hardloop-Secret"  # noqa: S105 (the header's name)
MAX_BODY_BYTES = 4 * 1024 * 1024  # a bulk action sends the whole project and up to thousands of ids
ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")
_MAX_IDS = 10_000


@dataclass(frozen=True, slots=True)
class Hint:
    """That something may have moved.

    relevant: whether the action is one of ACTIONS; otherwise nothing follows from the hint.
    project_id is None and the ids are empty where the message does not name them, or not in the form expected.
    """

    action: str
    relevant: bool
    project_id: int | None = None
    task_ids: tuple[int, ...] = ()
    annotation_ids: tuple[int, ...] = ()


def parse_hint(headers: Mapping[str, str], body: bytes, secret: str) -> Hint:
    """The hint in a webhook call. Header names match in any case.

    Raises Forbidden without the right secret (compared in constant time, before the body is looked at), BadInput for
    a body that is too large or not a JSON object.
    """
    given = next((value for name, value in headers.items() if name.lower() == SECRET_HEADER.lower()), "")
    if not secret or not hmac.compare_digest(given.encode(errors="replace"), secret.encode()):
        raise Forbidden(f"webhook without the right {SECRET_HEADER}: it was not registered by this service")
    if len(body) > MAX_BODY_BYTES:
        raise BadInput(f"webhook of {len(body):,} bytes: at most {MAX_BODY_BYTES:,} are accepted")
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput(f"webhook of {len(body):,} bytes is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("action"), str):
        raise BadInput("webhook is not a JSON object with an 'action'")
    action = message["action"][:64]
    return Hint(
        action=action,
        relevant=action in ACTIONS,
        project_id=next(iter(_ids(message.get("project"))), None),
        task_ids=_ids(message.get("task")) or _ids(message.get("tasks")),
        annotation_ids=_ids(message.get("annotation")) or _ids(message.get("annotations")),
    )


def _ids(value: JsonValue) -> tuple[int, ...]:
    """Numbers out of 7, {"id": 7} or a list of those; anything else is skipped."""
    found = []
    for item in (value if isinstance(value, list) else [value])[:_MAX_IDS]:
        number = item.get("id") if isinstance(item, dict) else item
        if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**63:
            found.append(number)
    return tuple(found)

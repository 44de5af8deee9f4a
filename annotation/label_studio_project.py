"""The project of a loop in Label Studio: found by its mark or made once, with its image storage and its webhook."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from annotation.label_schema import LabelSchema, fitting_schema, label_config
from annotation.label_studio_api import ImageStorage, LabelStudioApi
from annotation.webhooks import ACTIONS, SECRET_HEADER
from hardloop.core.errors import BadInput, BadSettings, Unavailable

STORAGE_TITLE = "Hardloop images"
_MAX_TITLE_CHARS = 50  # Label Studio's limit
_SETTLE_S = 1.0
_DOUBLE_TITLE = "Hardloop: empty double, to be deleted"


@dataclass(frozen=True, slots=True)
class WebhookStatus:
    """Whether Label Studio will call us. Where it refused, answers still arrive by polling; `detail` says why."""

    registered: bool
    detail: str


def mark(loop: str) -> str:
    """What a loop's project carries in its description, so that every process and every restart finds it again."""
    return f"[hardloop loop={loop}]"


def find_or_create(api: LabelStudioApi, loop: str, labels: Sequence[str]) -> tuple[int, LabelSchema]:
    """The loop's own project: the oldest one with its mark, else a new one.

    Label Studio has no unique names, so two processes may create at the same moment, and on a busy SQLite the server
    itself may create twice: who created looks again after a moment, all settle on the lowest number, and the others,
    still empty, lose the mark. They are not deleted: two deletions at once switch off Label Studio's own signals until
    it is restarted (`docs/label-studio.md`).
    """
    marked = _marked(api, loop)
    if not marked:
        own = _create(api, loop, LabelSchema(tuple(labels)))
        time.sleep(_SETTLE_S)
        marked = _marked(api, loop) or [own]
        for double in marked[1:]:
            if next(api.tasks(double, (), "id", page_size=1), None) is None:
                api.update_project(double, title=_DOUBLE_TITLE, description="Made twice by a race; empty. Delete it.")
    project_id = marked[0]
    return project_id, _kept_fitting(api, project_id, labels)


def use_given(api: LabelStudioApi, project_id: int, labels: Sequence[str]) -> LabelSchema:
    """The schema of a project given by number, which we never change. Raises BadSettings where it does not fit."""
    try:
        return fitting_schema(str(api.project(project_id).get("label_config", "")), labels)
    except BadSettings as error:
        raise BadSettings(
            f"project {project_id} at {api.url}: {error}. Correct it in Label Studio, or leave project_id out to have "
            "a project made"
        ) from None


def ensure_storage(api: LabelStudioApi, project_id: int, storage: ImageStorage) -> int:
    """One S3 storage of ours on the project, never synced: it only lets Label Studio read `s3://` images.

    Presigning is off: images stream through Label Studio, need no CORS and never expire. Returns its number.
    """
    fields = {
        "title": STORAGE_TITLE,
        "bucket": storage.bucket,
        "prefix": "",
        "s3endpoint": storage.url,
        "region_name": storage.region,
        "aws_access_key_id": storage.access_key,
        "aws_secret_access_key": storage.secret_key.get_secret_value(),
        "presign": False,
        "use_blob_urls": True,
    }
    ours = sorted(s.id for s in api.storages(project_id) if s.title == STORAGE_TITLE and s.bucket == storage.bucket)
    try:
        # An existing one is written again: keys may have changed, and Label Studio does not tell which it has.
        return api.put_storage(project_id, ours[0] if ours else None, fields)
    except (BadInput, Unavailable) as error:
        # Label Studio checks the bucket while saving, and answers a bucket it cannot reach with 400 or 500.
        raise BadSettings(
            f"Label Studio at {api.url} could not be given bucket {storage.bucket!r} at {storage.url}: check that it "
            f"can reach that address from where it runs, and the keys ({error})"
        ) from None


def ensure_webhook(api: LabelStudioApi, project_id: int, url: str, secret: str) -> WebhookStatus:
    """One webhook of ours on the project, told apart by its secret's header. Never raises for a refusal of the URL."""
    fields: dict[str, Any] = {
        "url": url,
        "headers": {SECRET_HEADER: secret},
        "is_active": True,
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": list(ACTIONS),
    }
    ours = sorted(hook.id for hook in api.webhooks(project_id) if SECRET_HEADER in (hook.headers or {}))
    try:
        api.put_webhook(project_id, ours[0] if ours else None, fields)
    except (BadInput, BadSettings) as error:
        # Its protection against forged requests refuses loopback and private addresses, which is its right.
        return WebhookStatus(False, f"refused: polling instead ({error})")
    for double in ours[1:]:
        api.delete_webhook(double)
    return WebhookStatus(True, f"registered: {url}")


def _marked(api: LabelStudioApi, loop: str) -> list[int]:
    return sorted(number for number, description in api.projects() if mark(loop) in description)


def _create(api: LabelStudioApi, loop: str, schema: LabelSchema) -> int:
    return api.create_project(
        title=f"Hardloop {loop}"[:_MAX_TITLE_CHARS],
        description=f"Hardest images of loop {loop}, sent by Hardloop. Keep this mark: {mark(loop)}",
        label_config=label_config(schema),
        # Lowest number first. Tasks are made in rank order, so rank 1 comes first, with or without predictions.
        # "Uncertainty sampling" would order by score instead, and at random once there are two annotators.
        sampling="Sequential sampling",
        show_skip_button=True,
        enable_empty_annotation=False,
        maximum_annotations=1,
        show_collab_predictions=True,
    )


def _kept_fitting(api: LabelStudioApi, project_id: int, labels: Sequence[str]) -> LabelSchema:
    """The schema of our own project; what people made of its interface stays while it fits the loop's labels."""
    config = str(api.project(project_id).get("label_config", ""))
    try:
        return fitting_schema(config, labels)
    except BadSettings as misfit:
        schema = LabelSchema(tuple(labels))
        try:
            api.update_project(project_id, label_config=label_config(schema))
        except BadInput as error:
            raise BadSettings(
                f"project {project_id} at {api.url} does not fit ({misfit}), and Label Studio does not let it be "
                f"changed ({re.sub(r'^.*?refused', 'refused', str(error))}): finish or delete the answers it holds"
            ) from None
        return schema

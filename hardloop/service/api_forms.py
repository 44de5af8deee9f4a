"""What the HTTP doors take and give: bodies, answers, and the parts of a form, each checked as it is read."""

import json
from typing import Annotated, Any

from fastapi import Header, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from hardloop.core import images
from hardloop.core.errors import BadInput
from hardloop.service.intake import GivenImage
from hardloop.service.jobs import Job

MAX_FILES = 1000  # images in one request
MAX_NUMBER = 2**31  # no row is numbered higher; databases refuse what does not fit their integers
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # PostgreSQL takes no NUL
Key = Annotated[str | None, Header(max_length=100, pattern=r"^[A-Za-z0-9._-]+$")]  # it becomes part of an address


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobRequest(_Body):
    """Steps of one lane to run in order. budget: for mine. manual: train without waiting for the trigger.

    deleted: for collect, tasks that are all gone at once, or in another project, were deleted: take back their answers.
    """

    steps: Annotated[list[str], Field(min_length=1, max_length=6)]
    budget: Annotated[int | None, Field(ge=1, le=100_000)] = None
    manual: bool = False
    deleted: bool = False


class JobAnswer(BaseModel):
    """A job: waiting, running, done or failed. result: by step, once done."""

    job_id: str
    state: str
    result: dict[str, Any] | None
    error: str | None

    @classmethod
    def of(cls, job: Job) -> "JobAnswer":
        """The answer about a job."""
        result = None if job.result is None else dict(job.result)
        return cls(job_id=job.job_id, state=job.state, result=result, error=job.error)


class Choice(_Body):
    """Queue items to decide about; null means all that wait. actor: who decides, for the history."""

    sample_ids: list[str] | None = None
    actor: Annotated[Text, Field(min_length=1, max_length=200)] = "reviewer"


class Counted(BaseModel):
    """How many things changed."""

    changed: int


class ImagesTaken(BaseModel):
    """What came of uploaded images. refused ones are listed with their reasons under /refusals."""

    new: int
    known: int
    refused: int


class Withdrawal(_Body):
    """Samples to take out of the loop for good, and why."""

    sample_ids: Annotated[list[Text], Field(min_length=1, max_length=10_000)]
    reason: Annotated[Text, Field(min_length=1, max_length=2000)]
    actor: Annotated[Text, Field(min_length=1, max_length=200)] = "operator"


class RollbackRequest(_Body):
    """Why the version before the champion should serve again."""

    reason: Annotated[Text, Field(min_length=1, max_length=2000)]
    actor: Annotated[Text, Field(min_length=1, max_length=200)] = "operator"


def per_file(name: str, text: str, files: list[UploadFile]) -> list[str | None]:
    """A form field that is a JSON list with a text or null for every file; null for the whole list is all null."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"{name} is not JSON: expected a list with one text or null per file") from None
    if given is None:
        return [None] * len(files)
    if (
        not isinstance(given, list)
        or len(given) != len(files)
        or not all(item is None or (isinstance(item, str) and item) for item in given)
    ):
        raise BadInput(f"{name} must be a list of {len(files)}, one text that is not empty or null per file")
    return given


def given_images(
    files: list[UploadFile], role: str, source: str, labels: list[str | None], groups: list[str | None]
) -> list[GivenImage]:
    """The files of an upload as images of a role. Raises BadInput where the labels do not go with the role."""
    if role != "pool" and None in labels:
        raise BadInput(f"role {role!r} needs a label for every file")
    if role == "pool" and any(label is not None for label in labels):
        raise BadInput("labelled images are sent with role 'seed' (to train on) or 'legacy' (to measure on)")
    # One byte more than accepted is enough for the check to refuse an image by its size.
    return [
        GivenImage(file.filename or f"file {number}", file.file.read(images.MAX_BYTES + 1), source, role, label, group)
        for number, (file, label, group) in enumerate(zip(files, labels, groups, strict=True))
    ]

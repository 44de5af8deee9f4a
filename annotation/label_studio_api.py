"""The one door to label-studio-sdk: the calls we make, with our errors, our retries and our authentication.

Tasks are read with httpx as plain JSON, because the SDK turns untrusted answers into half-filled models; everything
else goes through the SDK. Both share one httpx client, whose authentication survives the expiry of access tokens.
"""

import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from hardloop.core.errors import BadInput, BadSettings, HardloopError, Missing, Unavailable
from hardloop.core.records import JsonValue

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PERSONAL_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a JWT; legacy tokens are 40 hexadecimal digits
_ACCESS_S = 120.0  # access tokens live 300 s; leaving early costs a call, leaving late costs a refused one
_ATTEMPTS = 4
_BUSY = (408, 429, 500, 502, 503, 504)

TASKS_CHUNK = 500  # task numbers in one query string: under the 8 KB that proxies accept

Filter = Mapping[str, Any]
T = TypeVar("T")


def one_of(field: str, values: Sequence[str] | Sequence[int]) -> Filter:
    """The filter for tasks whose field ("id", "data.sample_id") is one of the values."""
    return {"filter": f"filter:tasks:{field}", "operator": "in_list", "type": "List", "value": list(values)}


class ImageStorage(BaseModel):
    """The bucket as Label Studio reaches it, which may be another address than ours (e.g. inside a container)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    bucket: str
    access_key: str
    secret_key: SecretStr
    region: str = "us-east-1"


class LabelStudioSettings(BaseModel):
    """How to reach a Label Studio and what to use there.

    api_key: a legacy token or a personal access token. project_id: a project to use as it is; None makes one per loop.
    storage: the bucket that holds the images of `s3://` tasks; None where the project can reach them already.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    api_key: SecretStr
    project_id: Annotated[int, Field(gt=0)] | None = None
    storage: ImageStorage | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ValueError("expected http(s)://host[:port][/path]")
        return url.rstrip("/")


class TokenAuth(httpx.Auth):
    """Both kinds of Label Studio tokens. A personal access token is exchanged for short-lived access tokens.

    The SDK's own exchange has no margin before the expiry and does not try again on a 401; this one does both.
    """

    requires_response_body = True

    def __init__(self, url: str, api_key: str) -> None:
        self._url, self._key = url, api_key
        self._personal = _PERSONAL_TOKEN.fullmatch(api_key) is not None
        self._access, self._until = "", 0.0

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign one request; with a personal token, once more with a fresh access token after a 401."""
        if not self._personal:
            request.headers["Authorization"] = f"Token {self._key}"
            yield request
            return
        for last in (False, True):
            if last or time.monotonic() >= self._until:
                response = yield httpx.Request("POST", f"{self._url}/api/token/refresh/", json={"refresh": self._key})
                self._take(response)
            request.headers["Authorization"] = f"Bearer {self._access}"
            response = yield request
            if response.status_code != 401:
                return

    def _take(self, response: httpx.Response) -> None:
        if response.status_code in (400, 401, 403, 404):
            raise BadSettings(
                f"Label Studio at {self._url} refused the personal access token ({response.status_code}): "
                "it has expired or was revoked; make a new one under Account & Settings"
            )
        try:
            self._access, self._until = str(response.json()["access"]), time.monotonic() + _ACCESS_S
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                f"Label Studio at {self._url} answered {response.status_code} to the exchange of a personal token"
            ) from None


class LabelStudioApi:
    """The calls Hardloop makes. Safe to share between threads.

    Calls that may be repeated without a second effect are: on a busy or absent server up to _ATTEMPTS times. Imports
    are not, and are never repeated here: who sends reads back what became of them.
    """

    def __init__(self, settings: LabelStudioSettings) -> None:
        # Imported here: the SDK takes two seconds, which a command that does not talk to Label Studio should not pay.
        from label_studio_sdk import LabelStudio
        from label_studio_sdk.core.api_error import ApiError

        self.url = settings.url
        self._refusal: type[Exception] = ApiError
        self._http = httpx.Client(
            auth=TokenAuth(settings.url, settings.api_key.get_secret_value()),
            timeout=httpx.Timeout(settings.timeout_s, connect=5.0),
            limits=httpx.Limits(max_connections=16),
            trust_env=urlsplit(settings.url).hostname not in _LOOPBACK,
        )
        # The key given to the SDK is never sent: TokenAuth signs every request of the shared client.
        self._sdk: Any = LabelStudio(base_url=settings.url, api_key="unused", httpx_client=self._http, max_retries=0)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ------------------------------------------------------------ projects

    def projects(self) -> list[tuple[int, str]]:
        """Number and description of every project the account sees."""
        return self._repeat(
            "list projects",
            lambda: [
                (p.id, p.description or "") for p in self._sdk.projects.list(include="id,description", page_size=200)
            ],
        )

    def project(self, project_id: int) -> Mapping[str, JsonValue]:
        """A project's settings. Raises Missing."""
        address = f"{self.url}/api/projects/{project_id}/"
        answer = self._repeat(f"project {project_id}", lambda: self._json(self._http.get(address)))
        if not isinstance(answer, dict):
            raise Unavailable(f"{address} answered something that is not a project: is it Label Studio?")
        return answer

    def create_project(self, **fields: Any) -> int:
        """A new project's number. Not repeated."""
        return int(self._once("create a project", lambda: self._sdk.projects.create(**fields).id))

    def update_project(self, project_id: int, **fields: Any) -> None:
        """Change settings of a project."""
        self._repeat(f"change project {project_id}", lambda: self._sdk.projects.update(project_id, **fields))

    # ------------------------------------------------------------ storages and webhooks

    def storages(self, project_id: int) -> list[Any]:
        """The project's S3 import storages, as the SDK gives them (id, title, bucket, s3endpoint, ...)."""
        return self._repeat("list storages", lambda: list(self._sdk.import_storage.s3.list(project=project_id)))

    def put_storage(self, project_id: int, storage_id: int | None, fields: Mapping[str, Any]) -> int:
        """Create an S3 import storage, or bring an existing one up to date. Returns its number."""
        door = self._sdk.import_storage.s3
        if storage_id is None:
            return int(self._once("create a storage", lambda: door.create(project=project_id, **fields).id))
        self._repeat("change a storage", lambda: door.update(storage_id, project=project_id, **fields))
        return storage_id

    def webhooks(self, project_id: int) -> list[Any]:
        """The project's webhooks, as the SDK gives them (id, url, headers, is_active, ...)."""
        return self._repeat("list webhooks", lambda: list(self._sdk.webhooks.list(project=str(project_id))))

    def put_webhook(self, project_id: int, webhook_id: int | None, fields: Mapping[str, Any]) -> int:
        """Create a webhook, or bring an existing one up to date. Returns its number."""
        if webhook_id is None:
            create = self._sdk.webhooks.create
            return int(self._once("create a webhook", lambda: create(project=project_id, **fields).id))
        self._repeat("change a webhook", lambda: self._sdk.webhooks.update(webhook_id, **fields))
        return webhook_id

    def delete_webhook(self, webhook_id: int) -> None:
        """Delete a webhook."""
        self._once("delete a webhook", lambda: self._sdk.webhooks.delete(webhook_id))

    # ------------------------------------------------------------ tasks

    def import_tasks(self, project_id: int, data: Sequence[Mapping[str, Any]]) -> list[int]:
        """Import bare tasks; their numbers in the order given. Not repeated: on Unavailable look what arrived."""
        tasks = [{"data": dict(fields)} for fields in data]
        door = self._sdk.projects.import_tasks
        answer = self._once(f"import {len(tasks)} tasks", lambda: door(project_id, request=tasks, return_task_ids=True))
        return [task_id for task_id in getattr(answer, "task_ids", None) or [] if isinstance(task_id, int)]

    def import_predictions(self, project_id: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Import predictions; how many the server says it made. Not repeated."""
        door = self._sdk.projects.import_predictions
        answer = self._once(f"import {len(rows)} predictions", lambda: door(project_id, request=list(rows)))
        return int(answer.created or 0)

    def act(self, project_id: int, action: str, task_ids: Sequence[int]) -> None:
        """A Data Manager action, such as "delete_tasks", on the tasks given."""
        body = {"project": project_id, "selectedItems": {"all": False, "included": list(task_ids)}}
        self._repeat(
            action,
            lambda: self._json(
                self._http.post(f"{self.url}/api/dm/actions", params={"id": action, "project": project_id}, json=body)
            ),
        )

    def newest_update(self, project_id: int) -> str:
        """The latest `updated_at` of the project's tasks as the server writes it, "" without tasks."""
        page, _ = self._page(project_id, (), ("-tasks:updated_at",), "id,updated_at", "task_only", 1)
        return str(page[0].get("updated_at", "")) if page else ""

    def tasks(
        self, project_id: int, filters: Sequence[Filter], include: str, *, answers: bool = False, page_size: int = 500
    ) -> Iterator[dict[str, Any]]:
        """Tasks that pass every filter, by ascending number, as raw JSON with the fields in `include`.

        Pages by number ("after the last one seen"), not by offset: a task deleted meanwhile cannot hide another one.
        A server may grant fewer tasks a page than asked for (its TASK_API_PAGE_SIZE_MAX), so only its own count of what
        is left, or an empty page, says that the end is reached.
        `include` also picks the fields of nested answers and predictions, which come with `answers` only.
        """
        last = 0
        while True:
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last}
            page, left = self._page(
                project_id,
                [*filters, after],
                ("tasks:id",),
                include,
                "all" if answers else "task_only",
                page_size,
            )
            yield from page
            if not page or len(page) == left:
                return
            last = int(page[-1]["id"])

    def _page(
        self,
        project_id: int,
        filters: Sequence[Filter],
        ordering: Sequence[str],
        include: str,
        fields: str,
        page_size: int,
    ) -> tuple[list[dict[str, Any]], JsonValue]:
        """The first page of the tasks that pass, and the server's count of all of them (None where it gives none)."""
        query = {"filters": {"conjunction": "and", "items": list(filters)}, "ordering": list(ordering)}
        params: dict[str, str | int] = {
            "project": project_id,
            "page": 1,
            "page_size": page_size,
            "fields": fields,
            "include": include,
            "resolve_uri": "false",
            "query": json.dumps(query, separators=(",", ":")),
        }
        answer = self._repeat(
            f"tasks of project {project_id}",
            lambda: self._json(self._http.get(f"{self.url}/api/tasks/", params=params)),
        )
        tasks = answer.get("tasks") if isinstance(answer, dict) else None
        if not isinstance(tasks, list) or not all(isinstance(t, dict) and isinstance(t.get("id"), int) for t in tasks):
            raise Unavailable(f"Label Studio at {self.url} answered a list of tasks that cannot be read: is it 1.23?")
        return tasks, answer.get("total")  # type: ignore[return-value,union-attr]  # checked item by item above

    def users(self) -> dict[int, str]:
        """E-mail addresses by user number, of the account's organization."""
        return self._repeat("list users", lambda: {u.id: u.email for u in self._sdk.users.list() if u.email})

    # ------------------------------------------------------------ errors

    def _json(self, response: httpx.Response) -> JsonValue:
        if response.status_code >= 300:
            raise self._translate(response.status_code, response.text, response.request.url.path)
        try:
            value: JsonValue = response.json()
        except ValueError:
            raise Unavailable(f"{self.url} answered something that is not JSON: is it Label Studio?") from None
        return value

    def _repeat(self, what: str, call: Callable[[], T]) -> T:
        for attempt in range(_ATTEMPTS - 1):
            try:
                return self._once(what, call)
            except Unavailable:
                time.sleep(0.3 * 2**attempt)
        return self._once(what, call)

    def _once(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except HardloopError:
            raise
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}) to: {what}. Is it running?"
            ) from error
        except self._refusal as error:
            status = getattr(error, "status_code", None) or 500
            raise self._translate(status, str(getattr(error, "body", "")), what) from error

    def _translate(self, status: int, body: str, what: str) -> HardloopError:
        detail = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))[:300].strip()
        if status == 401:
            return BadSettings(
                f"Label Studio at {self.url} refused the token ({detail}): check it, and whether this kind of token "
                "is switched on under Organization > API tokens"
            )
        if status == 403:
            return BadSettings(f"Label Studio at {self.url} does not allow this account to: {what} ({detail})")
        if status == 404:
            return Missing(f"Label Studio at {self.url} has no such thing ({what}): it was deleted, or never there")
        if status in _BUSY or status > 500:
            return Unavailable(f"Label Studio at {self.url} answered {status} to: {what} ({detail}). Try again later")
        return BadInput(f"Label Studio at {self.url} refused ({status}) to: {what} ({detail})")

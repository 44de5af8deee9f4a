"""Annotators: making them accounts of their own, and answering tasks as one of them through the API.

The open version of Label Studio has no call that makes a user with a password: a person signs up through the
organization's invitation link, and so does `create_annotator`, form and all. Every member sees every project.
"""

import html
import re
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from annotation.label_schema import LabelSchema
from annotation.label_studio_api import TokenAuth
from hardloop.core.errors import BadInput, BadSettings, Missing, Unavailable

_SPACE = uuid.UUID("8f4f1f0e-54c6-4a55-9d52-6a1f6f2a7f11")  # ours: makes an answer's id from what it answers


@dataclass(frozen=True, slots=True)
class AnnotatorAccount:
    """A member of the organization, with a token of its own."""

    user_id: int
    email: str
    api_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task as the server hands it to an annotator: `data` is what we sent, its image to be fetched from `image`."""

    task_id: int
    data: dict[str, Any]


def create_annotator(url: str, admin_api_key: str, email: str, password: str) -> AnnotatorAccount:
    """The annotator's account, made through the organization's invitation unless it is there already.

    admin_api_key: any member's token of either kind. Where the server has no legacy tokens, an existing account's
    personal access token is revoked and replaced, because the server shows it only once.
    Raises BadSettings where the password of an existing account is another one, or the token may not invite; BadInput
    for an address or password the server does not take.
    """
    url = url.rstrip("/")
    with _client(url) as session:
        try:
            if not _log_in(session, email, password):
                _sign_up(session, _invitation(url, admin_api_key), email, password)
            user = session.get("/api/current-user/whoami").raise_for_status().json()
            return AnnotatorAccount(int(user["id"]), str(user["email"]), _api_key(session))
        except httpx.HTTPStatusError as error:
            raise BadSettings(
                f"Label Studio at {url} answered {error.response.status_code} to {error.request.url.path} while making "
                f"an account for {email}"
            ) from None
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Label Studio at {url} does not answer ({type(error).__name__}): is it running?"
            ) from None


class LabelStudioAnnotator:
    """One annotator at work in one project, through the API: take the next task, answer it, correct it, skip it."""

    def __init__(self, url: str, api_key: str, project_id: int, schema: LabelSchema, timeout_s: float = 30.0) -> None:
        self._url, self._key, self._project_id, self._schema = url.rstrip("/"), api_key, project_id, schema
        self._http = _client(self._url, TokenAuth(self._url, api_key), timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def next_task(self) -> OpenTask | None:
        """The task the server wants answered next, which it keeps for this annotator; None when there is none left."""
        response = self._call("GET", f"/api/projects/{self._project_id}/next/")
        if response is None:
            return None
        body = response.json()
        return OpenTask(int(body["id"]), dict(body["data"]))

    def answer(self, task_id: int, label: str, *, lead_time_s: float | None = None) -> int | None:
        """Answer a task; the annotation's number, None where this very answer was there already.

        The answer carries an id made from annotator, task and label, so repeating a call whose reply got lost cannot
        answer twice.
        """
        return self._create(task_id, label, {"result": self._schema.result(label), "lead_time": lead_time_s})

    def skip(self, task_id: int) -> int | None:
        """Skip a task; the annotation's number, None where it was skipped already."""
        return self._create(task_id, "", {"result": [], "was_cancelled": True})

    def change(self, annotation_id: int, label: str) -> None:
        """Change an answer. Raises Missing where it was deleted."""
        self._found("PATCH", f"/api/annotations/{annotation_id}/", {"result": self._schema.result(label)})

    def delete(self, annotation_id: int) -> None:
        """Delete an answer. Raises Missing where it was deleted before."""
        self._found("DELETE", f"/api/annotations/{annotation_id}/")

    def image(self, task_id: int) -> bytes:
        """The task's image as Label Studio serves it to the annotator's browser."""
        task = self._found("GET", f"/api/tasks/{task_id}/").json()
        return self._found("GET", str(task["data"][self._schema.image_field])).content

    def _create(self, task_id: int, label: str, body: dict[str, Any]) -> int | None:
        unique = uuid.uuid5(_SPACE, f"{self._url} {self._key} {task_id} {label}")
        response = self._call("POST", f"/api/tasks/{task_id}/annotations/", {**body, "unique_id": str(unique)})
        if response is None:
            raise Missing(f"task {task_id} is not in Label Studio at {self._url}: it was deleted")
        return None if response.status_code == 409 else int(response.json()["id"])

    def _found(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        response = self._call(method, path, body)
        if response is None:
            raise Missing(f"{path} is not in Label Studio at {self._url}: it was deleted, or never there")
        return response

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response | None:
        """The response, 409 included; None for a 404."""
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Label Studio at {self._url} does not answer ({type(error).__name__}): is it running?"
            ) from None
        if response.status_code == 404:
            return None
        if response.status_code in (401, 403):
            raise BadSettings(f"Label Studio at {self._url} refused the annotator's token ({response.status_code})")
        if response.status_code == 429 or response.status_code >= 500:
            raise Unavailable(f"Label Studio at {self._url} answered {response.status_code} to {method} {path}")
        if response.status_code >= 400 and response.status_code != 409:
            raise BadInput(f"Label Studio at {self._url} refused {method} {path}: {response.text[:200]}")
        return response


def _client(url: str, auth: httpx.Auth | None = None, timeout_s: float = 30.0) -> httpx.Client:
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return httpx.Client(base_url=url, auth=auth, timeout=httpx.Timeout(timeout_s, connect=5.0), trust_env=not local)


def _invitation(url: str, admin_api_key: str) -> str:
    with _client(url, TokenAuth(url, admin_api_key)) as admin:
        return str(admin.get("/api/invite").raise_for_status().json()["token"])


def _log_in(session: httpx.Client, email: str, password: str) -> bool:
    form = {"email": email, "password": password, "persist_session": "on"}
    return _submit(session, "/user/login/", {}, form).status_code == 302


def _sign_up(session: httpx.Client, invitation: str, email: str, password: str) -> None:
    response = _submit(session, "/user/signup/", {"token": invitation}, {"email": email, "password": password})
    if response.status_code == 302:
        return
    lists = re.findall(r'<ul class="field_errors">(.*?)</ul>', response.text, re.DOTALL)
    said = [html.unescape(text) for text in re.findall(r"<li>\s*(.*?)\s*</li>", " ".join(lists), re.DOTALL)]
    if any("already exists" in text for text in said):
        raise BadSettings(f"{email} has an account at {session.base_url}, but not with this password")
    raise BadInput(f"{session.base_url} did not make an account for {email}: {'; '.join(said) or response.status_code}")


def _submit(session: httpx.Client, path: str, params: dict[str, str], form: dict[str, str]) -> httpx.Response:
    """Send one of the server's own forms the way a browser does, with the token that guards against forged ones."""
    page = session.get(path, params=params).raise_for_status()
    token = re.search(r'name="csrfmiddlewaretoken"\s+value="([^"]+)"', page.text)
    return session.post(
        path,
        params=params,
        data={**form, "csrfmiddlewaretoken": token.group(1) if token else ""},
        headers={"Referer": str(page.url)},
    )


def _api_key(session: httpx.Client) -> str:
    """A legacy token where the server allows those, else a personal access token, in place of the one there was."""
    url = str(session.base_url).rstrip("/")
    legacy = session.get("/api/current-user/token")
    if legacy.status_code == 200:  # where legacy tokens are off, new users have none and this is a 500
        key = str(legacy.json()["token"])
        with _client(url, TokenAuth(url, key)) as alone:  # without the session's cookies, which let anything in
            if alone.get("/api/current-user/whoami").status_code == 200:
                return key
    guard = {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": url}
    response = session.post("/api/token/", headers=guard)
    if response.status_code == 409:
        # There is one already, and a personal token is shown in full only when it is made: replace it.
        for old in session.get("/api/token/").raise_for_status().json():
            session.post("/api/token/blacklist/", json={"refresh": old["token"]}, headers=guard).raise_for_status()
        response = session.post("/api/token/", headers=guard)
    return str(response.raise_for_status().json()["token"])

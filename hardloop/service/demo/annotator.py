"""The stand-in annotator: who alone knows the true labels, and answers in Label Studio as a user of its own.

It does what a person's browser does, over the same HTTP API and with nothing of ours in between, so that everything
on our side of the annotation has to be right for its answers to come back.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from hardloop.core import ids
from hardloop.core.errors import BadData, BadSettings, Missing, Unavailable
from hardloop.core.ports import Progress

CONTROL, OBJECT = "label", "image"  # the names in our label configuration: <Choices name="label" toName="image">
_THREADS = 4  # Label Studio on SQLite answers 20 annotations/s with 8; more only queue up behind its write lock
_PAGE = 500
_ATTEMPTS = 6
_LONGEST_WAIT_S = 30.0
_RETRIED = {429, 500, 502, 503, 504}

# total_annotations counts answers, cancelled_annotations skips: a task with neither is waiting for someone.
_UNANSWERED = json.dumps(
    {
        "filters": {
            "conjunction": "and",
            "items": [
                {"filter": f"filter:tasks:{column}", "operator": "equal", "type": "Number", "value": 0}
                for column in ("total_annotations", "cancelled_annotations")
            ],
        }
    }
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the stand-in says of one sample: a label, or None for a skip; `wrong` is true for a wrong label."""

    label: str | None
    wrong: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """What one sitting did. answered counts labels given now, `wrong` those of them that are not true.

    skipped: tasks passed over. repeated: answers that Label Studio already had from us, from a call whose reply was
    lost; they are in neither of the others. gone: tasks deleted between listing and answering.
    """

    answered: int = 0
    wrong: int = 0
    skipped: int = 0
    repeated: int = 0
    gone: int = 0


class StandInAnnotator:
    """Answers every waiting task of a project. Safe to call again at any time: nothing is answered twice.

    truth: the true label by sample id. error: the share of samples answered wrongly, in [0, 1]; skip_share: the share
    skipped. Which samples those are follows from `seed` and the sample alone, whatever the order of the tasks.
    Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        labels: Sequence[str],
        truth: Mapping[str, str],
        error: float,
        seed: int,
        skip_share: float = 0.0,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for name, share in (("error", error), ("skip_share", skip_share)):
            if not 0.0 <= share <= 1.0:
                raise BadSettings(f"the stand-in annotator's {name} is {share}: expected a share between 0 and 1")
        if len(set(labels)) < 2:
            raise BadSettings(f"the stand-in annotator was given {len(set(labels))} label(s): at least two are needed")
        self._labels = tuple(dict.fromkeys(labels))
        self._truth = truth
        self._error, self._skip_share, self._seed = error, skip_share, str(seed)
        self._url = url
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Token {token}"},
            timeout=httpx.Timeout(30.0, connect=5.0),
            limits=httpx.Limits(max_connections=_THREADS),
            transport=transport,
            trust_env=False,  # a proxy of the machine's has no business between two programs on it
        )
        self._account: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def decide(self, sample_id: str) -> Decision:
        """The answer to one sample, always the same. Raises BadData for a sample whose true label is unknown."""
        if sample_id not in self._truth:
            raise BadData(
                f"the stand-in annotator does not know sample {sample_id!r}: the task is not from this demo's data; "
                "answer or delete it in Label Studio"
            )
        true = self._truth[sample_id]
        if ids.uniform("stand-in skip", self._seed, sample_id) < self._skip_share:
            return Decision(None, wrong=False)
        if ids.uniform("stand-in error", self._seed, sample_id) >= self._error:
            return Decision(true, wrong=False)
        others = [label for label in self._labels if label != true]
        return Decision(others[int(ids.uniform("stand-in which", self._seed, sample_id) * len(others))], wrong=True)

    def answer(self, project_id: int, progress: Progress | None = None) -> Answers:
        """Answer all tasks of a project that nobody has answered or skipped yet.

        Raises BadSettings where the token is refused, Missing where
        there is no such project, BadData for a task that is not ours, Unavailable where Label Studio stays silent.
        """
        if self._account is None:
            self._account = str(self._call("GET", "/api/current-user/whoami").json()["email"])
        tasks = list(self._waiting(project_id))
        outcomes: list[str] = []
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="stand-in") as pool:
            try:
                for outcome in pool.map(self._answer_one, tasks):
                    outcomes.append(outcome)
                    if progress is not None:
                        progress("answering tasks", len(outcomes), len(tasks))
            except BaseException:
                # Also on Ctrl-C: what has not started must not start, or leaving would wait for all of it.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        count = outcomes.count
        return Answers(
            answered=count("true") + count("wrong"),
            wrong=count("wrong"),
            skipped=count("skipped"),
            repeated=count("repeated"),
            gone=count("gone"),
        )

    def _waiting(self, project_id: int) -> Iterator[dict[str, Any]]:
        """All unanswered tasks, listed before the first is answered: answering would shift the pages."""
        page, seen = 1, 0
        while True:
            query: dict[str, str | int] = {
                "project": project_id,
                "page": page,
                "page_size": _PAGE,
                "fields": "all",
                "include": "id,data,predictions",
                "query": _UNANSWERED,
            }
            reply = self._call("GET", "/api/tasks", params=query)
            if reply.status_code == 404:
                raise Missing(f"no project {project_id} in Label Studio at {self._url} that the stand-in may see")
            body = reply.json()
            yield from body["tasks"]
            seen += len(body["tasks"])
            if not body["tasks"] or seen >= int(body["total"]):
                return
            page += 1

    def _answer_one(self, task: Mapping[str, Any]) -> str:
        started = time.monotonic()
        sample = str(task["data"].get("sample_id", ""))
        decision = self.decide(sample)
        body: dict[str, Any] = {
            # The same account answers the same task once, however often the call is repeated.
            "unique_id": str(
                uuid.uuid5(uuid.NAMESPACE_URL, f"hardloop-stand-in/{self._account}/{task['id']}/{sample}")
            ),
            "result": [],
            "was_cancelled": decision.label is None,
        }
        if decision.label is not None:
            suggested, parent = _suggestion(task)
            result = {
                "id": body["unique_id"][:10],
                "from_name": CONTROL,
                "to_name": OBJECT,
                "type": "choices",
                "value": {"choices": [decision.label]},
                "origin": _origin(suggested, decision.label),
            }
            body |= {"result": [result], "parent_prediction": parent}
        body["lead_time"] = round(time.monotonic() - started, 6)
        reply = self._call("POST", f"/api/tasks/{task['id']}/annotations/", json=body)
        if reply.status_code == 404:
            return "gone"
        if reply.status_code == 409:
            return "repeated"
        if decision.label is None:
            return "skipped"
        return "wrong" if decision.wrong else "true"

    def _call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """One request, repeated while the server is busy or away: every call here is safe to repeat.

        Returns the response where it is a success, 404 or 409. Raises BadSettings, BadData or Unavailable otherwise.
        """
        trouble = ""
        for attempt in range(_ATTEMPTS):
            wait = 0.2 * 2**attempt
            try:
                reply = self._http.request(method, path, **kwargs)
            except httpx.TransportError as error:
                trouble = type(error).__name__
            else:
                if reply.status_code not in _RETRIED:
                    return self._checked(reply, f"{method} {path}")
                trouble = f"status {reply.status_code}"
                wait = max(wait, _retry_after_s(reply))
            if attempt + 1 < _ATTEMPTS:
                self._sleep(min(wait, _LONGEST_WAIT_S))
        raise Unavailable(
            f"Label Studio at {self._url} did not accept {method} {path} in {_ATTEMPTS} attempts ({trouble}): "
            "is it running, and is its log free of errors?"
        )

    def _checked(self, reply: httpx.Response, what: str) -> httpx.Response:
        if reply.status_code in (401, 403):
            raise BadSettings(
                f"Label Studio at {self._url} refused the stand-in annotator's token ({reply.status_code} to {what}): "
                "give the legacy access token of a user who is a member of the organization"
            )
        if reply.is_success or reply.status_code in (404, 409):
            return reply
        raise BadData(f"Label Studio at {self._url} answered {reply.status_code} to {what}: {reply.text[:200]}")


def sign_up(
    url: str, admin_token: str, email: str, password: str, *, transport: httpx.BaseTransport | None = None
) -> str:
    """Make a user through the organization's invitation link, as a person would, and return its access token.

    A user who is there already is logged in instead, so the call may be repeated. Raises BadSettings where the admin's
    token or the password is refused, Unavailable where Label Studio does not answer.
    """
    with httpx.Client(base_url=url, timeout=30.0, transport=transport, trust_env=False) as http:
        try:
            invited = http.get("/api/invite", headers={"Authorization": f"Token {admin_token}"})
            if invited.status_code in (401, 403):
                raise BadSettings(f"Label Studio at {url} refused the admin's token ({invited.status_code})")
            invitation = {"token": str(invited.raise_for_status().json()["token"])}
            who = {"email": email, "password": password}
            entered = _submit(http, "/user/signup/", who, invitation) or _submit(http, "/user/login/", who, {})
            if not entered:
                raise BadSettings(f"Label Studio at {url} let {email} neither sign up nor log in: check the password")
            return str(http.get("/api/current-user/token").raise_for_status().json()["token"])
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise Unavailable(
                f"Label Studio at {url} did not let {email} sign up ({type(error).__name__}: {error}): is it running?"
            ) from None


def _submit(http: httpx.Client, path: str, form: Mapping[str, str], query: Mapping[str, str]) -> bool:
    """Fill in one of Label Studio's two forms; whether it let us in, which it says with a redirect."""
    page = http.get(path, params=dict(query)).raise_for_status()
    secret = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    if secret is None:
        raise ValueError(f"the page {path} holds no form")
    data = {**form, "csrfmiddlewaretoken": secret[1], "allow_newsletters": "false"}
    return http.post(path, params=dict(query), data=data, headers={"Referer": str(page.url)}).is_redirect


def _suggestion(task: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The label the newest pre-annotation proposes, and its id: what a person sees prefilled in the editor."""
    predictions = [p for p in task.get("predictions") or () if isinstance(p, dict)]
    if not predictions:
        return None, None
    newest = max(predictions, key=lambda p: int(p["id"]))
    for part in newest.get("result") or ():
        if part.get("from_name") == CONTROL:
            return next(iter(part.get("value", {}).get("choices", ())), None), int(newest["id"])
    return None, None


def _origin(suggested: str | None, label: str) -> str:
    """How the editor marks a result: accepted, changed, or made from nothing."""
    if suggested is None:
        return "manual"
    return "prediction" if suggested == label else "prediction-changed"


def _retry_after_s(reply: httpx.Response) -> float:
    """Seconds the server asks us to wait; 0 where it does not say so in seconds."""
    text = reply.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0

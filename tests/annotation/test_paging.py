"""Reading every task whatever the server grants a page: it has a cap of its own (TASK_API_PAGE_SIZE_MAX)."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from annotation.label_studio import LabelStudioTool
from annotation.label_studio_api import LabelStudioApi, LabelStudioSettings
from hardloop.core.records import TaskDraft
from hardloop.service.embedded import LabelStudioEndpoint
from tests.annotation.wire import proxy


@dataclass
class CappedServer:
    """Label Studio's list of tasks, at most `cap` a page. counted: whether it says how many there are in all."""

    tasks: list[int]
    cap: int
    counted: bool = True
    asked: list[int] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        query = parse_qs(urlsplit(str(request.url)).query)
        after = json.loads(query["query"][0])["filters"]["items"][-1]["value"]
        self.asked.append(after)
        left = [number for number in self.tasks if number > after]
        page = left[: min(self.cap, int(query["page_size"][0]))]
        answer: dict[str, object] = {"tasks": [{"id": number} for number in page]}
        return httpx.Response(200, json={**answer, "total": len(left)} if self.counted else answer)


@pytest.fixture(scope="module")
def api() -> Iterator[LabelStudioApi]:
    api = LabelStudioApi(LabelStudioSettings(url="http://127.0.0.1:9", api_key=SecretStr("x" * 40)))
    yield api
    api.close()


def read(api: LabelStudioApi, server: CappedServer, page_size: int) -> list[int]:
    api._http._transport = httpx.MockTransport(server)
    api._http._mounts = {}
    return [task["id"] for task in api.tasks(1, (), "id", page_size=page_size)]


def test_a_server_that_caps_its_pages_hides_no_task(api: LabelStudioApi) -> None:
    server = CappedServer(list(range(1, 251)), cap=100)
    assert read(api, server, 2000) == list(range(1, 251))
    assert server.asked == [0, 100, 200], "the server's own count says that the third page is the last"


def test_a_list_that_fits_one_page_costs_one_request(api: LabelStudioApi) -> None:
    server = CappedServer([3, 7], cap=100)
    assert read(api, server, 2) == [3, 7]
    assert server.asked == [0]


def test_without_a_count_the_list_ends_at_an_empty_page(api: LabelStudioApi) -> None:
    server = CappedServer([3, 7, 9], cap=2, counted=False)
    assert read(api, server, 500) == [3, 7, 9]
    assert server.asked == [0, 7, 9]


@settings(max_examples=60, deadline=None)
@given(
    tasks=st.sets(st.integers(1, 10_000), max_size=60),
    cap=st.integers(1, 70),
    page_size=st.integers(1, 70),
    counted=st.booleans(),
)
def test_every_task_is_read_once_in_order_whatever_the_cap(
    api: LabelStudioApi, tasks: set[int], cap: int, page_size: int, counted: bool
) -> None:
    assert read(api, CappedServer(sorted(tasks), cap, counted), page_size) == sorted(tasks)


@pytest.mark.real
def test_the_real_server_counts_what_is_left_behind_the_last_number(label_studio: LabelStudioEndpoint) -> None:
    settings = LabelStudioSettings(url=label_studio.url, api_key=SecretStr(label_studio.token))
    tool = LabelStudioTool(settings, ("cat", "dog"), f"paging-{secrets.token_hex(4)}")
    drafts = [TaskDraft(f"{n:032x}", f"s3://bucket/{n}.png", n + 1, "why", "selection-1") for n in range(5)]
    sent = tool.send(drafts)
    with proxy(label_studio.url) as seen:
        through = LabelStudioApi(settings.model_copy(update={"url": seen.url}))
        found = [task["id"] for task in through.tasks(tool.project_id, (), "id", page_size=2)]
        through.close()
    assert found == sorted(sent.values())
    assert seen.count("GET", "/api/tasks") == 3, "2, 2 and 1: no fourth request for an empty page"
    tool.close()

"""A person's steps in a real Chromium, on the real Label Studio, end as a label in a dataset version."""

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annotation.label_studio_accounts import create_annotator
from hardloop.core.blobs import S3Settings
from hardloop.core.records import Split
from hardloop.service.embedded import LabelStudioEndpoint
from tests.fakes.loops import LABELS
from tests.service.harness import World
from training import datasets

pytestmark = [pytest.mark.real, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORD = "quite-long-pass-78"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def page(chromium: str, tmp_path: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=os.environ.get("HARDLOOP_CHROMIUM", chromium),
            args=FLAGS,
            env={**os.environ, "HOME": str(tmp_path)},
            viewport={"width": 1440, "height": 900},
        )
        context.set_default_timeout(60_000)
        yield context.pages[0] if context.pages else context.new_page()
        context.close()


@pytest.fixture
def world(tmp_path: Path, s3: S3Settings, label_studio: LabelStudioEndpoint, mlflow_url: str) -> Iterator[World]:
    world = World.make(f"person-{secrets.token_hex(3)}", tmp_path, s3, label_studio, mlflow_url)
    yield world
    world.kill()


def log_in(page: Any, url: str, email: str) -> None:
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", email)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(re.compile(r"^(?!.*/user/login)"))


def label_by_key(page: Any, address: str, label: str) -> int:
    """Open a task, wait until its image shows, press the label's key and submit; the annotation's number."""
    page.goto(address)
    page.get_by_test_id("bottombar-submit-button").wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('img')].some(i => i.naturalWidth === 12 && i.naturalHeight === 12)"
    )
    ticked = page.locator(f'.lsf-choice__item input[name="{label}"]:checked')
    for _ in range(20):  # keys pressed before the page listens are lost, as a person would see
        page.keyboard.press(str(LABELS.index(label) + 1))
        page.wait_for_timeout(500)
        if ticked.count():
            break
    assert page.locator(".lsf-choice__item input:checked").count() == 1
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as posted:
        page.get_by_test_id("bottombar-submit-button").click()
    assert posted.value.status == 201
    return int(posted.value.json()["id"])


def test_what_a_person_labels_in_the_browser_stands_in_the_next_dataset_version(
    page: Any, world: World, label_studio: LabelStudioEndpoint
) -> None:
    world.start()
    world.upload("seed", 2)
    world.capture(12, "model-before-hardloop")
    world.until(lambda: sum(world.get("")["samples"].values()) == 6 + 12, "the captured samples")
    job = world.client.run(world.name, {"steps": ["mine"], "budget": 3})
    assert job["state"] == "done", job
    world.client.post(f"/loops/{world.name}/queue/approve", {"actor": "reviewer"})
    world.until(lambda: len(world.get("tasks")) == 3, "the tasks")

    email = f"person-{secrets.token_hex(4)}@example.org"
    create_annotator(label_studio.url, label_studio.token, email, PASSWORD)
    log_in(page, label_studio.url, email)
    given: dict[str, tuple[int, str]] = {}
    for task, label in zip(world.get("tasks")[:2], ("blue", "green"), strict=True):
        address = f"{label_studio.url}/projects/{task['project_id']}/data?task={task['task_id']}"
        given[task["sample_id"]] = label_by_key(page, address, label), label

    world.until(lambda: len(world.get("annotations")) == 2, "the person's answers")
    answers = {row["sample_id"]: row for row in world.get("annotations")}
    assert {row["annotator"] for row in answers.values()} == {email}
    assert {sample: (row["annotation_id"], row["label"]) for sample, row in answers.items()} == given
    assert all(row["lead_time_s"] > 0 and not row["skipped"] for row in answers.values())

    trained = world.client.run(world.name, {"steps": ["train", "promote"], "manual": True})
    assert trained["state"] == "done", trained
    version = world.get("datasets")[-1]
    rows = {row.sample_id: row for row in datasets.load(world.blobs(), version["key"]).rows}
    for sample, (annotation_id, label) in given.items():
        row = rows[sample]
        assert (row.label, row.annotation_ids, row.source) == (label, (annotation_id,), "line-1")
        assert row.selection_id == job["result"]["mine"]
        history = world.get(f"samples/{sample}")
        audit = history["sample"]["role"] == "audit"
        assert row.split is (Split.HOLDOUT if audit else Split.TRAIN)
        assert row.origin == history["queue_item"]["arm"]
        assert history["annotations"][0]["annotator"] == email
    assert len(rows) == 6 + 2, "the third task has no answer yet"

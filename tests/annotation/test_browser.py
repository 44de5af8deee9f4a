"""A person's way in a real Chromium: log in, see the image and why it was picked, answer with a key."""

import io
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from annotation.label_studio import LabelStudioTool
from annotation.label_studio_accounts import AnnotatorAccount, create_annotator
from annotation.label_studio_api import ImageStorage, LabelStudioSettings
from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.core.ids import image_key, sample_id
from hardloop.core.records import Annotation, Prediction, TaskDraft

pytestmark = [pytest.mark.real, pytest.mark.browser, pytest.mark.slow]

# What a person reads must be what was written, whatever it looks like to XML, HTML or the tool's own templates.
LABELS = ("T-shirt & <top>", 'it\'s "odd", {rank} 5 $', "ängström 猫")
REASON = "unsure between <b>two</b> & more: $rank"
PASSWORD = "quite-long-pass-77"
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
def page(chromium: str, tmp_path: Path) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=os.environ.get("HARDLOOP_CHROMIUM", chromium),
            args=FLAGS,
            env={**os.environ, "HOME": str(tmp_path)},
            viewport={"width": 1440, "height": 900},
        )
        context.set_default_timeout(60_000)  # two suites at once on two cores
        yield context.pages[0] if context.pages else context.new_page()
        context.close()


@pytest.fixture
def tool(label_studio, s3: S3Settings) -> Iterator[LabelStudioTool]:
    storage = ImageStorage(url=s3.url, bucket=s3.bucket, access_key=s3.access_key, secret_key=s3.secret_key)
    settings = LabelStudioSettings(url=label_studio.url, api_key=label_studio.token, storage=storage)
    tool = LabelStudioTool(settings, LABELS, f"browser-{secrets.token_hex(4)}")
    yield tool
    tool.close()


@pytest.fixture
def person(label_studio) -> AnnotatorAccount:
    email = f"person-{secrets.token_hex(4)}@example.org"
    return create_annotator(label_studio.url, label_studio.token, email, PASSWORD)


def send_picture(tool: LabelStudioTool, s3: S3Settings, color: str, rank: int) -> int:
    out = io.BytesIO()
    Image.new("RGB", (48, 36), color).save(out, format="PNG")
    blobs, sample = S3Blobs(s3), sample_id(out.getvalue())
    blobs.put(image_key(sample, "png"), out.getvalue(), "image/png")
    uri = blobs.uri(image_key(sample, "png"))
    return tool.send([TaskDraft(sample, uri, rank, REASON, "selection-1", Prediction("3", LABELS[0], 0.41))])[sample]


def log_in(page, url: str, email: str) -> None:
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", email)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(re.compile(r"^(?!.*/user/login)"))


def open_task(page, address: str) -> None:
    page.goto(address)
    wait_for_image(page)


def wait_for_image(page) -> None:
    page.get_by_test_id("bottombar-submit-button").wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('img')].some(i => i.naturalWidth === 48 && i.naturalHeight === 36)"
    )


def answers(tool: LabelStudioTool, task_id: int) -> tuple[Annotation, ...]:
    (state,) = [state for state in tool.changes("").tasks if state.task_id == task_id]
    assert state.refused == ()
    return state.annotations


def test_a_person_sees_the_image_and_its_reason_and_answers_with_a_key(page, tool, person, label_studio, s3) -> None:
    task_id = send_picture(tool, s3, "orange", 7)
    log_in(page, label_studio.url, person.email)
    open_task(page, tool.task_url(task_id))
    page.get_by_text(f"#7: {REASON}").wait_for()
    for label in LABELS:
        page.get_by_text(label).first.wait_for()
    ticked = page.locator(".lsf-choice__item input:checked")
    assert [box.get_attribute("name") for box in ticked.all()] == [LABELS[0]], "the pre-annotation is not there"

    page.keyboard.press("2")
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as posted:
        page.get_by_test_id("bottombar-submit-button").click()
    assert posted.value.status == 201
    (answer,) = answers(tool, task_id)
    assert (answer.label, answer.skipped, answer.annotator) == (LABELS[1], False, person.email)
    assert answer.origin == "prediction-changed"
    assert answer.lead_time_s is not None
    assert 0 < answer.lead_time_s < 300

    page.get_by_test_id("bottombar-update-button").wait_for()
    page.keyboard.press("3")
    with page.expect_response(lambda r: "/annotations/" in r.url and r.request.method == "PATCH"):
        page.get_by_test_id("bottombar-update-button").click()
    (changed,) = answers(tool, task_id)
    assert (changed.annotation_id, changed.label) == (answer.annotation_id, LABELS[2])


def test_accepting_the_pre_annotation_is_told_apart_and_a_skip_is_a_skip(page, tool, person, label_studio, s3) -> None:
    accepted, skipped = send_picture(tool, s3, "teal", 1), send_picture(tool, s3, "olive", 2)
    log_in(page, label_studio.url, person.email)
    # Only the stream of tasks has a skip button; it begins with the first rank.
    page.goto(f"{label_studio.url}/projects/{tool.project_id}/data?labeling=1")
    for button in ("bottombar-submit-button", "bottombar-skip-button"):
        wait_for_image(page)
        with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as posted:
            page.get_by_test_id(button).click()
        assert posted.value.status == 201
    (answer,) = answers(tool, accepted)
    assert (answer.label, answer.origin, answer.skipped) == (LABELS[0], "prediction", False)
    (answer,) = answers(tool, skipped)
    assert (answer.label, answer.skipped) == (None, True)

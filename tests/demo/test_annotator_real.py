"""The stand-in annotator in the real Label Studio."""

import json
import secrets

import httpx
import pytest

from hardloop.core.errors import BadSettings
from hardloop.service.demo.annotator import Answers, StandInAnnotator, sign_up

pytestmark = pytest.mark.real

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="label" toName="image" choice="single">'
    '<Choice value="cat"/><Choice value="T-shirt/top"/></Choices></View>'
)


@pytest.fixture
def admin(label_studio):
    with httpx.Client(
        base_url=label_studio.url, headers={"Authorization": f"Token {label_studio.token}"}, timeout=30
    ) as client:
        yield client


@pytest.fixture
def project(admin):
    number = admin.post("/api/projects", json={"title": "stand-in", "label_config": CONFIG}).raise_for_status()
    yield number.json()["id"]
    admin.delete(f"/api/projects/{number.json()['id']}")


@pytest.fixture
def tasks(admin, project):
    rows = [{"data": {"image": "s3://bucket/a.png", "sample_id": f"s{i}"}} for i in range(12)]
    reply = admin.post(f"/api/projects/{project}/import", params={"return_task_ids": "true"}, json=rows)
    return reply.raise_for_status().json()["task_ids"]


def _token(label_studio, email=None):
    return sign_up(label_studio.url, label_studio.token, email or f"a{secrets.token_hex(6)}@example.com", "Xy-12345678")


def _all(admin, project):
    query = {"project": project, "page_size": 100, "fields": "all", "include": "id,data"}
    found = admin.get("/api/tasks", params=query).raise_for_status().json()["tasks"]
    return {t["data"]["sample_id"]: admin.get(f"/api/tasks/{t['id']}").json()["annotations"] for t in found}


def test_answers_and_skips_arrive_under_its_own_name_once_each(label_studio, admin, project, tasks):
    email = f"a{secrets.token_hex(6)}@example.com"
    truth = {f"s{i}": ("cat", "T-shirt/top")[i % 2] for i in range(12)}
    token = _token(label_studio, email)
    assert token != label_studio.token
    with StandInAnnotator(label_studio.url, token, ("cat", "T-shirt/top"), truth, 0.3, 4, skip_share=0.2) as standin:
        decisions = {sample: standin.decide(sample) for sample in truth}
        skipped = sum(d.label is None for d in decisions.values())
        wrong = sum(d.wrong for d in decisions.values())
        assert 0 < skipped < 12
        assert 0 < wrong < 12
        assert standin.answer(project) == Answers(answered=12 - skipped, wrong=wrong, skipped=skipped)
        assert standin.answer(project) == Answers()
    for sample, annotations in _all(admin, project).items():
        assert len(annotations) == 1
        assert annotations[0]["was_cancelled"] is (decisions[sample].label is None)
        if decisions[sample].label is not None:
            assert annotations[0]["result"][0]["value"]["choices"] == [decisions[sample].label]
            assert email in annotations[0]["created_username"]


def test_an_answer_whose_reply_was_lost_is_not_doubled(label_studio, admin, project, tasks):
    """The reply to each first post is dropped after the real server has stored the annotation."""

    class Lossy(httpx.HTTPTransport):
        lost: set[str] = set()  # noqa: RUF012

        def handle_request(self, request):
            reply = super().handle_request(request)
            if request.method == "POST" and request.url.path not in self.lost:
                self.lost.add(request.url.path)
                reply.close()
                raise httpx.ReadTimeout("dropped", request=request)
            return reply

    truth = {f"s{i}": "cat" for i in range(12)}
    with StandInAnnotator(
        label_studio.url, _token(label_studio), ("cat", "T-shirt/top"), truth, 0.0, 0, transport=Lossy()
    ) as standin:
        assert standin.answer(project) == Answers(repeated=12)
    assert [len(a) for a in _all(admin, project).values()] == [1] * 12


def test_an_accepted_pre_annotation_keeps_its_parent(label_studio, admin, project, tasks):
    result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]
    row = {"task": tasks[0], "result": result, "score": 0.6, "model_version": "v1"}
    made = admin.post("/api/predictions/", json=row).raise_for_status().json()["id"]
    truth = {f"s{i}": "cat" for i in range(12)}
    with StandInAnnotator(label_studio.url, _token(label_studio), ("cat", "T-shirt/top"), truth, 0.0, 0) as standin:
        assert standin.answer(project).answered == 12
    answers = _all(admin, project)
    assert (answers["s0"][0]["parent_prediction"], answers["s0"][0]["result"][0]["origin"]) == (made, "prediction")
    assert (answers["s1"][0]["parent_prediction"], answers["s1"][0]["result"][0]["origin"]) == (None, "manual")


def test_signing_up_again_logs_in_and_gives_the_same_token(label_studio):
    email = f"a{secrets.token_hex(6)}@example.com"
    assert _token(label_studio, email) == _token(label_studio, email)


def test_a_wrong_password_and_a_wrong_admin_token_are_told_apart(label_studio):
    email = f"a{secrets.token_hex(6)}@example.com"
    _token(label_studio, email)
    with pytest.raises(BadSettings, match="neither sign up nor log in"):
        sign_up(label_studio.url, label_studio.token, email, "Another-12345678")
    with pytest.raises(BadSettings, match="refused the admin's token"):
        sign_up(label_studio.url, "0" * 40, email, "Xy-12345678")


def test_a_wrong_token_is_refused_by_the_real_server_with_a_clear_sentence(label_studio, project):
    with (
        StandInAnnotator(label_studio.url, "0" * 40, ("cat", "dog"), {}, 0.0, 0) as standin,
        pytest.raises(BadSettings, match="refused the stand-in annotator's token"),
    ):
        standin.answer(project)


def test_the_result_is_what_label_studio_exports_as_a_choice(label_studio, admin, project, tasks):
    truth = {f"s{i}": "T-shirt/top" for i in range(12)}
    with StandInAnnotator(label_studio.url, _token(label_studio), ("cat", "T-shirt/top"), truth, 0.0, 0) as standin:
        standin.answer(project)
    exported = admin.get(f"/api/projects/{project}/export", params={"exportType": "JSON_MIN"}).raise_for_status()
    assert {row["label"] for row in json.loads(exported.text)} == {"T-shirt/top"}

"""The stand-in annotator against a scripted Label Studio: decisions, repeats and every kind of refusal."""

import json
from collections.abc import Callable

import httpx
import pytest

from hardloop.core.errors import BadData, BadSettings, Missing, Unavailable
from hardloop.service.demo.annotator import Answers, StandInAnnotator

LABELS = ("cat", "dog", "eel")
TRUTH = {f"s{i}": LABELS[i % 3] for i in range(3000)}


class Server:
    """A Label Studio of a few lines: tasks in, annotations kept by unique id, refusals on demand."""

    def __init__(self, samples: list[str], predictions: dict[str, str] | None = None) -> None:
        self.samples = samples
        self.predictions = predictions or {}
        self.annotations: dict[str, dict[str, object]] = {}
        self.refusals: list[httpx.Response | Exception] = []
        self.lose_replies = 0
        self.posts = 0
        self.pages: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/current-user/whoami":
            return httpx.Response(200, json={"email": "stand-in@example.com"})
        if request.url.path == "/api/tasks":
            return self._list(request)
        self.posts += 1
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            return refusal
        body = json.loads(request.content)
        if body["unique_id"] in self.annotations:
            return httpx.Response(409, json={"detail": "Annotation with this unique id already exists"})
        self.annotations[body["unique_id"]] = body | {"task": int(request.url.path.split("/")[3])}
        if self.lose_replies:
            self.lose_replies -= 1
            raise httpx.ReadTimeout("the reply was lost")
        return httpx.Response(201, json={"id": len(self.annotations)})

    def _list(self, request: httpx.Request) -> httpx.Response:
        page, size = int(request.url.params["page"]), int(request.url.params["page_size"])
        self.pages.append(page)
        answered = {annotation["task"] for annotation in self.annotations.values()}
        waiting = [(i, s) for i, s in enumerate(self.samples, start=1) if i not in answered]
        tasks = [self._task(i, s) for i, s in waiting[(page - 1) * size : page * size]]
        return httpx.Response(200, json={"tasks": tasks, "total": len(waiting)})

    def _task(self, number: int, sample: str) -> dict[str, object]:
        proposed = self.predictions.get(sample)
        result = [{"from_name": "label", "value": {"choices": [proposed]}}]
        return {
            "id": number,
            "data": {"sample_id": sample},
            "predictions": [{"id": 70 + number, "result": result}] if proposed else [],
        }


@pytest.fixture
def annotator() -> Callable[..., StandInAnnotator]:
    def make(server: Callable[[httpx.Request], httpx.Response], **given: object) -> StandInAnnotator:
        settings: dict[str, object] = {"error": 0.0, "seed": 1, "sleep": lambda _: None} | given
        return StandInAnnotator(
            "http://studio.test",
            "a-token",
            LABELS,
            TRUTH,
            transport=httpx.MockTransport(server),
            **settings,  # type: ignore[arg-type]
        )

    return make


def test_every_task_gets_the_true_label_in_the_shape_the_editor_writes(annotator):
    server = Server(["s0", "s1"])
    assert annotator(server).answer(5) == Answers(answered=2)
    by_task = {a["task"]: a for a in server.annotations.values()}
    result = by_task[2]["result"][0]
    assert (result["from_name"], result["to_name"], result["type"]) == ("label", "image", "choices")
    assert [by_task[t]["result"][0]["value"]["choices"] for t in (1, 2)] == [["cat"], ["dog"]]
    assert by_task[1]["lead_time"] >= 0
    assert by_task[1]["was_cancelled"] is False


def test_a_second_sitting_finds_nothing_left_to_do(annotator):
    server = Server([f"s{i}" for i in range(7)])
    assert annotator(server).answer(5).answered == 7
    assert annotator(server).answer(5) == Answers()
    assert len(server.annotations) == 7


def test_a_lost_reply_is_repeated_and_counted_but_never_doubled(annotator):
    server = Server(["s0"])
    server.lose_replies = 1
    assert annotator(server).answer(5) == Answers(repeated=1)
    assert len(server.annotations) == 1


def test_all_pages_are_listed_before_the_first_answer(annotator):
    server = Server([f"s{i}" for i in range(1201)])
    assert annotator(server).answer(5).answered == 1201
    assert server.pages == [1, 2, 3]


def test_wrong_answers_come_at_the_given_rate_and_are_never_the_true_label(annotator):
    standin = annotator(Server([]), error=0.1)
    decisions = {s: standin.decide(s) for s in TRUTH}
    wrong = [s for s, d in decisions.items() if d.wrong]
    # 3,000 draws at 10 %: the standard deviation is 16.4, so 4 of them.
    assert 300 - 66 < len(wrong) < 300 + 66
    assert all(decisions[s].label in set(LABELS) - {TRUTH[s]} for s in wrong)
    assert {decisions[s].label for s in wrong} == set(LABELS)
    assert all(decisions[s].label == TRUTH[s] for s in TRUTH if s not in set(wrong))


def test_the_same_seed_errs_on_the_same_samples_and_another_seed_on_others(annotator):
    def wrong(seed):
        standin = annotator(Server([]), error=0.1, seed=seed)
        return {s for s in TRUTH if standin.decide(s).wrong}

    assert wrong(1) == wrong(1)
    assert wrong(1) != wrong(2)


def test_error_one_is_always_wrong_and_error_zero_never(annotator):
    assert all(annotator(Server([]), error=1.0).decide(f"s{i}").wrong for i in range(200))
    assert not any(annotator(Server([]), error=0.0).decide(f"s{i}").wrong for i in range(200))


def test_a_skip_is_cancelled_and_carries_no_label(annotator):
    server = Server(["s0", "s1"])
    assert annotator(server, skip_share=1.0).answer(5) == Answers(skipped=2)
    assert all(a["was_cancelled"] and a["result"] == [] for a in server.annotations.values())


def test_accepting_and_changing_a_pre_annotation_is_told_apart(annotator):
    server = Server(["s0", "s1", "s2"], predictions={"s0": "cat", "s1": "cat"})
    annotator(server).answer(5)
    by_task = {a["task"]: a for a in server.annotations.values()}
    assert [by_task[t]["result"][0]["origin"] for t in (1, 2, 3)] == ["prediction", "prediction-changed", "manual"]
    assert [by_task[t]["parent_prediction"] for t in (1, 2, 3)] == [71, 72, None]


@pytest.mark.parametrize(
    "refusal",
    [httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(503), httpx.ConnectError("refused")],
    ids=["429", "503", "connection refused"],
)
def test_a_busy_server_is_asked_again(annotator, refusal):
    server, waits = Server(["s0"]), []
    server.refusals = [refusal]
    assert annotator(server, sleep=waits.append).answer(5) == Answers(answered=1)
    assert waits == ([7.0] if isinstance(refusal, httpx.Response) and refusal.status_code == 429 else [0.2])


def test_a_server_that_stays_away_ends_in_a_sentence_with_its_address(annotator):
    def down(request):
        raise httpx.ConnectError("refused")

    waits: list[float] = []
    with pytest.raises(Unavailable, match=r"http://studio\.test did not accept GET .* in 6 attempts \(ConnectError\)"):
        annotator(down, sleep=waits.append).answer(5)
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_not_tried_again(annotator, status):
    asked = []

    def refuse(request):
        asked.append(request.url.path)
        return httpx.Response(status)

    with pytest.raises(BadSettings, match=f"refused the stand-in annotator's token \\({status}"):
        annotator(refuse).answer(5)
    assert len(asked) == 1


def test_a_project_that_is_not_there_is_named(annotator):
    def serve(request):
        return httpx.Response(200, json={"email": "x"}) if "whoami" in request.url.path else httpx.Response(404)

    with pytest.raises(Missing, match="no project 12"):
        annotator(serve).answer(12)


def test_a_task_deleted_while_it_was_being_answered_is_counted_as_gone(annotator):
    server = Server(["s0"])
    server.refusals = [httpx.Response(404)]
    assert annotator(server).answer(5) == Answers(gone=1)


def test_an_answer_label_studio_does_not_understand_is_an_error_with_its_words(annotator):
    server = Server(["s0"])
    server.refusals = [httpx.Response(400, text="bad result")]
    with pytest.raises(BadData, match="answered 400 to POST /api/tasks/1/annotations/: bad result"):
        annotator(server).answer(5)


def test_a_task_from_elsewhere_is_named_and_not_guessed_at(annotator):
    server = Server(["stranger"])
    with pytest.raises(BadData, match="does not know sample 'stranger'"):
        annotator(server).answer(5)
    assert server.annotations == {}


@pytest.mark.parametrize("given", [{"error": 1.5}, {"error": -0.1}, {"skip_share": 2.0}])
def test_shares_outside_zero_to_one_are_refused(annotator, given):
    with pytest.raises(BadSettings, match="expected a share between 0 and 1"):
        annotator(Server([]), **given)

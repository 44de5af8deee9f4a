"""What the loop survives on real servers: kill -9 in every step, lost webhooks, restless people, unusable images."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from hardloop.core import ids
from hardloop.core.blobs import S3Settings
from hardloop.service.embedded import LabelStudioEndpoint
from tests.fakes.loops import LABELS, picture
from tests.service.bombs import POINTS
from tests.service.harness import World
from tests.service.scenes import put_capture_file, record_of
from training import datasets

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def world(tmp_path: Path, s3: S3Settings, label_studio: LabelStudioEndpoint, mlflow_url: str) -> Iterator[World]:
    """A loop whose webhooks arrive."""
    world = World.make(f"colours-{token_hex(3)}", tmp_path, s3, label_studio, mlflow_url)
    yield world
    world.kill()


@pytest.fixture
def deaf_world(tmp_path: Path, s3: S3Settings, label_studio: LabelStudioEndpoint, mlflow_url: str) -> Iterator[World]:
    """A loop whose webhooks all go nowhere, and whose queue needs no reviewer."""
    name = f"deaf-{token_hex(3)}"
    world = World.make(name, tmp_path, s3, label_studio, mlflow_url, webhooks=False, automatic=True)
    yield world
    world.kill()


def crash(world: World, point: str, act: Callable[[], object] | None = None) -> None:
    """Run the service with a bomb until it goes off."""
    world.start(point)
    if act is not None:
        act()
    assert world.died() == -signal.SIGKILL, f"the bomb {point!r} never went off\n{world.log()}"


def test_the_loop_completes_though_it_is_killed_in_the_middle_of_every_step(world: World) -> None:
    world.start()
    first = world.first_model()
    world.kill()
    world.capture(40, first)
    for point in POINTS:
        if point.startswith("mine: picked"):
            world.start()
            world.until(lambda: sum(world.get("")["samples"].get(r, 0) for r in ("pool", "audit")) == 40, "all samples")
            world.kill()
        if point.startswith("send: tasks made"):
            world.start()
            world.until(lambda: world.get("")["queue"]["queued"] == 12, "the picks of the interrupted job")
            world.client.post(f"/loops/{world.name}/queue/approve", {"actor": "reviewer"})
            world.kill()
        if point.startswith("collect: answers"):
            world.start()
            world.until(lambda: len(world.get("tasks")) == 12, "the tasks")
            world.kill()
            with_answers = _start_and_answer(world)
        crash(world, point, world.ask_to_mine if point.startswith("mine: picked") else None)
    world.start()
    world.until(lambda: not world.get("")["undecided"] and len(world.get("decisions")) == 2, "the second decision")
    world.until(lambda: all(d["applied_at"] for d in world.get("decisions")), "the decision to be carried out")

    tasks = world.studio_tasks()
    per_sample = Counter(task["data"]["sample_id"] for task in tasks)
    assert len(per_sample) == 12
    assert set(per_sample.values()) == {1}, "a task was doubled"
    assert {len(task["predictions"]) for task in tasks} == {1}, "a task has not exactly one prediction"
    given = {answer["id"] for task in tasks for answer in task["annotations"]}
    assert given == with_answers
    assert {row["annotation_id"] for row in world.get("annotations")} == given, "an annotation was lost"
    labels = {row["sample_id"]: row["label"] for row in world.get("labels") if row["origin"] not in ("seed", "legacy")}
    assert labels == {sample: world.truth[sample] for sample in per_sample}
    assert [t["state"] for t in world.get("trainings")] == ["trained", "trained"], "not exactly one training each"
    assert len(world.get("selections")) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", world.connections.mlflow_url)
        from mlflow import MlflowClient

        assert len(MlflowClient().search_model_versions(f"name='hardloop-{world.name}'")) == 2


def _start_and_answer(world: World) -> set[int]:
    """Answer every task while no service runs: nobody hears these webhooks."""
    world.start()
    tasks = world.studio_tasks()
    world.kill()
    return {world.answer(task) for task in tasks}


def test_nothing_is_lost_when_every_webhook_is(deaf_world: World) -> None:
    world = deaf_world
    world.start()
    first = world.first_model()
    world.capture(30, first)
    world.until(lambda: sum(world.get("")["samples"].get(r, 0) for r in ("pool", "audit")) == 30, "all samples")
    world.client.run(world.name, {"steps": ["mine"], "budget": 12})
    world.until(lambda: len(world.get("tasks")) == 12, "the tasks, approved by nobody")
    given = {world.answer(task) for task in world.studio_tasks()}
    world.until(lambda: {row["annotation_id"] for row in world.get("annotations")} == given, "all answers, by polling")
    world.until(lambda: len(world.get("decisions")) == 2, "the next model")
    assert world.get("webhooks") == []


def test_the_loop_follows_annotators_who_change_their_minds(world: World) -> None:
    world.start()
    first = world.first_model()
    world.capture(30, first)
    world.until(lambda: sum(world.get("")["samples"].get(r, 0) for r in ("pool", "audit")) == 30, "all samples")
    world.client.run(world.name, {"steps": ["mine"], "budget": 5})
    world.client.post(f"/loops/{world.name}/queue/approve", {"actor": "reviewer"})
    world.until(lambda: len(world.get("tasks")) == 5, "the tasks")
    changed, deleted, skipped, wrong, gone = world.studio_tasks()
    others = {t["id"]: next(x for x in LABELS if x != world.truth[t["data"]["sample_id"]]) for t in (changed, wrong)}
    first_try = world.answer(changed, others[changed["id"]])
    taken_back = world.answer(deleted)
    world.answer(gone)
    with world.studio() as http:
        body = {"result": [], "was_cancelled": True}
        http.post(f"/api/tasks/{skipped['id']}/annotations/", json=body).raise_for_status()
    world.answer(wrong, "purple")
    world.until(lambda: len(world.get("annotations")) == 5, "five answers")

    def labels() -> dict[str, str | None]:
        found = world.get("labels")
        return {row["sample_id"]: row["label"] for row in found if row["origin"] not in ("seed", "legacy")}

    samples = {name: t["data"]["sample_id"] for name, t in (("changed", changed), ("deleted", deleted), ("gone", gone))}
    assert labels() == {
        samples["changed"]: others[changed["id"]],
        samples["deleted"]: world.truth[samples["deleted"]],
        samples["gone"]: world.truth[samples["gone"]],
    }
    with world.studio() as http:
        value = {"from_name": "label", "to_name": "image", "type": "choices"}
        better = {**value, "value": {"choices": [world.truth[samples["changed"]]]}}
        http.patch(f"/api/annotations/{first_try}/", json={"result": [better]}).raise_for_status()
        http.delete(f"/api/annotations/{taken_back}/").raise_for_status()
        http.delete(f"/api/tasks/{gone['id']}/").raise_for_status()
    expected = {samples["changed"]: world.truth[samples["changed"]], samples["deleted"]: None, samples["gone"]: None}
    world.until(lambda: labels() == expected, "the change, the deletion and the deleted task")
    refused = [row for row in world.get("annotations") if row["refused"]]
    assert len(refused) == 1
    assert "purple" in refused[0]["refused"]
    assert sum(row["skipped"] for row in world.get("annotations")) == 1


def test_answers_changed_and_deleted_while_a_training_runs_count_in_the_next(world: World) -> None:
    world.start()
    first = world.first_model()
    world.capture(30, first)
    world.until(lambda: sum(world.get("")["samples"].get(r, 0) for r in ("pool", "audit")) == 30, "all samples")
    world.client.run(world.name, {"steps": ["mine"], "budget": 12})
    world.client.post(f"/loops/{world.name}/queue/approve", {"actor": "reviewer"})
    world.until(lambda: len(world.get("tasks")) == 12, "the tasks")
    tasks = [
        t for t in world.studio_tasks() if world.get(f"samples/{t['data']['sample_id']}")["sample"]["role"] == "pool"
    ]
    early, late = tasks[:7], tasks[7:]
    given = {task["data"]["sample_id"]: world.answer(task) for task in early}
    world.until(lambda: any(t["state"] == "running" for t in world.get("trainings")), "the round's training to run")
    changed, deleted = early[0]["data"]["sample_id"], early[1]["data"]["sample_id"]
    other = next(label for label in LABELS if label != world.truth[changed])
    with world.studio() as http:
        value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [other]}}
        http.patch(f"/api/annotations/{given[changed]}/", json={"result": [value]}).raise_for_status()
        http.delete(f"/api/annotations/{given[deleted]}/").raise_for_status()
    given.update({task["data"]["sample_id"]: world.answer(task) for task in late})
    expected = {sample: world.truth[sample] for sample in given} | {changed: other}
    del expected[deleted]

    def learned() -> dict[str, str]:
        """What the newest dataset version holds of the round, by sample."""
        rows = datasets.load(world.blobs(), world.get("datasets")[-1]["key"]).rows
        return {row.sample_id: row.label for row in rows if row.sample_id in given}

    # Too few changes to fire the trigger by themselves are trained on when a person asks.
    world.until(lambda: all(t["state"] == "trained" for t in world.get("trainings")), "the training to end")
    world.until(lambda: {r["sample_id"] for r in world.get("labels") if r["label"]} >= set(expected), "all answers")
    if learned() != expected:
        job = world.client.run(world.name, {"steps": ["train", "promote"], "manual": True})
        assert job["state"] == "done", job
    assert learned() == expected
    keys = [t["dataset_number"] for t in world.get("trainings")]
    assert len(keys) == len(set(keys)), "a dataset version was trained on twice"
    live = {row["annotation_id"] for row in world.get("annotations") if row["deleted_at"] is None}
    assert live == {number for sample, number in given.items() if sample != deleted}


def test_unusable_images_in_captures_are_refused_by_name_and_the_others_are_kept(world: World) -> None:
    """Through the real store, as a careless writer would leave them: one capture file, one good record in six."""
    world.start()
    good, *bad = (picture("red", world.rng) for _ in range(6))
    stored = {good: good, bad[0]: b"", bad[1]: bad[1][: len(bad[1]) // 2], bad[2]: b"hello", bad[3]: None}
    oversized = _bomb()
    blobs = world.blobs()
    for image, data in (*stored.items(), (oversized, oversized)):
        if data is not None:
            blobs.put(ids.image_key(ids.sample_id(image), "png"), data, "image/png")
    records = [record_of(image, world.name) for image in (*stored, oversized)]
    put_capture_file(blobs, records, loop=world.name)
    world.until(lambda: len(world.get("refusals")) == 5, "five refusals")
    assert sum(world.get("")["samples"].values()) == 1
    reasons = {int(row["reference"].rsplit("#", 1)[1]): row["reason"] for row in world.get("refusals")}
    assert "content hash" in reasons[1]
    assert "content hash" in reasons[2]
    assert "content hash" in reasons[3]
    assert "no object" in reasons[4]
    assert "pixels" in reasons[5]


def test_unusable_images_are_refused_by_name_and_the_others_are_kept(world: World) -> None:
    world.start()
    good = picture("red", world.rng)
    files = [
        ("files", ("good.png", good)),
        ("files", ("empty.png", b"")),
        ("files", ("cut.png", good[: len(good) // 2])),
        ("files", ("notes.txt", b"hello")),
        ("files", ("bomb.png", _bomb())),
    ]
    taken = world.client.post(f"/loops/{world.name}/images", files=files, data={"role": "pool"})
    assert taken == {"new": 1, "known": 0, "refused": 4}
    reasons = {row["reference"]: row["reason"] for row in world.get("refusals")}
    assert set(reasons) == {"empty.png", "cut.png", "notes.txt", "bomb.png"}
    assert "zero bytes" in reasons["empty.png"]
    assert "damaged" in reasons["cut.png"]
    assert "not an image" in reasons["notes.txt"]
    assert "pixels" in reasons["bomb.png"]


def _bomb() -> bytes:
    """A PNG of a few kilobytes that would fill gigabytes of memory once decoded."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )

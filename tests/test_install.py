"""`tools/install.py`: which calls of pip fill the environment."""

import importlib.util
from types import ModuleType

import pytest

from tests.conftest import _REPOSITORY


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", _REPOSITORY / "tools" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_call_is_pinned_and_ends_with_the_project_itself(install: ModuleType) -> None:
    for index in ("", "https://torch.example/cpu"):
        calls = install.commands(["pip"], index)
        assert all(call[call.index("-c") + 1].endswith("constraints.txt") for call in calls)
        assert calls[-1][-3:] == [install.TORCH, "-e", f"{install.ROOT}[dev]"]
        assert "--index-url" not in calls[-1]


def test_an_index_of_torch_builds_is_asked_for_torch_alone(install: ModuleType) -> None:
    first = install.commands(["pip"], "https://torch.example/cpu")[0]
    assert first[-4:] == ["--index-url", "https://torch.example/cpu", "--no-deps", install.TORCH]
    assert len(install.commands(["pip"], "")) == 2


def test_torch_that_brings_cuda_is_known_by_its_dependencies(install: ModuleType) -> None:
    def report(*required: str) -> dict[str, object]:
        return {"install": [{"metadata": {"name": "torch", "requires_dist": list(required)}}]}

    assert install.brings_cuda(report("filelock", 'nvidia-cudnn-cu13==9.2; platform_system == "Linux"'))
    assert not install.brings_cuda(report("filelock", "sympy>=1.13"))
    assert not install.brings_cuda({"install": [{"metadata": {"name": "torch"}}]})
    assert not install.brings_cuda({}), "pip could not say"

"""What every registry promises; the in-memory one and MLflow's pass the same tests."""

from pathlib import Path
from secrets import token_hex
from typing import Protocol

import numpy as np
import pytest

from hardloop.core import evaluations
from hardloop.core.errors import BadModel, Conflict, Missing
from hardloop.core.model_files import read_card
from hardloop.core.ports import Registry
from hardloop.core.records import Interval, ModelVersion, SliceVerdict, Verdict
from registry.mlflow_client import MlflowSettings
from registry.mlflow_registry import MlflowRegistry
from tests.fakes.registry import InMemoryRegistry
from tests.registry.trained import LABELS, trained_model

VERDICT = Verdict(
    True,
    "Better on mined: +20.0 points [+4.1, +35.9] on 20 samples; no guard slice was large enough.",
    (
        SliceVerdict(
            "mined", "better", 20, Interval(0.4, 0.22, 0.61), Interval(0.6, 0.39, 0.78), Interval(0.2, 0.04, 0.36), True
        ),
        SliceVerdict("audit", "not worse", 25, None, Interval(0.5, 0.3, 0.7), None, None),
    ),
    "3",
    7,
)


class RegistryWithVerdicts(Registry, Protocol):
    def verdict(self, version: ModelVersion) -> Verdict | None: ...


class RegistryContract:
    """Tests take the fixtures `registry` (empty) and `tmp_path`."""

    def add(self, registry: Registry, tmp_path: Path, seed: int) -> ModelVersion:
        model = trained_model(tmp_path / f"trained-{seed}", seed)
        return registry.register(model, f"key-{seed}", f"datasets/d-{seed}.parquet", f"{seed:064x}")

    def test_a_fresh_registry_is_empty(self, registry: Registry) -> None:
        assert registry.champion() is None
        assert list(registry.versions()) == []
        assert registry.find("key-1") is None
        with pytest.raises(Conflict, match="cannot roll back"):
            registry.rollback("nothing is there")

    def test_a_training_becomes_one_version_however_often_it_is_registered(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        first = self.add(registry, tmp_path, 1)
        second = self.add(registry, tmp_path, 2)
        assert self.add(registry, tmp_path, 1) == first
        assert list(registry.versions()) == [first, second]
        assert registry.find("key-2") == second
        assert registry.find("key-3") is None
        assert (first.training_key, first.dataset_digest, first.labels) == ("key-1", f"{1:064x}", LABELS)
        assert registry.champion() is None

    def test_promotion_and_rollback_follow_the_line_of_champions(self, registry: Registry, tmp_path: Path) -> None:
        one, two, three = (self.add(registry, tmp_path, seed) for seed in (1, 2, 3))
        registry.promote(one, "first")
        with pytest.raises(Conflict, match="cannot roll back"):
            registry.rollback("too early")
        registry.promote(two, "better")
        registry.promote(two, "better")  # repeated after a kill: no second entry in the line
        assert registry.champion() == two
        assert registry.rollback("worse than thought") == one
        registry.promote(three, "better still")
        registry.promote(one, "back by hand")
        assert registry.champion() == one
        assert registry.rollback("no") == three
        assert registry.rollback("no") == one
        assert registry.champion() == one
        with pytest.raises(Conflict, match="cannot roll back"):
            registry.rollback("nobody is left")

    def test_a_version_that_is_not_there_cannot_be_promoted(self, registry: Registry, tmp_path: Path) -> None:
        one = self.add(registry, tmp_path, 1)
        ghost = ModelVersion(one.name, "99", one.run_id, "key-99", one.dataset_digest, one.labels)
        with pytest.raises(Missing):
            registry.promote(ghost, "why not")
        assert registry.champion() is None

    def test_the_evaluation_comes_back_as_it_was_logged(self, registry: Registry, tmp_path: Path) -> None:
        version = self.add(registry, tmp_path, 1)
        logged = evaluations.read((tmp_path / "trained-1" / evaluations.FILE).read_bytes())
        found = registry.evaluation(version)
        assert (found.ids, found.slices) == (logged.ids, logged.slices)
        np.testing.assert_array_equal(found.probs_NC, logged.probs_NC)
        np.testing.assert_array_equal(found.truth_N, logged.truth_N)

    def test_a_verdict_comes_back_with_all_its_numbers(self, registry: RegistryWithVerdicts, tmp_path: Path) -> None:
        version = self.add(registry, tmp_path, 1)
        assert registry.verdict(version) is None
        registry.record(version, VERDICT)
        registry.record(version, VERDICT)
        assert registry.verdict(version) == VERDICT

    def test_fetching_brings_the_same_files_and_may_be_repeated(self, registry: Registry, tmp_path: Path) -> None:
        one, two = self.add(registry, tmp_path, 1), self.add(registry, tmp_path, 2)
        folder = registry.fetch(one, tmp_path / "served" / "model")
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
            p.name: p.read_bytes() for p in (tmp_path / "trained-1").iterdir()
        }
        assert registry.fetch(one, folder) == folder
        assert read_card(registry.fetch(two, folder)).encoder == "enc-2"  # another model takes its place
        (folder / "member-0.onnx").write_bytes(b"altered")
        assert read_card(registry.fetch(two, folder)).encoder == "enc-2"  # and a damaged copy is mended
        assert [p.name for p in folder.parent.iterdir()] == ["model"]  # nothing half-done stays behind

    def test_fetching_never_clears_a_folder_that_is_not_a_model(self, registry: Registry, tmp_path: Path) -> None:
        version = self.add(registry, tmp_path, 1)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_bytes(b"precious")
        with pytest.raises(Conflict, match="not a model"):
            registry.fetch(version, tmp_path / "photos")
        assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"precious"

    def test_a_model_folder_that_is_not_whole_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        model = trained_model(tmp_path / "trained", 1)
        (tmp_path / "trained" / "member-0.onnx").write_bytes(b"altered")
        with pytest.raises(BadModel, match=r"member-0\.onnx does not have the SHA-256"):
            registry.register(model, "key-1", "d", "0")
        assert list(registry.versions()) == []


class TestInMemoryRegistry(RegistryContract):
    @pytest.fixture
    def registry(self) -> InMemoryRegistry:
        return InMemoryRegistry()


@pytest.mark.real
class TestMlflowRegistry(RegistryContract):
    @pytest.fixture
    def registry(self, mlflow_url: str) -> MlflowRegistry:
        settings = MlflowSettings(tracking_url=mlflow_url, loop=f"test-{token_hex(4)}")
        return MlflowRegistry(settings, code_commit="0123abc")

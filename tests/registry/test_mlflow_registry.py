"""The MLflow adapter against a real server: interruptions, other people's hands, altered files."""

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from hardloop.core import evaluations
from hardloop.core.errors import BadInput, BadModel, BadSettings, Conflict, HardloopError, Missing, Unavailable
from hardloop.core.model_files import CARD
from registry.mlflow_client import MlflowSettings
from registry.mlflow_registry import MlflowRegistry
from tests.registry.cut_wire import Wire, wire_to
from tests.registry.test_registry_contract import VERDICT
from tests.registry.trained import trained_model
from training import evaluation

pytestmark = pytest.mark.real


@pytest.fixture
def loop() -> str:
    return f"test-{token_hex(4)}"


@pytest.fixture
def registry(mlflow_url: str, loop: str) -> MlflowRegistry:
    return MlflowRegistry(
        MlflowSettings(tracking_url=mlflow_url, loop=loop, store_url="s3://data/"), code_commit="c0ffee"
    )


@pytest.fixture
def client(registry: MlflowRegistry) -> Any:
    """The bare client, to look and meddle as another person would; made by ours, so that telemetry is off first."""
    return registry._calls._connected()


@pytest.fixture
def wire(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a killed client does not try again either
    with wire_to(mlflow_url) as wire:
        yield wire


def over(wire: Wire, loop: str) -> MlflowRegistry:
    return MlflowRegistry(MlflowSettings(tracking_url=wire.url, loop=loop), code_commit="c0ffee")


def runs(client: Any, loop: str) -> list[Any]:
    experiment = client.get_experiment_by_name(f"hardloop-{loop}")
    return list(client.search_runs([experiment.experiment_id]))


# ---------------------------------------------------------------- what a run holds


def test_a_run_holds_all_that_a_person_needs_to_judge_and_repeat_it(
    registry: MlflowRegistry, client: Any, loop: str, tmp_path: Path
) -> None:
    model = trained_model(tmp_path / "trained")
    version = registry.register(model, "key-1", "datasets/d.parquet", "ab" * 32)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "seed": "0"}
    assert run.data.metrics["train/loss"] == 0.5
    assert run.data.metrics["audit/n"] == 25
    assert 0 <= run.data.metrics["mined/recall/gr__e _x__"] <= 1
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["hardloop.dataset_digest"] == "ab" * 32
    assert run.data.tags["hardloop.env.numpy"]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("datasets/d.parquet", ("ab" * 32)[:36])
    assert json.loads(dataset.dataset.source) == {"uri": "s3://data/datasets/d.parquet"}
    files = {
        entry.path for parent in (None, "model", "plots") for entry in client.list_artifacts(version.run_id, parent)
    }
    assert files == {
        "environment.json", "metrics.json", "model", "plots", "model/model.json", "model/evaluation.parquet",
        "model/member-0.onnx", "model/member-0.safetensors", "plots/slices.png", "plots/confusion-mined.png",
        "plots/confusion-audit.png", "plots/confusion-legacy.png",
    }  # fmt: skip
    assert client.get_model_version_by_alias(f"hardloop-{loop}", "candidate").run_id == version.run_id
    assert registry.run_url(version).endswith(f"/#/experiments/{run.info.experiment_id}/runs/{version.run_id}")


def test_labels_that_mlflow_would_refuse_in_a_name_are_registered_with_all_their_numbers(
    registry: MlflowRegistry, client: Any, tmp_path: Path
) -> None:
    labels = (
        "hat, red", "hat; red", "a/b", "a_b", "A_B", "..", "/", "dir/", "../up", "Ünï", "猫", "x<y>", "100%",
        "it's C++", "mined/recall", "n" * 300, "(a) & #1",
    )  # fmt: skip
    model = trained_model(tmp_path / "trained", labels=labels)
    found = evaluations.read((tmp_path / "trained" / evaluations.FILE).read_bytes())
    model = replace(model, metrics={**model.metrics, **evaluation.metrics(found, labels)})
    version = registry.register(model, "key-1", "d", "0")
    assert version.labels == labels
    metrics = client.get_run(version.run_id).data.metrics
    support = {name: value for name, value in metrics.items() if name.startswith("train/support/")}
    assert sorted(support.values()) == [float(i) for i in range(len(labels))]
    assert {name: support[f"train/support/{name}"] for name in ("hat_ red", "hat_ red-1", "a_b", "a_b-3", "A_B-4")} == {
        "hat_ red": 0, "hat_ red-1": 1, "a_b": 2, "a_b-3": 3, "A_B-4": 4,
    }  # fmt: skip
    for kind in ("audit/f1", "audit/recall"):  # the registry's own number, and one that training and registry both give
        named = {name.removeprefix(f"{kind}/") for name in metrics if name.startswith(f"{kind}/")}
        assert named
        assert named <= {name.removeprefix("train/support/") for name in support}


def test_the_verdict_can_be_read_on_the_version(registry: MlflowRegistry, client: Any, tmp_path: Path) -> None:
    version = registry.register(trained_model(tmp_path / "trained"), "key-1", "d", "0")
    registry.record(version, VERDICT)
    tags = client.get_model_version(version.name, version.version).tags
    assert tags["hardloop.verdict"] == "promote"
    assert tags["hardloop.verdict.reason"] == VERDICT.reason
    assert tags["hardloop.verdict.mined"] == (
        "better: passed; accuracy 60.0 % [39.0, 78.0], difference 20.0 % [4.0, 36.0], n = 20"
    )
    assert tags["hardloop.verdict.audit"] == "not worse: too small to say; accuracy 50.0 % [30.0, 70.0], n = 25"


# ---------------------------------------------------------------- killed in the middle


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_registering_killed_after_any_request_and_repeated_leaves_one_version_and_one_finished_run(
    wire: Wire, client: Any, tmp_path: Path
) -> None:
    model = trained_model(tmp_path / "trained", audit_only=True)
    over(wire, f"count-{token_hex(4)}").register(model, "key-1", "d", "0")
    needed = wire.requests
    assert needed > 15
    for answered in range(needed):
        loop = f"cut-{token_hex(4)}"
        wire.left = answered
        with pytest.raises(HardloopError):
            over(wire, loop).register(model, "key-1", "d", "0")
        wire.left = None
        version = over(wire, loop).register(model, "key-1", "d", "0")
        left = runs(client, loop)
        assert [run.info.status for run in left] == ["FINISHED"], answered
        assert left[0].info.run_id == version.run_id
        assert [str(v.version) for v in client.search_model_versions(f"name='hardloop-{loop}'")] == ["1"], answered
        assert client.get_model_version_by_alias(f"hardloop-{loop}", "candidate").aliases == ["candidate"]
        assert len(client.list_artifacts(version.run_id, "model")) == 4


@pytest.mark.slow
def test_promoting_killed_after_any_request_and_repeated_moves_once(
    wire: Wire, registry: MlflowRegistry, loop: str, tmp_path: Path
) -> None:
    one = registry.register(trained_model(tmp_path / "1", 1), "key-1", "d", "1")
    two = registry.register(trained_model(tmp_path / "2", 2), "key-2", "d", "2")
    registry.promote(one, "first")
    interrupted = 0
    for answered in range(14):
        wire.left = answered
        try:
            over(wire, loop).promote(two, "better")
        except Unavailable:
            interrupted += 1
        wire.left = None
        over(wire, loop).promote(two, "better")
        assert registry.champion() == two
        assert registry.history().line == ("1", "2")
        wire.left = answered
        try:
            over(wire, loop).rollback("worse")
        except Unavailable:
            interrupted += 1
            wire.left = None
            if registry.history().line != ("1",) or registry.history().pending is not None:
                assert over(wire, loop).rollback("worse") == one
        wire.left = None
        assert registry.champion() == one
        assert registry.history().line == ("1",)
    assert interrupted > 10


# ---------------------------------------------------------------- other hands


def test_a_champion_set_by_hand_is_the_one_to_go_back_to(registry: MlflowRegistry, client: Any, tmp_path: Path) -> None:
    one, two, three = (registry.register(trained_model(tmp_path / str(i), i), f"key-{i}", "d", "0") for i in (1, 2, 3))
    registry.promote(one, "first")
    client.set_registered_model_alias(one.name, "champion", two.version)
    registry.promote(three, "better")
    assert registry.rollback("worse") == two
    assert [move.kind for move in registry.history().moves] == ["promote", "found", "promote", "rollback"]


def test_a_deleted_version_is_skipped_when_rolling_back(registry: MlflowRegistry, client: Any, tmp_path: Path) -> None:
    one, two, three = (registry.register(trained_model(tmp_path / str(i), i), f"key-{i}", "d", "0") for i in (1, 2, 3))
    for version in (one, two, three):
        registry.promote(version, "better")
    client.delete_model_version(two.name, two.version)
    assert registry.rollback("worse") == one


def test_a_version_somebody_else_registered_is_refused_by_name(
    registry: MlflowRegistry, client: Any, tmp_path: Path
) -> None:
    one = registry.register(trained_model(tmp_path / "1", 1), "key-1", "d", "0")
    other = client.create_model_version(one.name, f"runs:/{one.run_id}/model", one.run_id)
    assert list(registry.versions()) == [one]
    client.set_registered_model_alias(one.name, "champion", other.version)
    with pytest.raises(BadModel, match=r"version 2 of .* was not registered by Hardloop"):
        registry.champion()


def test_a_registered_model_that_is_not_ours_is_left_alone(
    registry: MlflowRegistry, client: Any, loop: str, tmp_path: Path
) -> None:
    client.create_registered_model(f"hardloop-{loop}")
    with pytest.raises(BadModel, match="was not made by Hardloop"):
        registry.register(trained_model(tmp_path / "1", 1), "key-1", "d", "0")
    assert client.search_model_versions(f"name='hardloop-{loop}'") == []


def test_a_deleted_experiment_is_an_error_that_says_how_to_restore_it(
    registry: MlflowRegistry, client: Any, loop: str, tmp_path: Path
) -> None:
    experiment = client.create_experiment(f"hardloop-{loop}")
    client.delete_experiment(experiment)
    with pytest.raises(Conflict, match=rf"mlflow experiments restore --experiment-id {experiment}"):
        registry.register(trained_model(tmp_path / "1", 1), "key-1", "d", "0")


# ---------------------------------------------------------------- altered and missing files


@pytest.mark.parametrize("name", ["member-0.onnx", "evaluation.parquet", CARD])
def test_an_altered_artifact_is_refused_and_nothing_of_it_reaches_the_folder(
    registry: MlflowRegistry, client: Any, tmp_path: Path, name: str
) -> None:
    version = registry.register(trained_model(tmp_path / "trained"), "key-1", "d", "0")
    altered = tmp_path / name
    altered.write_bytes((tmp_path / "trained" / name).read_bytes().replace(b"8", b"9") + b" ")
    client.log_artifact(version.run_id, str(altered), "model")
    with pytest.raises(BadModel, match=rf"{name}.*altered"):
        registry.fetch(version, tmp_path / "served")
    assert not (tmp_path / "served").exists()
    if name != "member-0.onnx":
        with pytest.raises(BadModel, match="altered"):
            registry.evaluation(version)


def test_a_card_exchanged_together_with_its_files_is_refused(
    registry: MlflowRegistry, client: Any, tmp_path: Path
) -> None:
    version = registry.register(trained_model(tmp_path / "trained"), "key-1", "d", "0")
    trained_model(tmp_path / "forged", seed=9)
    client.log_artifacts(version.run_id, str(tmp_path / "forged"), "model")
    with pytest.raises(BadModel, match=r"model\.json of version 1 is not the one that was registered"):
        registry.fetch(version, tmp_path / "served")


def test_an_artifact_too_large_is_refused_before_it_is_downloaded(
    registry: MlflowRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.register(trained_model(tmp_path / "trained"), "key-1", "d", "0")
    monkeypatch.setattr("registry.mlflow_artifacts.MAX_FILE_BYTES", 1_999)
    with pytest.raises(BadModel, match="has 2,000 bytes, 1,999 are accepted"):
        registry.fetch(version, tmp_path / "served")


def test_a_version_whose_run_was_emptied_is_no_model(registry: MlflowRegistry, tmp_path: Path) -> None:
    version = registry.register(trained_model(tmp_path / "trained"), "key-1", "d", "0")
    run = registry._calls.create_run(registry._calls.get_run(version.run_id).info.experiment_id)
    emptied = type(version)(version.name, version.version, run.info.run_id, "k", "0", version.labels)
    with pytest.raises(BadModel, match=r"holds no model/model\.json in MLflow"):
        registry.fetch(emptied, tmp_path / "served")


# ---------------------------------------------------------------- settings and silence


def test_a_server_that_is_away_is_named_within_seconds(tmp_path: Path, loop: str) -> None:
    with socket.socket() as held:  # bound but not listening: nobody else can answer there
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        away = MlflowRegistry(MlflowSettings(tracking_url=url, loop=loop))
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"MLflow at {url} did not answer .* is it running"):
            away.champion()
        assert time.monotonic() - began < 20


def test_settings_refuse_addresses_without_http_and_with_credentials() -> None:
    for url in ("sqlite:///mlflow.db", "localhost:5000", "http://"):
        with pytest.raises(BadSettings, match="must be http"):
            MlflowSettings(tracking_url=url, loop="cats")
    with pytest.raises(BadSettings, match="must not hold credentials") as caught:
        MlflowSettings(tracking_url="http://me:secret-word@host:5000", loop="cats")
    assert "secret-word" not in str(caught.value)
    with pytest.raises(BadSettings, match="loop name"):
        MlflowSettings(tracking_url="http://host", loop="Cats/Dogs")


def test_a_training_key_that_could_break_a_query_is_refused(registry: MlflowRegistry, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="training key"):
        registry.register(trained_model(tmp_path / "1"), "k' or '1'='1", "d", "0")
    assert registry.find("k' or '1'='1") is None


def test_missing_versions_are_told_from_a_server_that_is_away(registry: MlflowRegistry, tmp_path: Path) -> None:
    one = registry.register(trained_model(tmp_path / "1", 1), "key-1", "d", "0")
    ghost = type(one)(one.name, "99", "0" * 32, "k", "0", one.labels)
    with pytest.raises(Missing, match="99"):
        registry.promote(ghost, "why not")


def test_telemetry_and_progress_bars_are_off(registry: MlflowRegistry) -> None:
    registry.champion()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] == "false"

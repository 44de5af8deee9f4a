"""A whole training on real digits: values, determinism, what is refused, and what lies in the folder afterwards."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hardloop.core import errors, evaluations, images
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.model_files import ModelCard, file_digest, read_card, write_card
from hardloop.core.records import DatasetRow, Split, TrainedModel
from tests.training.conftest import LABELS
from training import datasets, recipes
from training.export import read_weights
from training.leakage import assemble, fold_of
from training.trainer import SUMMARY, train

ROOT = Path(__file__).parents[2]
FAST_CNN = {"views": 600, "min_epochs": 2, "max_epochs": 2, "committee": 0, "folds": 2}


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody reads."""


def answers(folder: Path, card: ModelCard, files: list[bytes], member: int = 0) -> list[np.ndarray]:
    """Logits and embeddings of images from a fresh ONNX Runtime session, as the predictor computes them."""
    pixels = np.stack([images.to_array(images.decode(f), card.width, card.height) for f in files])
    session = onnxruntime.InferenceSession(folder / card.members[member])
    return list(session.run(["logits", "embedding"], {"image": pixels}))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> tuple[TrainedModel, Path, DirectoryBlobs, str]:
    """A linear probe on 200 digits, with 30 audit and 400 legacy ones: model, folder, store and dataset key."""
    root = tmp_path_factory.mktemp("probe")
    blobs = DirectoryBlobs(root / "bucket")
    rows: list[DatasetRow] = []
    for split, chosen in (
        (Split.TRAIN, range(200)),
        (Split.HOLDOUT, range(200, 230)),
        (Split.LEGACY, range(800, 1200)),
    ):
        for i in chosen:
            row = digits.row(i, split)
            blobs.put(row.image_key, digits.files[i])
            rows.append(row)
    key = datasets.store(blobs, datasets.build("digits", tuple("0123456789"), assemble(rows)[0]))
    return train(blobs, key, "linear-probe", 0, root / "model", quiet), root / "model", blobs, key


class TestLinearProbe:
    def test_it_reads_unseen_digits(self, trained):
        model = trained[0]
        assert model.metrics["legacy/accuracy"] >= 0.94
        assert model.metrics["audit/accuracy"] >= 0.9
        assert (model.metrics["legacy/n"], model.metrics["audit/n"], model.metrics["mined/n"]) == (400, 30, 200)

    def test_out_of_fold_accuracy_is_honest_about_training_rows(self, trained):
        """A model scored on rows it trained on would be right on all of them."""
        model = trained[0]
        assert 0.85 <= model.metrics["mined/accuracy"] < 1.0
        assert abs(model.metrics["mined/accuracy"] - model.metrics["legacy/accuracy"]) < 0.06

    def test_probabilities_are_calibrated_by_the_audit_holdout(self, trained):
        model, folder, _, _ = trained
        assert model.params["temperature_from"] == "mined, audit"
        assert read_card(folder).temperature == pytest.approx(model.metrics["temperature"])
        assert model.metrics["legacy/ece"] < 0.1

    def test_the_served_network_gives_the_evaluated_probabilities(self, trained, digits):
        _, folder, _, _ = trained
        card = read_card(folder)
        found = evaluations.read((folder / evaluations.FILE).read_bytes())
        by_id = dict(zip(found.ids, found.probs_NC, strict=True))
        chosen = [205, 900, 1100]
        logits_NC, embedding_ND = answers(folder, card, [digits.files[i] for i in chosen])
        expected = np.stack([by_id[digits.row(i).sample_id] for i in chosen])
        np.testing.assert_allclose(recipes.softmax(logits_NC, card.temperature), expected, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(embedding_ND, axis=1), 1.0, atol=1e-5)

    def test_the_folder_is_complete_and_every_file_has_its_digest(self, trained):
        _, folder, _, _ = trained
        card = read_card(folder)
        expected = {"model.onnx", "member-1.onnx", "model.safetensors", "member-1.safetensors", SUMMARY}
        assert set(card.files) == expected | {evaluations.FILE}
        visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert visible == set(card.files) | {"model.json"}
        assert card.members == ("model.onnx", "member-1.onnx")

    def test_the_committee_disagrees_where_the_model_errs(self, trained, digits):
        """The second member is about as good, and where the two differ the first is wrong far more often."""
        _, folder, _, _ = trained
        rows = range(230, 1797)
        files, truth = [digits.files[i] for i in rows], np.array([int(digits.labels[i]) for i in rows])
        first, second = (answers(folder, read_card(folder), files, k)[0].argmax(axis=1) for k in (0, 1))
        differ = first != second
        assert 3 <= differ.sum() <= 60
        assert abs((first == truth).mean() - (second == truth).mean()) < 0.02
        assert (first[differ] != truth[differ]).mean() > 3 * (first != truth).mean()

    def test_training_again_elsewhere_gives_the_same_bytes(self, trained, tmp_path):
        _, folder, blobs, key = trained
        train(blobs, key, "linear-probe", 0, tmp_path / "again", quiet)
        assert read_card(tmp_path / "again") == read_card(folder)

    def test_another_seed_changes_the_second_member_alone(self, trained, tmp_path):
        _, folder, blobs, key = trained
        train(blobs, key, "linear-probe", 1, tmp_path / "other", quiet)
        ours, theirs = read_card(folder).files, read_card(tmp_path / "other").files
        assert ours["model.safetensors"] == theirs["model.safetensors"]
        assert ours["member-1.safetensors"] != theirs["member-1.safetensors"]

    def test_a_repeated_call_returns_the_model_that_is_there(self, trained):
        model, folder, blobs, key = trained
        before = (folder / "model.json").stat().st_mtime_ns
        assert train(blobs, key, "linear-probe", 0, folder, quiet) == model
        assert (folder / "model.json").stat().st_mtime_ns == before

    def test_a_folder_with_another_model_is_left_alone(self, trained):
        _, folder, blobs, key = trained
        before = file_digest(folder / "model.json")
        with pytest.raises(errors.Conflict, match="another training"):
            train(blobs, key, "linear-probe", 5, folder, quiet)
        assert file_digest(folder / "model.json") == before


def copied(folder: Path, to: Path) -> Path:
    """A finished model, to be meddled with."""
    return Path(shutil.copytree(folder, to))


def test_a_finished_training_is_recognised_by_another_version_of_torch(trained, tmp_path, monkeypatch):
    """The service does not know which version trained: the same training must not be a conflict after an update."""
    model, folder, blobs, key = trained
    before = file_digest(copied(folder, tmp_path / "m") / "model.json")
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    found = train(blobs, key, "linear-probe", 0, tmp_path / "m", quiet)
    assert (found.metrics, found.params) == (model.metrics, model.params)
    assert file_digest(tmp_path / "m" / "model.json") == before
    with pytest.raises(errors.Conflict, match="another training"):
        train(blobs, key, "linear-probe", 1, tmp_path / "m", quiet)


def test_fits_of_another_version_of_torch_are_not_continued(stored, folder_blobs, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop_at_third_fit(what: str, done: int, total: int) -> None:
        if what == "training" and done == 2:
            raise Stopped

    key = stored(range(40))
    with pytest.raises(Stopped):
        train(folder_blobs, key, "linear-probe", 0, tmp_path / "m", stop_at_third_fit)
    fit = tmp_path / "m" / ".training" / "member-0.safetensors"
    before = fit.stat().st_mtime_ns
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    with pytest.raises(Stopped):
        train(folder_blobs, key, "linear-probe", 0, tmp_path / "m", stop_at_third_fit)
    assert fit.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.json").write_bytes(b"{"),
        lambda folder: (folder / "model.onnx").write_bytes(b"cut off"),
        lambda folder: (folder / SUMMARY).unlink(),
    ],
    ids=["the card", "a network", "no summary"],
)
def test_a_damaged_model_is_trained_again_and_its_card_kept_aside(trained, tmp_path, damage):
    model, folder, blobs, key = trained
    damage(copied(folder, tmp_path / "m"))
    kept = (tmp_path / "m" / "model.json").read_bytes()
    assert train(blobs, key, "linear-probe", 0, tmp_path / "m", quiet).metrics == model.metrics
    assert read_card(tmp_path / "m") == read_card(folder)
    assert (tmp_path / "m" / ".model.json.damaged").read_bytes() == kept


@pytest.mark.parametrize("summary", [b"no JSON", b"[]", b'{"job": "1"}', b'{"job": "1", "params": {}}', None])
def test_a_whole_model_that_no_training_of_ours_left_is_not_touched(trained, tmp_path, summary):
    _, folder, blobs, key = trained
    card = read_card(copied(folder, tmp_path / "m"))
    files = {name: digest for name, digest in card.files.items() if name != SUMMARY}
    if summary is not None:
        (tmp_path / "m" / SUMMARY).write_bytes(summary)
        files[SUMMARY] = file_digest(tmp_path / "m" / SUMMARY)
    write_card(tmp_path / "m", card.model_copy(update={"files": files}))
    before = file_digest(tmp_path / "m" / "model.json")
    with pytest.raises(errors.Conflict, match="another training"):
        train(blobs, key, "linear-probe", 0, tmp_path / "m", quiet)
    assert file_digest(tmp_path / "m" / "model.json") == before


def test_a_cnn_training_gives_the_same_weights_twice_whatever_the_global_seed(stored, folder_blobs, tmp_path):
    key = stored(range(60), legacy=range(100, 140))
    torch.manual_seed(1)
    train(folder_blobs, key, "small-cnn", 3, tmp_path / "a", quiet, settings=FAST_CNN)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    train(folder_blobs, key, "small-cnn", 3, tmp_path / "b", quiet, settings=FAST_CNN)
    assert read_card(tmp_path / "a") == read_card(tmp_path / "b")
    assert torch.equal(state, torch.get_rng_state())


def test_a_cnn_embedding_space_is_named_by_its_weights(stored, folder_blobs, tmp_path):
    key = stored(range(40))
    for seed in (1, 2):
        train(folder_blobs, key, "small-cnn", seed, tmp_path / str(seed), quiet, settings=FAST_CNN)
    first, second = (read_card(tmp_path / str(seed)).encoder for seed in (1, 2))
    assert first.startswith("small-cnn-32-")
    assert first != second


def test_a_class_without_training_samples_gets_a_probability_near_zero(stored, folder_blobs, digits, tmp_path):
    chosen = [i for i in range(150) if digits.labels[i] != "7"]
    key = stored(chosen, audit=[i for i in range(200, 300) if digits.labels[i] != "7"][:40])
    model = train(folder_blobs, key, "linear-probe", 0, tmp_path / "model", quiet)
    found = evaluations.read((tmp_path / "model" / evaluations.FILE).read_bytes())
    assert found.probs_NC[:, 7].max() < 0.03
    assert model.metrics["train/support/7"] == 0
    assert model.metrics["audit/accuracy"] > 0.85


def test_a_few_audit_labels_hardly_move_the_temperature_of_the_out_of_fold_predictions(
    stored, folder_blobs, digits, tmp_path
):
    """The audit digits are ones that the model reads rightly: alone they would call for endless confidence."""
    bare = train(folder_blobs, stored(range(80)), "linear-probe", 0, tmp_path / "bare", quiet)
    assert bare.params["temperature_from"] == "mined"
    card = read_card(tmp_path / "bare")
    called = answers(tmp_path / "bare", card, [digits.files[i] for i in range(200, 260)])[0].argmax(axis=1)
    right = [200 + i for i, named in enumerate(called) if LABELS[named] == digits.labels[200 + i]][:20]
    model = train(folder_blobs, stored(range(80), audit=right), "linear-probe", 0, tmp_path / "audited", quiet)
    assert model.metrics["audit/accuracy"] == 1.0
    assert 0.7 < model.metrics["temperature"] / bare.metrics["temperature"] < 1.0
    assert model.params["temperature_from"] == "mined, audit"


def test_without_any_row_that_was_left_out_the_temperature_is_one(stored, folder_blobs, digits, tmp_path):
    """Two groups that fall into one fold: nothing is left to cross-fit with."""
    one_fold = [i for i in range(60) if fold_of(digits.row(i).group_id) == 0]
    model = train(folder_blobs, stored(one_fold), "linear-probe", 0, tmp_path / "m", quiet)
    assert (model.params["temperature_from"], model.metrics["temperature"]) == ("none", 1.0)


def test_one_class_alone_is_refused_by_its_name(stored, folder_blobs, digits, tmp_path):
    fours = [i for i in range(300) if digits.labels[i] == "4"]
    with pytest.raises(errors.BadData, match=f"all {len(fours)} training samples are labelled '4'"):
        train(folder_blobs, stored(fours), "linear-probe", 0, tmp_path / "model", quiet)


def test_no_training_rows_are_refused(stored, folder_blobs, tmp_path):
    with pytest.raises(errors.BadData, match="training split is empty"):
        train(folder_blobs, stored([], audit=range(10)), "linear-probe", 0, tmp_path / "model", quiet)


def test_unreadable_and_missing_images_are_named(stored, folder_blobs, digits, tmp_path):
    key = stored(range(40))
    cut, gone = digits.row(3), digits.row(5)
    folder_blobs.put(cut.image_key, digits.files[3][:40])
    folder_blobs.delete(gone.image_key)
    with pytest.raises(errors.BadImage, match="2 of 40") as refused:
        train(folder_blobs, key, "linear-probe", 0, tmp_path / "model", quiet)
    assert cut.sample_id in str(refused.value)
    assert f"{gone.sample_id} ({gone.image_key}) is not in the store" in str(refused.value)
    folder_blobs.put(cut.image_key, digits.files[3])
    folder_blobs.put(gone.image_key, digits.files[5])
    assert train(folder_blobs, key, "linear-probe", 0, tmp_path / "model", quiet).metrics["mined/n"] == 40


def test_a_training_row_that_copies_a_held_out_one_stops_the_run(digits, folder_blobs, tmp_path):
    rows = [digits.row(i) for i in range(20)]
    folded = [replace(row, fold=0) for row in rows]
    twin = replace(digits.row(20, Split.HOLDOUT), fingerprint=rows[4].fingerprint)
    key = datasets.store(folder_blobs, datasets.build("digits", tuple("0123456789"), [*folded, twin]))
    with pytest.raises(errors.Leakage, match=f"{rows[4].sample_id} and held-out sample {twin.sample_id}"):
        train(folder_blobs, key, "linear-probe", 0, tmp_path / "model", quiet)
    assert not (tmp_path / "model" / "model.json").exists()


def test_the_cache_spares_the_store_a_second_reading(stored, folder_blobs, tmp_path):
    key = stored(range(60))
    read: list[int] = []
    for name in ("first", "second"):
        counts = {"reading images": 0}
        train(
            folder_blobs, key, "linear-probe", 0, tmp_path / name,
            lambda what, done, total, counts=counts: counts.__setitem__(what, total), cache=tmp_path / "cache",
        )  # fmt: skip
        read.append(counts["reading images"])
    assert read == [60, 0]
    assert read_card(tmp_path / "first") == read_card(tmp_path / "second")


HOLD = """
import sys, time, pathlib
from training.trainer import _locked
with _locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_two_trainings_never_work_in_one_folder(stored, folder_blobs, tmp_path):
    key = stored(range(30))
    folder = tmp_path / "model"
    folder.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(errors.Conflict, match="another training works"):
            train(folder_blobs, key, "linear-probe", 0, folder, quiet)
        other.kill()  # the lock goes with the process that held it
        other.wait(20)
        assert train(folder_blobs, key, "linear-probe", 0, folder, quiet).metrics["mined/n"] == 30
    finally:
        other.kill()
        other.communicate()


def test_an_interrupted_training_is_continued_not_repeated(stored, folder_blobs, tmp_path):
    """Stops after the first two fits; the second call must not fit them again."""
    key = stored(range(40))

    class Stopped(Exception):
        pass

    def stop_at_third_fit(what: str, done: int, total: int) -> None:
        if what == "training" and done == 2:
            raise Stopped

    folder = tmp_path / "model"
    with pytest.raises(Stopped):
        train(folder_blobs, key, "linear-probe", 0, folder, stop_at_third_fit)
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / ".training").glob("member-*.safetensors")}
    assert set(kept) == {"member-0.safetensors", "member-1.safetensors"}
    changed: list[str] = []

    def watch(what: str, done: int, total: int) -> None:
        for path in (folder / ".training").glob("member-*.safetensors"):
            if path.stat().st_mtime_ns != kept[path.name]:
                changed.append(path.name)

    train(folder_blobs, key, "linear-probe", 0, folder, watch)
    assert not changed
    assert not (folder / ".training").exists()
    train(folder_blobs, key, "linear-probe", 0, tmp_path / "whole", quiet)
    assert read_card(folder) == read_card(tmp_path / "whole")


def test_the_summary_says_how_to_repeat_it(stored, folder_blobs, tmp_path):
    key = stored(range(40))
    train(folder_blobs, key, "linear-probe", 9, tmp_path / "m", quiet, settings={"committee": 2})
    params = json.loads((tmp_path / "m" / SUMMARY).read_text())["params"]
    assert params["seed"] == "9"
    assert params["recipe.committee"] == "2"
    assert params["recipe.size"] == "32"
    assert params["dataset"] == key
    assert read_weights(tmp_path / "m" / "member-2.safetensors")["linear.weight"].shape[0] == 10


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("resnet-50", {}, "choose one of linear-probe, small-cnn"),
        ("linear-probe", {"size": 7}, "setting 'size'"),
        ("small-cnn", {"epochs": 3}, "its settings are size, views"),
    ],
)
def test_unknown_recipes_and_settings_are_named(stored, folder_blobs, tmp_path, name, settings, said):
    with pytest.raises(errors.BadSettings, match=said):
        train(folder_blobs, stored(range(20)), name, 0, tmp_path / "m", quiet, settings=settings)

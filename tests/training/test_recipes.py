"""The recipes' arithmetic: the optimum is the optimum, members differ, a checkpoint continues bit for bit."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hardloop.core.errors import BadData, BadModel
from training import recipes
from training.checkpoints import Checkpoint
from training.evaluation import calibration_error, metrics
from training.export import rebuild
from training.leakage import fold_of
from training.linear_probe import _Problem
from training.recipe import Examples, generator, logits
from training.small_cnn import SmallCnnConfig, augment, to_planes

NOWHERE = Checkpoint(None, "")
SMALL = {"views": 400, "min_epochs": 4, "max_epochs": 4}


@pytest.fixture(scope="module")
def probe_data(digits):
    """The first 150 digits to train on, 300 others to score."""
    recipe = recipes.named("linear-probe")
    inputs = recipes.prepare(recipe, digits.files[:450], 32)
    truth = np.array([int(label) for label in digits.labels[:450]])
    folds = np.array([fold_of(str(i)) for i in range(150)])
    return Examples(inputs[:150], truth[:150], folds, 10), inputs[150:], truth[150:]


@pytest.fixture(scope="module")
def pixel_data(digits):
    recipe = recipes.named("small-cnn")
    inputs = recipes.prepare(recipe, digits.files[:80], 32)
    truth = np.array([int(label) for label in digits.labels[:80]])
    return Examples(inputs, truth, np.arange(80) % 5, 10)


class TestLinearProbe:
    def test_it_finds_the_optimum_scikit_learn_finds(self, probe_data):
        examples, test, _ = probe_data
        recipe = recipes.named("linear-probe")
        ours = recipe.fit(examples, {"l2": 1e-3}, 0, 0, NOWHERE)
        rows = examples.inputs.astype(np.float64)
        variance = rows.var(axis=0)
        scale = np.sqrt((variance + variance.mean()) / 2 * rows.shape[1])
        mean = rows.mean(axis=0)
        reference = LogisticRegression(C=1 / (1e-3 * len(rows)), tol=1e-8, max_iter=2000)
        reference.fit((rows - mean) / scale, examples.labels_N)
        expected = reference.predict_proba((test - mean) / scale)
        found = recipes.softmax(logits(recipe.body(10, 32), ours, test, 10))
        np.testing.assert_allclose(found, expected, atol=0.01)  # ours also holds the bias back a little

    def test_fewer_rows_than_features_give_the_same_as_solving_in_full(self, probe_data):
        """Rotating into the span of the rows must not change the solution: compare with rows doubled past D."""
        examples, _, _ = probe_data
        few = _Problem(examples)
        many = _Problem(
            Examples(np.tile(examples.inputs, (5, 1)), np.tile(examples.labels_N, 5), np.zeros(750, dtype=int), 10)
        )
        left = few.weights(few.solve(np.ones(150), 1e-3, None, 1e-8))
        right = many.weights(many.solve(np.ones(750), 1e-3, None, 1e-8))
        torch.testing.assert_close(left["linear.weight"], right["linear.weight"], atol=2e-3, rtol=1e-3)

    def test_the_penalty_that_predicts_left_out_folds_best_is_chosen(self, probe_data):
        examples, _, _ = probe_data
        recipe = recipes.named("linear-probe", {"strengths": (10.0, 1e-4)})
        assert recipe.tune(examples, 0) == {"l2": 1e-4}
        noise = Examples(examples.inputs, np.random.default_rng(0).permutation(examples.labels_N), examples.folds_N, 10)
        assert recipe.tune(noise, 0) == {"l2": 10.0}

    def test_one_fold_alone_leaves_the_middle_penalty(self, probe_data):
        examples, _, _ = probe_data
        alone = Examples(examples.inputs, examples.labels_N, np.zeros(150, dtype=np.int64), 10)
        assert recipes.named("linear-probe", {"strengths": (1e-2, 1e-3, 1e-4)}).tune(alone, 0) == {"l2": 1e-3}

    def test_it_scores_as_measured(self, probe_data):
        examples, test, truth = probe_data
        probs = recipes.fit_and_score(recipes.named("linear-probe"), examples, test, 32, seed=0)
        np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-12)
        assert (probs.argmax(axis=1) == truth).mean() > 0.93

    def test_members_are_differently_weighted_and_repeatable(self, probe_data):
        examples, _, _ = probe_data
        recipe = recipes.named("linear-probe")
        fits = [recipe.fit(examples, {"l2": 1e-3}, 0, k, NOWHERE)["linear.weight"] for k in (0, 1, 2, 1)]
        assert torch.equal(fits[1], fits[3])
        assert (fits[0] - fits[1]).abs().max() > 0.01
        assert (fits[1] - fits[2]).abs().max() > 0.01

    def test_weights_of_another_class_count_are_refused(self, probe_data):
        examples, _, _ = probe_data
        recipe = recipes.named("linear-probe")
        weights = recipe.fit(examples, {"l2": 1e-2}, 0, 0, NOWHERE)
        with pytest.raises(BadModel, match="linear-probe with 7 classes"):
            rebuild(recipe, weights, 7, 32)

    def test_one_class_is_refused_with_its_count(self, probe_data):
        examples, test, _ = probe_data
        with pytest.raises(BadData, match="at least two classes"):
            recipes.fit_and_score(recipes.named("linear-probe"), examples.where(examples.labels_N == 3), test, 32, 0)


class TestSmallCnn:
    def test_a_checkpoint_continues_to_the_same_bits(self, pixel_data, tmp_path):
        recipe = recipes.named("small-cnn", SMALL)
        tuned = recipe.tune(pixel_data, 0)
        assert tuned == {"epochs": 4}
        whole = recipe.fit(pixel_data, tuned, 5, 0, NOWHERE)

        class Interrupted(Exception):
            pass

        class StopsAfterTwo(Checkpoint):
            def save(self, tensors, state):
                super().save(tensors, state)
                if state["epoch"] == 2:
                    raise Interrupted

        path = tmp_path / "fit.safetensors"
        with pytest.raises(Interrupted):
            recipe.fit(pixel_data, tuned, 5, 0, StopsAfterTwo(path, "job"))
        continued = recipe.fit(pixel_data, tuned, 5, 0, Checkpoint(path, "job"))
        assert all(torch.equal(whole[name], continued[name]) for name in whole)

    def test_another_jobs_or_a_damaged_checkpoint_is_not_continued(self, pixel_data, tmp_path):
        recipe = recipes.named("small-cnn", SMALL | {"max_epochs": 1, "min_epochs": 1})
        path = tmp_path / "fit.safetensors"
        expected = recipe.fit(pixel_data, {"epochs": 1}, 5, 0, NOWHERE)
        recipe.fit(pixel_data, {"epochs": 1}, 6, 0, Checkpoint(path, "other"))
        for spoil in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:500])):
            spoil()
            found = recipe.fit(pixel_data, {"epochs": 1}, 5, 0, Checkpoint(path, "mine"))
            assert all(torch.equal(expected[name], found[name]) for name in expected)

    def test_epochs_follow_from_the_number_of_rows(self, pixel_data):
        recipe = recipes.named("small-cnn", {"views": 1600, "min_epochs": 3, "max_epochs": 15})
        assert recipe.tune(pixel_data, 0) == {"epochs": 15}
        assert recipes.named("small-cnn", {"views": 800}).tune(pixel_data, 0) == {"epochs": 10}

    def test_augmentation_moves_images_but_keeps_them_recognisable(self, digits):
        pixels = recipes.prepare(recipes.named("small-cnn"), digits.files[:16], 32)
        planes = to_planes(torch.from_numpy(pixels))
        changed = augment(planes, SmallCnnConfig(), generator(0))
        assert torch.equal(changed, augment(planes, SmallCnnConfig(), generator(0)))
        together = np.array([np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(planes, changed, strict=True)])
        assert (together > 0.6).all()
        assert (together < 0.9999).all()

    def test_nothing_is_changed_where_all_changes_are_off_but_light(self):
        config = SmallCnnConfig(rotation_deg=0, shift=0, zoom=0)
        planes = torch.rand(2, 3, 16, 16, generator=generator(1))
        changed = augment(planes, config, generator(2))
        for a, b in zip(planes, changed, strict=True):
            slope, offset = np.polyfit(a.flatten().numpy(), b.flatten().numpy(), 1)
            np.testing.assert_allclose(b.numpy(), slope * a.numpy() + offset, atol=1e-5)
            assert 0.8 <= slope <= 1.2
            assert -0.1 <= offset <= 0.1


@pytest.mark.parametrize(("sides", "size"), [([8, 8, 8], 32), ([28] * 5 + [500], 32), ([128, 171, 300], 48), ([], 32)])
def test_the_input_size_follows_the_median_image(sides, size):
    assert recipes.choose_size(sides) == size


def test_streams_of_different_purposes_do_not_meet():
    draws = {float(torch.rand(1, generator=generator(*key))) for key in ((0, "a"), (0, "b"), (1, "a"), (0, "a", 1))}
    assert len(draws) == 4


class TestEvaluation:
    def test_calibration_error_by_hand(self):
        """Two answers at 0.9, one right: gap 0.4 on half the rows; two at 0.6, both right: gap 0.4 on the others."""
        probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
        assert calibration_error(probs, np.array([0, 1, 0, 0])) == pytest.approx(0.4)

    def test_metrics_by_hand(self):
        from hardloop.core.records import Evaluation

        probs = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
        found = metrics(Evaluation(("a", "b", "c"), np.array([0, 1, 1]), probs, ("audit",) * 3), ("x", "y", "z"))
        assert found["audit/accuracy"] == pytest.approx(2 / 3)
        assert found["audit/nll"] == pytest.approx(-np.log([0.8, 0.3, 0.7]).mean())
        assert (found["audit/recall/x"], found["audit/recall/y"]) == (1.0, 0.5)
        assert (found["audit/precision/x"], found["audit/precision/y"]) == (0.5, 1.0)
        assert found["audit/support/z"] == 0
        assert "audit/recall/z" not in found
        assert "audit/precision/z" not in found

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.calibration import auroc, fit_temperature, lam_from_auroc
from miner.uncertainty import tempered


def sampled(temperature: float, n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are overconfident by exactly `temperature`, and truths drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet(np.ones(4), size=n)
    truth = np.array([rng.choice(4, p=row) for row in honest])
    return tempered(honest, 1.0 / temperature), truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_a_model_overconfident_is_found_again(temperature):
    probs, truth = sampled(temperature)
    assert fit_temperature(probs, truth, 50) == pytest.approx(temperature, rel=0.08)


@given(st.integers(0, 1000), st.integers(50, 80))
def test_an_audit_without_a_mistake_does_not_make_the_model_sure_of_everything(seed, n):
    probs = np.random.default_rng(seed).dirichlet(np.ones(4), size=n)
    assert 0.3 < fit_temperature(probs, probs.argmax(axis=1), 50) < 1.0


def test_classes_the_model_gives_no_chance_at_all_are_no_obstacle():
    probs = np.tile(np.array([0.8, 0.2, 0.0], dtype=np.float32), (50, 1))
    assert fit_temperature(probs, np.array([0] * 40 + [1] * 10), 50) == pytest.approx(1.0)


def test_too_few_audit_labels_leave_the_temperature_at_one():
    probs, truth = sampled(2.5, n=49)
    assert fit_temperature(probs, truth, 50) == 1.0


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_the_share_of_pairs_in_the_right_order(pairs):
    score = np.array([s for s, _ in pairs], dtype=float)
    positive = np.array([p for _, p in pairs])
    up, down = score[positive], score[~positive]
    found = auroc(score, positive)
    if not len(up) or not len(down):
        assert np.isnan(found)
    else:
        wins = (up[:, None] > down[None, :]).mean() + 0.5 * (up[:, None] == down[None, :]).mean()
        assert found == pytest.approx(wins)


def test_lam_rises_from_chance_to_three_quarters():
    assert [lam_from_auroc(a) for a in (0.3, 0.5, 0.625, 0.75, 0.9)] == [0.0, 0.0, 0.5, 1.0, 1.0]

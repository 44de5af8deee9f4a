"""The descriptor: what it measures, that it is fixed, and that it beats raw pixels where labels are few."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from hardloop.core import images
from hardloop.core.errors import BadImage, BadInput
from training.descriptor import BuiltInEncoder, Descriptor, describe


@pytest.fixture(scope="module")
def network() -> Descriptor:
    return Descriptor(32).eval()


def noise(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_rows_have_unit_length_even_for_flat_images(network):
    flat = np.stack([np.full((32, 32, 3), level, dtype=np.uint8) for level in (0, 128, 255)])
    rows_ND = describe(network, np.concatenate([noise(5), flat]))
    assert rows_ND.shape == (8, Descriptor.DIMENSION)
    assert rows_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1.0, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(network):
    pixels = noise(9)
    whole = describe(network, pixels)
    np.testing.assert_allclose(describe(network, pixels, batch=4), whole, atol=1e-6)
    np.testing.assert_allclose(describe(network, pixels[3:4])[0], whole[3], atol=1e-6)


def test_a_new_instance_measures_the_same(network):
    np.testing.assert_array_equal(describe(network, noise(3)), describe(Descriptor(32).eval(), noise(3)))
    assert not list(network.parameters())


def test_an_edge_is_counted_in_its_direction_and_place(network):
    """Dark left, bright right: the gradient points right (bin 0 of 8), in the middle columns of the 7 x 7 grid."""
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    pixels[:, :, 16:] = 200
    fine = describe(network, pixels)[0, : 8 * 49].reshape(8, 7, 7)
    assert np.unravel_index(fine.argmax(), fine.shape)[::2] == (0, 3)
    assert fine[0, :, 3].min() > 20 * fine[4].max()
    turned = describe(network, np.ascontiguousarray(pixels.transpose(0, 2, 1, 3)))[0, : 8 * 49].reshape(8, 7, 7)
    np.testing.assert_allclose(turned[2].T, fine[0], atol=1e-5)


def test_colour_alone_tells_two_shirts_apart(network):
    """Equal luma, different hue: the shape part is the same, the rest is not."""
    shirts = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    shirts[0, 8:24, 8:24] = (200, 0, 0)
    shirts[1, 8:24, 8:24] = (0, 102, 0)
    rows = describe(network, shirts)
    shapes = rows[:, : 8 * 65] / np.linalg.norm(rows[:, : 8 * 65], axis=1, keepdims=True)
    assert shapes[0] @ shapes[1] > 0.999
    assert rows[0] @ rows[1] < 0.95


def test_a_small_shift_moves_it_less_than_another_picture_does(network, digits):
    pixels = np.stack([images.to_array(images.decode(f), 32, 32) for f in digits.files[:40]])
    rows, shifted = describe(network, pixels), describe(network, np.roll(pixels, 1, axis=2))
    own = (rows * shifted).sum(axis=1)
    others = rows @ rows.T - 2 * np.eye(len(rows))
    assert (own > others.max(axis=1)).mean() > 0.9


def test_with_few_labels_it_beats_the_principal_components_of_the_pixels(network, digits):
    pixels = np.stack([images.to_array(images.decode(f), 32, 32) for f in digits.files])
    truth = np.array([int(label) for label in digits.labels])
    flat = pixels.reshape(len(pixels), -1) / 255.0
    features = {"pixels": PCA(64, random_state=0).fit_transform(flat), "descriptor": describe(network, pixels)}
    scores = {}
    for name, rows in features.items():
        standard = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0).mean() * rows.shape[1])
        fits = [LogisticRegression(C=c, max_iter=500).fit(standard[:100], truth[:100]) for c in (30, 300)]
        scores[name] = max((fit.predict(standard[600:]) == truth[600:]).mean() for fit in fits)
    assert scores["descriptor"] > scores["pixels"] + 0.03
    assert scores["descriptor"] > 0.9


def test_the_encoder_takes_files_of_any_size_and_format(digits):
    encoder = BuiltInEncoder(size=32, batch=2)
    grey = images.encode_png(np.arange(100 * 60, dtype=np.uint16).reshape(100, 60).astype(np.uint8))
    rows = encoder.encode([digits.files[0], grey, digits.files[1]])
    assert rows.shape == (3, Descriptor.DIMENSION)
    np.testing.assert_allclose(rows[2], encoder.encode([digits.files[1]])[0], atol=1e-6)
    assert encoder.encode([]).shape == (0, Descriptor.DIMENSION)


def test_the_encoder_names_the_image_it_cannot_read(digits):
    with pytest.raises(BadImage, match="image 3"):
        BuiltInEncoder(size=32, batch=2).encode([*digits.files[:3], digits.files[3][:20]])


def test_spaces_of_different_input_size_have_different_names():
    assert BuiltInEncoder(size=32).version != BuiltInEncoder(size=48).version


@pytest.mark.parametrize("size", [8, 33])
def test_sizes_it_cannot_divide_are_refused(size):
    with pytest.raises(BadInput, match=f"input size {size}"):
        Descriptor(size)

"""What is exported answers like what was trained, in a session of its own, and a file that does not is refused."""

import numpy as np
import onnxruntime
import pytest
import torch

from hardloop.core.errors import BadModel, ExportMismatch
from hardloop.core.model_files import read_card
from training import recipes
from training.export import check_equal, read_weights, rebuild, to_onnx, write_model
from training.recipe import Network, Weights, generator

LABELS = ("a", "b", "c")


def random_weights(name: str, seed: int = 0) -> tuple[Network, Weights]:
    """A network of the recipe with drawn weights, batch statistics included."""
    recipe = recipes.named(name)
    stream = generator(seed)
    network = Network(recipe.front(32), recipe.body(3, 32)).eval()
    for tensor in network.body.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=stream) * 0.4 + 0.1)
    return network, {key: value.clone() for key, value in network.body.state_dict().items()}


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("recipe", recipes.NAMES)
@pytest.mark.parametrize("n", [1, 5, 64])
def test_a_fresh_session_answers_like_torch_for_any_batch(recipe, n, tmp_path):
    network, _ = random_weights(recipe)
    (tmp_path / "model.onnx").write_bytes(to_onnx(network, 32))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(["logits", "embedding"], {"image": pixels(n)})
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels(n)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("recipe", recipes.NAMES)
def test_the_folder_holds_the_same_weights_twice(recipe, tmp_path):
    members = [random_weights(recipe, seed)[1] for seed in (0, 1)]
    exported = write_model(tmp_path, recipes.named(recipe), LABELS, 32, members, 1.5, pixels(4), {"note.txt": b"hello"})
    card = read_card(tmp_path)
    assert card == exported.card
    assert set(card.files) == {
        "model.onnx", "model.safetensors", "member-1.onnx", "member-1.safetensors", "note.txt",
    }  # fmt: skip
    assert (card.labels, card.width, card.height, card.temperature) == (LABELS, 32, 32, 1.5)
    for stem, weights in zip(("model", "member-1"), members, strict=True):
        kept = read_weights(tmp_path / f"{stem}.safetensors")
        assert all(torch.equal(kept[name], weights[name]) for name in weights)
        again = rebuild(recipes.named(recipe), kept, 3, 32)
        assert check_equal(again, tmp_path / f"{stem}.onnx", pixels(8)) < 1e-5


def test_an_onnx_file_of_other_weights_is_refused(tmp_path):
    ours, theirs = random_weights("linear-probe", 0)[0], random_weights("linear-probe", 1)[0]
    (tmp_path / "model.onnx").write_bytes(to_onnx(theirs, 32))
    with pytest.raises(ExportMismatch, match=r"model.onnx: logits differs from the trained network by"):
        check_equal(ours, tmp_path / "model.onnx", pixels(2))


def test_weights_that_are_not_finite_never_become_a_model(tmp_path):
    _, weights = random_weights("linear-probe")
    weights["linear.bias"][1] = float("nan")
    with pytest.raises(ExportMismatch):
        write_model(tmp_path, recipes.named("linear-probe"), LABELS, 32, [weights], 1.0, pixels(2), {})
    with pytest.raises(BadModel, match=r"model.json is missing"):
        read_card(tmp_path)

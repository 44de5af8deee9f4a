"""A trained network as files: ONNX for serving, safetensors for keeping, and proof that ONNX answers like torch."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from hardloop.core.errors import BadModel, ExportMismatch
from hardloop.core.model_files import ModelCard, file_digest, write_card
from training.checkpoints import write_atomically
from training.recipe import Network, Recipe, Weights

# Read when the runtime is loaded: from 1.29 on it reports its use to its maker unless told not to (0 allows it).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

OPSET = 17  # read by ONNX Runtime 1.13 (2022) and everything after it
# Largest difference of one logit or embedding entry, per unit of the largest magnitude in the same output. Two float32
# evaluations of one network in different orders of summation differ by about 1e-6; a wrong operator by far more.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Exported:
    """What `write_model` leaves in a folder beside the card. difference: the largest found by the check, relative."""

    card: ModelCard
    difference: float


def write_model(
    folder: Path,
    recipe: Recipe,
    labels: tuple[str, ...],
    size: int,
    members: list[Weights],
    temperature: float,
    pixels_NHWC: NDArray[np.uint8],
    others: dict[str, bytes],
) -> Exported:
    """Write every file of a model folder, check each network on real images, and write the card last.

    members: the model's own weights first. pixels_NHWC: at least one real image. others: further files by name.
    Raises ExportMismatch when an ONNX file does not answer like the torch network it was made from.
    """
    names, difference = [], 0.0
    for k, weights in enumerate(members):
        stem = f"member-{k}" if k else "model"
        network = rebuild(recipe, weights, len(labels), size)
        write_atomically(folder / f"{stem}.onnx", to_onnx(network, size))
        write_atomically(folder / f"{stem}.safetensors", save(weights, metadata={"recipe": recipe.name}))
        difference = max(difference, check_equal(network, folder / f"{stem}.onnx", pixels_NHWC))
        names.append(stem)
    for name, data in others.items():
        write_atomically(folder / name, data)
    files = [f"{stem}.{suffix}" for stem in names for suffix in ("onnx", "safetensors")] + list(others)
    card = ModelCard(
        recipe=recipe.name,
        labels=labels,
        width=size,
        height=size,
        encoder=recipe.encoder(size, members[0]),
        temperature=temperature,
        members=tuple(f"{stem}.onnx" for stem in names),
        files={name: file_digest(folder / name) for name in sorted(files)},
    )
    write_card(folder, card)
    return Exported(card, difference)


def rebuild(recipe: Recipe, weights: Weights, n_classes: int, size: int) -> Network:
    """The whole network, ready to answer. Raises BadModel where the weights are not this recipe's."""
    body = recipe.body(n_classes, size)
    try:
        body.load_state_dict(weights)
    except RuntimeError:
        raise BadModel(
            f"these weights are not those of a {recipe.name} with {n_classes} classes: check recipe and labels"
        ) from None
    network = Network(recipe.front(size), body)
    network.eval()
    return network


def read_weights(path: Path) -> Weights:
    """The weights of one member, from its safetensors file."""
    weights: Weights = load_file(path)
    return weights


def to_onnx(network: Network, size: int) -> bytes:
    """One self-contained ONNX file: input `image`, outputs `logits` and `embedding`, batch size free.

    It is made by torch's tracing exporter. The newer one (dynamo) gives the same answers in 2 to 5 s instead of 0.2,
    and these networks have no control flow that tracing could lose.
    """
    out = io.BytesIO()
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's note that the newer one exists
        torch.onnx.export(
            network,
            (example,),
            out,  # type: ignore[arg-type]
            input_names=["image"],
            output_names=["logits", "embedding"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return out.getvalue()


def check_equal(network: Network, path: Path, pixels_NHWC: NDArray[np.uint8]) -> float:
    """The largest relative difference between torch and ONNX Runtime on the images, alone and as one batch.

    Raises ExportMismatch above TOLERANCE, or when an answer is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for part in (pixels_NHWC[:1], pixels_NHWC):
        answers = session.run(["logits", "embedding"], {"image": part})
        with torch.inference_mode():
            expected = network(torch.from_numpy(part))
        for name, answer, truth in zip(("logits", "embedding"), answers, expected, strict=True):
            reference = truth.numpy()
            scale = max(1.0, float(np.abs(reference).max()))
            difference = float(np.abs(answer - reference).max()) / scale if answer.shape == reference.shape else np.inf
            if not difference <= TOLERANCE:
                raise ExportMismatch(
                    f"{path.name}: {name} differs from the trained network by {difference:.2g} on {len(part)} images, "
                    f"more than {TOLERANCE:g}: do not deploy it; report the versions of torch and onnxruntime"
                )
            worst = max(worst, difference)
    return worst

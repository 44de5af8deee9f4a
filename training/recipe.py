"""What a recipe is: how images become numbers, how numbers become weights, and the network that holds both."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from hardloop.core.records import Floats
from training.checkpoints import Checkpoint

Weights = dict[str, Tensor]
Inputs = NDArray[np.float32] | NDArray[np.uint8]
_BATCH = 128  # activations of a batch this small stay in the CPU's cache


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Labelled training rows, N of them, in order of sample id.

    inputs: what the recipe's `front` makes of the images, (N, ...). labels_N: class index. folds_N: fold by group; rows
    of one fold stand or fall together when a setting is tuned.
    """

    inputs: Inputs
    labels_N: NDArray[np.int64]
    folds_N: NDArray[np.int64]
    n_classes: int

    def where(self, chosen_N: NDArray[np.bool_]) -> "Examples":
        """The chosen rows."""
        return Examples(self.inputs[chosen_N], self.labels_N[chosen_N], self.folds_N[chosen_N], self.n_classes)


class Recipe(Protocol):
    """A way to train. `front` is fixed and turns images into inputs; `body` is learnt and answers logits, embedding."""

    @property
    def name(self) -> str:
        """The name users write."""
        ...

    @property
    def config(self) -> BaseModel:
        """Its settings; they go into the run's parameters."""
        ...

    @property
    def size(self) -> int | None:
        """Side of the square input in pixels; None: chosen from the images by `inputs.choose_size`."""
        ...

    @property
    def folds(self) -> int:
        """Parts of the cross-fitting that scores training rows: 2 to 5."""
        ...

    @property
    def committee(self) -> int:
        """Further members trained beside the model, differently seeded; their disagreement is a mining signal."""
        ...

    def space(self, size: int) -> str:
        """Names what `front` makes of an image: equal names, equal inputs."""
        ...

    def front(self, size: int) -> nn.Module:
        """uint8 (N, size, size, 3) RGB to inputs. Deterministic, nothing learnt."""
        ...

    def body(self, n_classes: int, size: int) -> nn.Module:
        """Inputs to (logits (N, n_classes), embedding (N, D)), with weights to be loaded."""
        ...

    def encoder(self, size: int, weights: Weights) -> str:
        """Names the embedding's space."""
        ...

    def tune(self, examples: Examples, seed: int) -> Mapping[str, float]:
        """Settings found from the training rows alone; handed to `fit`, and into the run's parameters."""
        ...

    def fit(
        self, examples: Examples, tuned: Mapping[str, float], seed: int, member: int, checkpoint: Checkpoint
    ) -> Weights:
        """Weights of `body`. Continues from the checkpoint if it holds an interrupted fit, to the very same result.

        member: 0 is the model itself; each further one sees the same rows through another draw.
        """
        ...


class Network(nn.Module):
    """A whole model: uint8 (N, size, size, 3) RGB in, (logits, embedding) out."""

    def __init__(self, front: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.body = body

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        answer: tuple[Tensor, Tensor] = self.body(self.front(image))
        return answer


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A random stream of its own for each purpose, so that no draw depends on how many others were made before."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


@contextmanager
def own_stream() -> Iterator[None]:
    """Leaves torch's global random stream as it was found: layers draw from it before our weights replace theirs."""
    with torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def deterministic() -> Iterator[None]:
    """Only algorithms that give the same bits every time; the process's setting is put back afterwards.

    Not for fits without torch's autograd: the first call imports a compiler, which takes a second.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def apply_front(front: nn.Module, pixels_NHWC: NDArray[np.uint8]) -> Inputs:
    """What `front` makes of N images, N >= 1, in batches."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels_NHWC), _BATCH):
            parts.append(front(torch.from_numpy(pixels_NHWC[start : start + _BATCH])).numpy())
    joined: Inputs = np.concatenate(parts)
    return joined


def logits(body: nn.Module, weights: Weights, inputs: Inputs, n_classes: int) -> Floats:
    """(N, n_classes) float64 logits of prepared inputs."""
    body.load_state_dict(weights)
    body.eval()
    parts: list[NDArray[Any]] = [np.empty((0, n_classes), dtype=np.float64)]
    with torch.inference_mode():
        for start in range(0, len(inputs), _BATCH):
            parts.append(body(torch.from_numpy(inputs[start : start + _BATCH]))[0].double().numpy())
    return np.concatenate(parts)


def weights_digest(weights: Weights) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all weights, in order of their names."""
    whole = hashlib.sha256()
    for name in sorted(weights):
        whole.update(name.encode())
        whole.update(weights[name].contiguous().numpy().tobytes())
    return whole.hexdigest()[:12]

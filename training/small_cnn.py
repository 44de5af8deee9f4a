"""Recipe `small-cnn`: a small residual-free convolutional network, trained from scratch with augmentation.

The embedding is the penultimate layer, so every trained model has an embedding space of its own.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoints import Checkpoint, Saved
from training.recipe import Examples, Weights, deterministic, generator, weights_digest

_WIDTHS = (16, 32, 64, 128)


class SmallCnnConfig(BaseModel):
    """Settings of `small-cnn`.

    views: about how many augmented images one fit sees; epochs follow from it and the number of rows, within
    [min_epochs, max_epochs]. rotation_deg, shift, zoom: largest random change, the latter two as parts of the image.
    flip: mirror left to right; leave it off where that changes the meaning, as with digits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=16, le=256, multiple_of=8)] | None = None
    views: Annotated[int, Field(ge=1)] = 12_000
    min_epochs: Annotated[int, Field(ge=1)] = 8
    max_epochs: Annotated[int, Field(ge=1)] = 60
    batch: Annotated[int, Field(ge=2, le=4096)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 10.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.08
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.1
    flip: bool = False
    folds: Annotated[int, Field(ge=2, le=5)] = 3
    committee: Annotated[int, Field(ge=0, le=7)] = 1


class ConvNet(nn.Module):
    """uint8 (N, size, size, 3) RGB to (logits (N, C), embedding (N, 128))."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, width in enumerate(_WIDTHS):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if i < len(_WIDTHS) - 1:
                layers.append(nn.MaxPool2d(2))
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, n_classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.from_planes(to_planes(pixels))

    def from_planes(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """The same from float (N, 3, size, size), where augmentation has been."""
        embedding = self.features(planes).mean(dim=(2, 3))
        return self.classifier(embedding), embedding


class SmallCnn:
    """The recipe, see `recipe.Recipe`."""

    name = "small-cnn"

    def __init__(self, config: SmallCnnConfig) -> None:
        self.config = config
        self.size = config.size
        self.folds = config.folds
        self.committee = config.committee

    def space(self, size: int) -> str:
        return f"pixels-{size}"

    def front(self, size: int) -> nn.Module:  # noqa: ARG002
        return nn.Identity()

    def body(self, n_classes: int, size: int) -> nn.Module:  # noqa: ARG002
        return ConvNet(n_classes)

    def encoder(self, size: int, weights: Weights) -> str:
        return f"{self.name}-{size}-{weights_digest(weights)}"

    def tune(self, examples: Examples, seed: int) -> Mapping[str, float]:  # noqa: ARG002
        """The number of epochs, from the number of rows; nothing is searched for."""
        wanted = round(self.config.views / len(examples.labels_N))
        return {"epochs": min(max(wanted, self.config.min_epochs), self.config.max_epochs)}

    def fit(
        self, examples: Examples, tuned: Mapping[str, float], seed: int, member: int, checkpoint: Checkpoint
    ) -> Weights:
        """AdamW under a one-cycle learning rate; a checkpoint after every epoch holds everything the next one needs."""
        with deterministic():
            fit = _Fit(examples, self.config, int(tuned["epochs"]), generator(seed, "small-cnn", member))
            saved = checkpoint.load()
            if saved is not None:
                fit.restore(saved)
            while fit.epoch < fit.epochs:
                fit.run_epoch()
                checkpoint.save(fit.tensors(), {"epoch": fit.epoch})
            return fit.weights()


class _Fit:
    """One fit in progress: network, optimiser, random stream and position, all of which a checkpoint holds."""

    def __init__(self, examples: Examples, config: SmallCnnConfig, epochs: int, stream: torch.Generator) -> None:
        self._pixels = torch.from_numpy(examples.inputs)
        self._labels_N = torch.from_numpy(examples.labels_N)
        self._config = config
        self._stream = stream
        self.epochs = epochs
        self.epoch = 0
        self._network = ConvNet(examples.n_classes)
        _initialise(self._network, stream)
        self._optimiser = torch.optim.AdamW(self._network.parameters(), weight_decay=config.weight_decay)

    def run_epoch(self) -> None:
        """Every row once, in a new order and a new view. A last batch of one joins the batch before it."""
        self._network.train()
        n = len(self._labels_N)
        order_N = torch.randperm(n, generator=self._stream)
        steps = max(1, n // self._config.batch)
        for step, rows in enumerate(torch.tensor_split(order_N, steps)):
            progress = (self.epoch + step / steps) / self.epochs
            for group in self._optimiser.param_groups:
                group["lr"] = self._config.learning_rate * _one_cycle(progress)
            planes = augment(to_planes(self._pixels[rows]), self._config, self._stream)
            loss = functional.cross_entropy(self._network.from_planes(planes)[0], self._labels_N[rows])
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        self.epoch += 1

    def weights(self) -> Weights:
        """The network's weights, detached from training."""
        return {name: value.detach().clone() for name, value in self._network.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `restore` needs besides the epoch."""
        moments = {
            f"optimiser.{i}.{name}": value
            for i, state in self._optimiser.state_dict()["state"].items()
            for name, value in state.items()
        }
        weights = {f"network.{name}": value for name, value in self.weights().items()}
        return {**weights, **moments, "stream": self._stream.get_state()}

    def restore(self, saved: Saved) -> None:
        """Continue where a checkpoint was taken."""
        optimiser = self._optimiser.state_dict()
        optimiser["state"] = {}
        weights: Weights = {}
        for key, value in saved.tensors.items():
            part, _, name = key.partition(".")
            if part == "network":
                weights[name] = value
            elif part == "optimiser":
                index, _, moment = name.partition(".")
                optimiser["state"].setdefault(int(index), {})[moment] = value
        self._network.load_state_dict(weights)
        self._optimiser.load_state_dict(optimiser)
        self._stream.set_state(saved.tensors["stream"])
        self.epoch = int(str(saved.state["epoch"]))


def to_planes(pixels_NHWC: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def augment(planes: Tensor, config: SmallCnnConfig, stream: torch.Generator) -> Tensor:
    """Each image turned, zoomed, shifted, perhaps mirrored, and changed a little in contrast and brightness."""
    n = len(planes)

    def draw(limit: float) -> Tensor:
        return (torch.rand(n, generator=stream) * 2 - 1) * limit

    angle = draw(math.radians(config.rotation_deg))
    scale = 1 + draw(config.zoom)
    mirror = torch.where(torch.rand(n, generator=stream) < (0.5 if config.flip else 0.0), -1.0, 1.0)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        [
            torch.stack([cosine * mirror, -sine, draw(2 * config.shift)], dim=1),
            torch.stack([sine * mirror, cosine, draw(2 * config.shift)], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, list(planes.shape), align_corners=False)
    moved = functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    contrast, brightness = 1 + draw(0.2)[:, None, None, None], draw(0.1)[:, None, None, None]
    return moved * contrast + brightness


def _initialise(network: nn.Module, stream: torch.Generator) -> None:
    """He-normal convolutions and a near-zero classifier, drawn from our own stream: the global seed plays no part."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=stream)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=stream)
            nn.init.zeros_(module.bias)


def _one_cycle(progress: float) -> float:
    """The learning rate's share of its maximum: a linear rise over the first fifth, then half a cosine to zero."""
    if progress < 0.2:
        return 0.1 + 0.9 * progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))

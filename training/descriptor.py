"""A fixed image descriptor: no training, no randomness, so that embeddings stay comparable for as long as a loop lives.

It is the cold-start encoder of a loop and the features of the recipe `linear-probe`. Histograms of gradient orientation
on a coarse and a fine grid of cells carry shape; thumbnails of luma and of the two colour differences, and histograms
of both, carry the rest. Sources: Dalal and Triggs 2005 (HOG), Arandjelović and Zisserman 2012 (square-root histograms).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hardloop.core import images
from hardloop.core.errors import BadInput

VERSION = "gradients-1"

# Chosen by measurement on digits, Fashion-MNIST and clothing10: see docs/recipes.md.
_BINS = 8  # signed directions of the gradient
_FINE = 7  # cells along each side, of gradients at full size
_COARSE = 4  # cells along each side, of gradients at half size
_THUMB = 8
_MIN_SIZE = 16  # below it, cells are smaller than a pixel
_CHROMA = 4
_LEVELS = 8  # luma and hue histogram bins
_GRADIENT_FLOOR = 0.02  # of full scale: below it a gradient is sensor or compression noise
_PART_WEIGHTS = (1.0, 1.0, 0.5, 0.5, 0.5)  # fine cells, coarse cells, luma, chroma, histograms


class Descriptor(nn.Module):
    """uint8 (N, size, size, 3) RGB to unit-norm float32 (N, DIMENSION). Nothing is learnt; exportable to ONNX."""

    DIMENSION = _BINS * (_FINE**2 + _COARSE**2) + _THUMB**2 + 2 * _CHROMA**2 + 2 * _LEVELS

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < _MIN_SIZE or size % 2:
            raise BadInput(f"input size {size}: the descriptor needs an even number of at least {_MIN_SIZE} pixels")
        for name, pixels, cells in (("fine", size, _FINE), ("coarse", size // 2, _COARSE),
                                    ("thumb", size, _THUMB), ("tint", size, _CHROMA)):  # fmt: skip
            self.register_buffer(name, _windows(pixels, cells), persistent=False)
        colour = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])  # JFIF YCbCr
        self.register_buffer("colour", (colour / 255.0)[:, :, None, None], persistent=False)
        self.register_buffer("directions", _directions(_BINS), persistent=False)
        self.register_buffer("hues", _directions(_LEVELS), persistent=False)
        self.register_buffer("levels", torch.linspace(0, 1, _LEVELS)[None, :, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        ycc = functional.conv2d(image.permute(0, 3, 1, 2).float(), self.get_buffer("colour"))
        luma, chroma = ycc[:, :1], ycc[:, 1:]
        parts = [
            self._shape(luma, self.get_buffer("fine")),
            self._shape(functional.avg_pool2d(luma, 2), self.get_buffer("coarse")),
        ]
        thumb = _pool(luma, self.get_buffer("thumb"))
        thumb = thumb - thumb.mean(dim=1, keepdim=True)
        parts.append(thumb / (_length(thumb) + 0.1))  # 0.1, 0.3: a flat or grey image stays near zero
        tint = _pool(chroma, self.get_buffer("tint"))
        parts.append(tint / (_length(tint) + 0.3))
        parts.append(self._tones(luma, chroma))
        joined = torch.cat([weight * part for weight, part in zip(_PART_WEIGHTS, parts, strict=True)], dim=1)
        return joined / _length(joined)

    def _oriented(self, luma: Tensor) -> Tensor:
        """(N, _BINS, H, W): gradient magnitude, shared between the directions it points towards."""
        padded = functional.pad(luma, (1, 1, 1, 1), mode="replicate")
        gradient = torch.cat(
            [padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]], dim=1
        )
        magnitude = (gradient.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
        cosine = functional.conv2d(gradient / magnitude, self.get_buffer("directions")).clamp(min=0)
        return cosine.square().square() * magnitude  # the fourth power narrows a bin to about its share of the circle

    def _shape(self, luma: Tensor, windows: Tensor) -> Tensor:
        """(N, _BINS * cells * cells): square roots of the shares of gradient energy per cell and direction."""
        pooled = _pool(self._oriented(luma), windows)
        shares = pooled / (_length(pooled) + _GRADIENT_FLOOR)
        return _unit((shares + 1e-6).sqrt())

    def _tones(self, luma: Tensor, chroma: Tensor) -> Tensor:
        """Soft histograms of luma and, weighted by saturation, of hue."""
        brightness = (1 - (luma - self.get_buffer("levels")).abs() * (_LEVELS - 1)).clamp(min=0).flatten(2).mean(dim=2)
        saturation = (chroma.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
        cosine = functional.conv2d(chroma / saturation, self.get_buffer("hues")).clamp(min=0)
        hue = (cosine.square() * cosine * saturation).flatten(2).mean(dim=2) * 3.0
        return _unit((torch.cat([brightness, hue], dim=1) + 1e-6).sqrt())


class BuiltInEncoder:
    """The port `Encoder` on the descriptor: images resized to size x size, described in batches."""

    def __init__(self, size: int = 48, batch: int = 128) -> None:
        self._network = Descriptor(size).eval()
        self._size = size
        self._batch = batch

    @property
    def version(self) -> str:
        """Names the embedding space; the input size is part of it."""
        return f"{VERSION}-{self._size}"

    def encode(self, images_: Sequence[bytes]) -> NDArray[np.float32]:
        """Encoded image files to (N, Descriptor.DIMENSION) float32 of unit norm, in their order.

        Decodes one batch at a time. Raises BadImage naming the position of an image that cannot be decoded.
        """
        parts: list[NDArray[np.float32]] = [np.empty((0, Descriptor.DIMENSION), dtype=np.float32)]
        for start in range(0, len(images_), self._batch):
            decoded = [
                images.to_array(images.decode(data, f"image {start + i}"), self._size, self._size)
                for i, data in enumerate(images_[start : start + self._batch])
            ]
            parts.append(describe(self._network, np.stack(decoded)))
        return np.concatenate(parts)


def describe(network: Descriptor, pixels_NHWC: NDArray[np.uint8], batch: int = 128) -> NDArray[np.float32]:
    """(N, Descriptor.DIMENSION) float32 from uint8 (N, size, size, 3) RGB. Small batches stay in the CPU's cache."""
    parts: list[NDArray[np.float32]] = [np.empty((0, Descriptor.DIMENSION), dtype=np.float32)]
    with torch.inference_mode():
        for start in range(0, len(pixels_NHWC), batch):
            parts.append(network(torch.from_numpy(pixels_NHWC[start : start + batch])).numpy())
    return np.concatenate(parts)


def _windows(size: int, cells: int) -> Tensor:
    """(cells, size): triangular weights, twice as wide as a cell, so that a small shift moves little between cells."""
    width = size / cells
    centres = (torch.arange(cells) + 0.5) * width
    weights = (1 - (torch.arange(size) + 0.5 - centres[:, None]).abs() / width).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def _directions(count: int) -> Tensor:
    """(count, 2, 1, 1): unit vectors evenly around the circle, as a 1 x 1 convolution."""
    angles = torch.arange(count) * (2 * math.pi / count)
    return torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None, None]


def _pool(planes: Tensor, windows: Tensor) -> Tensor:
    """(N, K * cells * cells): weighted means over overlapping cells."""
    return (windows @ planes @ windows.T).flatten(1)


def _length(rows: Tensor) -> Tensor:
    return (rows.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()


def _unit(rows: Tensor) -> Tensor:
    return rows / _length(rows)

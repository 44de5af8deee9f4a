"""Images from outside, checked at the door: size and pixel limits first, then a full decode, then plain RGB."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hardloop.core.errors import BadImage

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64_000_000  # 8,000 x 8,000: above any camera sensor a loop is likely to see, 256 MB once decoded
LARGE_PIXELS = 12_500_000  # a telephone's 12 megapixels, 50 MB once decoded, stay below
LARGE_AT_ONCE = 2  # threads that decode larger ones at the same time; one with alpha takes up to 1 GB meanwhile
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}
_BAND = 1_000_000  # deep pixels scaled at a time, in 64-bit arithmetic
_large = threading.BoundedSemaphore(LARGE_AT_ONCE)
_DEEP = ("I", "F")  # Pillow's modes of grey pixels deeper than 8 bits: I;16, I;16B, I and F
CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "bmp": "image/bmp",
                 "gif": "image/gif", "tif": "image/tiff"}  # fmt: skip


def _large_again() -> None:
    """A forked child has none of the threads that hold it, and would wait for them for ever."""
    global _large
    _large = threading.BoundedSemaphore(LARGE_AT_ONCE)


os.register_at_fork(after_in_child=_large_again)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header and a full decode say: pixels, and the suffix its format is stored under."""

    width: int
    height: int
    suffix: str


def decode(data: bytes, name: str = "image") -> Image.Image:
    """An upright RGB image from encoded bytes. Greyscale, palette and alpha images are converted (alpha on white).

    Raises BadImage naming `name` for empty, oversized, truncated or unknown bytes; nothing else escapes. The pixel
    limit is checked on the header, before any pixel is decoded, so that a decompression bomb costs nothing.
    """
    return _decode(data, name)[0]


def check(data: bytes, name: str = "image") -> ImageFacts:
    """The facts of an image that `decode` accepts. Raises BadImage as `decode` does."""
    image, suffix = _decode(data, name)
    return ImageFacts(image.width, image.height, suffix)


def _decode(data: bytes, name: str) -> tuple[Image.Image, str]:
    if not data:
        raise BadImage(f"{name} is empty (zero bytes): expected an encoded image")
    if len(data) > MAX_BYTES:
        raise BadImage(f"{name} has {len(data):,} bytes, more than the {MAX_BYTES:,} accepted: send a smaller image")
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
        suffix = FORMATS[image.format or ""]
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(
                f"{name} is {image.width} x {image.height}, more than the {MAX_PIXELS:,} pixels accepted: shrink it"
            )
        with _large if image.width * image.height > LARGE_PIXELS else nullcontext():
            return _upright_rgb(image, name), suffix
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"{name} claims more than the {MAX_PIXELS:,} pixels accepted: shrink it") from None
    except UnidentifiedImageError:
        raise BadImage(
            f"{name} is not an image in one of {', '.join(FORMATS)}: {len(data):,} bytes of something else"
        ) from None
    except Exception as error:  # Pillow's decoders raise a dozen types on hostile bytes; all of them mean the same here
        raise BadImage(
            f"{name} cannot be decoded ({type(error).__name__}: {error}): it is damaged or cut off"
        ) from None


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(_DEEP):
        return _eight_bits(image, name)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """RGB from grey pixels of 16 or 32 bits, which Pillow itself would clip: a 16-bit sensor would come out white.

    32-bit pixels do not say what white is: it is taken to be 255, or where a pixel is brighter 65,535, or 2^31 - 1; of
    floating-point pixels also 1. Raises BadImage for pixels that are not numbers.
    """
    extremes_B2 = np.array([(band.min(), band.max()) for _, band in _bands(image)])
    if not np.isfinite(extremes_B2).all():
        raise BadImage(f"{name} holds pixels that are infinite or not numbers: repair it")
    whites = [65_535.0] if image.mode.startswith("I;16") else [255.0, 65_535.0, float(2**31 - 1)]
    if image.mode == "F":
        whites.insert(0, 1.0)
    brightest = max(0.0, float(extremes_B2.max()))
    white = next((w for w in whites if brightest <= w), brightest)
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        rgb.paste(Image.fromarray((np.clip(band / white, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)), (0, top))
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The pixels of a grey image from top to bottom, a few rows at a time, each with its first row's number."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield top, np.asarray(band, dtype=np.float64)


def to_array(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """The image resized to (height, width, 3) uint8, area-averaged when shrinking. The aspect ratio is not kept."""
    if image.size != (width, height):
        image = image.resize(
            (width, height), Image.Resampling.BOX if image.width > width else Image.Resampling.BILINEAR
        )
    return np.asarray(image, dtype=np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of (height, width) grey or (height, width, 3) RGB uint8 pixels. Raises BadImage for other arrays."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0 or pixels.shape[2:] not in ((), (3,)):
        raise BadImage(f"pixels have shape {pixels.shape} and type {pixels.dtype}: expected uint8 (H, W) or (H, W, 3)")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()

"""An image as it will lie in the store, made and checked in microseconds on the caller's thread.

Encoded files are stored byte for byte. Pixel arrays become uncompressed BMP files: a PNG of 224 x 224 pixels costs the
caller 8 ms, a BMP 0.1 ms, and equal pixels give equal bytes, hence equal ids, whatever the version of an encoder.
"""

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardloop.core import ids
from hardloop.core.errors import BadImage
from hardloop.core.images import FORMATS, MAX_BYTES, MAX_PIXELS

if TYPE_CHECKING:
    ImageLike = bytes | bytearray | memoryview | NDArray[np.uint8] | Image.Image

# First bytes of each format's files, from their specifications; WebP has a length between its two words.
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
_BMP_HEADER = struct.Struct("<2sIHHIIiiHHIIiiII")
_EIGHT_BIT_MODES = ("RGB", "L", "P", "1", "YCbCr", "CMYK", "HSV", "LAB")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Image bytes as stored, the suffix of their format, and the id they give the sample."""

    data: bytes
    suffix: str
    sample_id: str

    @property
    def key(self) -> str:
        """Where the image lies in the store."""
        return ids.image_key(self.sample_id, self.suffix)


def stored(image: "ImageLike") -> StoredImage:
    """The image as it will be stored: encoded bytes unchanged, pixels (H, W, 3) or (H, W) uint8 as a BMP file.

    Looks at the first bytes and the size alone: `check_header` and a full decode come later, for what is kept.
    Raises BadImage for empty, oversized or unknown bytes, for other arrays and for anything that is no image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        suffix = _suffix(data)
    elif isinstance(image, np.ndarray):
        data, suffix = _bmp(image), "bmp"
    elif isinstance(image, Image.Image):
        data, suffix = _bmp(_pixels(image)), "bmp"
    else:
        raise BadImage(f"image is a {type(image).__name__}: expected encoded bytes, a uint8 array or a PIL image")
    return StoredImage(data, suffix, ids.sample_id(data))


def check_header(data: bytes, max_pixels: int = MAX_PIXELS, name: str = "image") -> None:
    """Read an image's header. Raises BadImage where Pillow cannot, or where it has more than `max_pixels` pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's parsers raise a dozen types on hostile bytes; all of them mean the same here
        raise BadImage(f"{name} cannot be read ({type(error).__name__}): it is damaged or not an image") from None
    if width * height > max_pixels:
        raise BadImage(f"{name} is {width} x {height}, more than the {max_pixels:,} pixels accepted: shrink it")


def _suffix(data: bytes) -> str:
    if not data:
        raise BadImage("image is empty (zero bytes): expected an encoded image")
    if len(data) > MAX_BYTES:
        raise BadImage(f"image has {len(data):,} bytes, more than the {MAX_BYTES:,} accepted: send a smaller image")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return FORMATS["WEBP"]
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return FORMATS[name]
    raise BadImage(f"image is not in one of {', '.join(FORMATS)}: {len(data):,} bytes of something else")


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    if image.mode not in _EIGHT_BIT_MODES:
        raise BadImage(f"the PIL image has mode {image.mode!r}: scale it to 8 bits first, or pass its encoded file")
    return np.asarray(image.convert("RGB"))


def _bmp(pixels: NDArray[np.uint8]) -> bytes:
    """A 24-bit BMP file: rows from the bottom up, blue first, each padded to four bytes."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImage(f"pixels have shape {pixels.shape} and type {pixels.dtype}: expected uint8 (H, W, 3) or (H, W)")
    height, width = pixels.shape[:2]
    if not height or not width:
        raise BadImage(f"pixels have shape {pixels.shape}: the image is empty")
    stride = (3 * width + 3) // 4 * 4
    size = _BMP_HEADER.size + stride * height
    if size > MAX_BYTES:
        raise BadImage(f"{width} x {height} pixels take {size:,} bytes, more than {MAX_BYTES:,}: pass the encoded file")
    file = np.zeros(size, dtype=np.uint8)
    body = file[_BMP_HEADER.size :].reshape(height, stride)[:, : 3 * width].reshape(height, width, 3)
    for channel in range(3):  # one plane at a time is four times faster than reversing the last axis
        body[..., channel] = (pixels if pixels.ndim == 2 else pixels[..., 2 - channel])[::-1]
    # 2835 pixels per metre is 72 dpi; readers ignore it.
    header = _BMP_HEADER.pack(
        b"BM", size, 0, 0, _BMP_HEADER.size, 40, width, height, 1, 24, 0, stride * height, 2835, 2835, 0, 0
    )
    file[: _BMP_HEADER.size] = np.frombuffer(header, dtype=np.uint8)
    return file.tobytes()

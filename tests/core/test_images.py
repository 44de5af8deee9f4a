"""Images at the door: what is taken comes out upright and with its values, the rest is BadImage and nothing else."""

import io
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hardloop.core import images
from hardloop.core.errors import BadImage
from hardloop.core.images import FORMATS, MAX_BYTES, ImageFacts, check, decode, encode_png, to_array


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=form, **options)  # type: ignore[arg-type]
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand, so that it can lie about itself."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(data: bytes) -> list[object]:
    return np.asarray(decode(data)).tolist()  # type: ignore[no-any-return]


CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_keep_every_pixel(form: str) -> None:
    assert pixels(saved(Image.fromarray(CORNERS), form)) == CORNERS.tolist()


@pytest.mark.parametrize(("form", "suffix"), FORMATS.items())
def test_every_format_taken_is_known_by_its_content_not_its_name(form: str, suffix: str) -> None:
    data = saved(Image.new("RGB", (7, 3), (200, 30, 60)), form)
    assert check(data, "holiday.txt") == ImageFacts(7, 3, suffix)
    assert abs(np.asarray(decode(data)).astype(int) - [200, 30, 60]).max() <= 4


@pytest.mark.parametrize("form", ["ICO", "PPM", "TGA", "PCX", "ICNS", "PDF", "EPS"])
def test_other_formats_are_refused_though_pillow_knows_them(form: str) -> None:
    with pytest.raises(BadImage, match=r"photo\.x is not an image in one of"):
        decode(saved(Image.new("RGB", (64, 64)), form), "photo.x")


def test_zero_bytes_are_named_as_such() -> None:
    with pytest.raises(BadImage, match=r"cat\.png is empty \(zero bytes\)"):
        decode(b"", "cat.png")


def test_a_file_over_the_limit_is_refused_before_anything_looks_into_it() -> None:
    with pytest.raises(BadImage, match="more than the 33,554,432 accepted"):
        decode(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_off_anywhere_is_bad_or_whole(form: str) -> None:
    data = saved(Image.effect_noise((40, 40), 90).convert("RGB"), form)
    refused = 0
    for length in range(1, len(data), max(1, len(data) // 60)):
        try:
            image = decode(data[:length])
        except BadImage:
            refused += 1
        else:
            assert image.size == (40, 40)
    assert refused >= 50


@pytest.mark.parametrize(("width", "height"), [(8_001, 8_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_costs_neither_time_nor_memory(width: int, height: int) -> None:
    data = png(width, height, 8, 2, bytes(1000))
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(BadImage, match="64,000,000 pixels accepted"):
        decode(data)
    seconds, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1.0
    assert peak < 1_000_000


def test_an_image_at_the_pixel_limit_is_taken() -> None:
    assert check(saved(Image.new("1", (8_000, 8_000)), "PNG")) == ImageFacts(8_000, 8_000, "png")


def test_a_bomb_that_inflates_beyond_its_header_yields_only_the_pixels_of_its_header() -> None:
    data = png(2, 1, 8, 0, b"\x00\x01\x02" + bytes(50_000_000))
    assert pixels(data) == [[[1, 1, 1], [2, 2, 2]]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    assert pixels(saved(Image.fromarray(grey), "PNG")) == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    """White is 65,535 whatever else is in the picture: brightness must not depend on the brightest pixel."""
    assert pixels(saved(Image.fromarray(np.array([[0, 200]], dtype=np.uint16)), "PNG")) == [[[0] * 3, [1] * 3]]


def test_sixteen_bit_grey_with_a_transparent_value_is_scaled_too() -> None:
    data = png(2, 1, 16, 0, b"\x00" + struct.pack(">HH", 0, 32_896), chunk(b"tRNS", struct.pack(">H", 0)))
    assert pixels(data) == [[[0] * 3, [128] * 3]]


def test_sixteen_bit_colour_keeps_its_high_bytes() -> None:
    assert pixels(png(1, 1, 16, 2, b"\x00" + struct.pack(">HHH", 0, 32_896, 65_535))) == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255]), ([-3.0, 257.0, 65_535.0], [0, 1, 255])],
)
def test_floating_point_pixels_are_scaled_by_the_white_they_suggest(values: list[float], expected: list[int]) -> None:
    data = saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert pixels(data) == [[[v] * 3 for v in expected]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_numbers_are_refused(value: float) -> None:
    with pytest.raises(BadImage, match="not numbers"):
        decode(saved(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)), "TIFF"))


def test_thirty_two_bit_grey_does_not_turn_white() -> None:
    data = saved(Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32)), "TIFF")
    assert pixels(data) == [[[0] * 3, [128] * 3, [255] * 3]]


def scaled_at_once(values: np.ndarray, mode: str) -> np.ndarray:  # type: ignore[type-arg]
    """The eight bits of deep pixels by one formula over the whole image."""
    whites = [65_535.0] if mode.startswith("I;16") else [255.0, 65_535.0, float(2**31 - 1)]
    if mode == "F":
        whites.insert(0, 1.0)
    brightest = float(values.max(initial=0.0))
    white = next((w for w in whites if brightest <= w), brightest)
    return (np.clip(values.astype(np.float64) / white, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["I;16", "I;16B", "I", "F"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    low=st.sampled_from([0, -70_000]),
    high=st.sampled_from([1, 255, 256, 65_535, 65_536, 2**31 - 1]),
    rows=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_deep_pixels_come_out_the_same_however_many_are_scaled_at_a_time(
    mode: str, size: tuple[int, int], low: int, high: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if mode.startswith("I;16"):
        values = rng.integers(0, min(high, 65_535), size[::-1], endpoint=True).astype(
            "<u2" if mode == "I;16" else ">u2"
        )
        image = Image.frombytes(mode, size, values.tobytes())
    else:
        values = rng.uniform(low, high, size[::-1]).astype(np.float32 if mode == "F" else np.int32)
        image = Image.fromarray(values)
    data = saved(image, "TIFF")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_BAND", rows * size[0])
        found = np.asarray(decode(data))
    np.testing.assert_array_equal(found, np.stack([scaled_at_once(values, mode)] * 3, axis=-1))


PEAK = """
import resource, sys
from hardloop.core.images import decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(data)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("depth", "colour", "row"), [(16, 0, 2), (8, 0, 1), (8, 2, 3)], ids=["deep", "grey", "colour"])
def test_the_largest_image_takes_no_more_than_its_pixels_twice(
    tmp_path: Path, depth: int, colour: int, row: int
) -> None:
    """Pillow keeps four bytes for a pixel of colour: 256 MB here."""
    width, height = 8_000, 7_990
    (tmp_path / "zeros.png").write_bytes(png(width, height, depth, colour, bytes((1 + row * width) * height)))
    told = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "zeros.png"], capture_output=True, check=True)
    assert float(told.stdout) < 2 * 4 * width * height / 2**20 + 50


FORKS = """
import os, signal
import numpy as np
from hardloop.core import images
images.LARGE_PIXELS = 10
large = images.encode_png(np.zeros((40, 40), dtype=np.uint8))
for _ in range(images.LARGE_AT_ONCE):
    images._large.acquire()  # as threads of the parent that are decoding
child = os.fork()
if not child:
    signal.alarm(10)
    images.decode(large)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_decodes_large_images_though_its_parent_was_at_it():
    out = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    assert out.stdout == "0\n"


def test_few_large_images_are_decoded_at_a_time_and_small_ones_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (saved(Image.new("L", (side, side)), "PNG") for side in (40, 8))
    inside, most, lock = 0, 0, threading.Lock()
    waiting = threading.Event()
    upright = images.ImageOps.exif_transpose

    def slow(image: Image.Image, **options: bool) -> Image.Image | None:
        nonlocal inside, most
        if image.width == 40:
            with lock:
                inside, most = inside + 1, max(most, inside + 1)
            waiting.wait(20)
            with lock:
                inside -= 1
        return upright(image, **options)

    monkeypatch.setattr(images.ImageOps, "exif_transpose", slow)
    monkeypatch.setattr(images, "LARGE_PIXELS", 1_000)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(decode, large) for _ in range(6)]
        assert pool.submit(decode, small).result(20).size == (8, 8)
        waiting.set()
        assert [one.result(20).size for one in found] == [(40, 40)] * 6
    assert 1 <= most <= images.LARGE_AT_ONCE
    for _ in range(images.LARGE_AT_ONCE + 1):  # a refusal gives its place back
        with pytest.raises(BadImage, match="truncated"):
            decode(large[:45])


def test_a_palette_becomes_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    assert pixels(saved(image, "PNG")) == [[[40, 50, 60], [10, 20, 30]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    if mode in ("RGBA", "LA"):
        data = saved(Image.new("RGBA", (1, 1), (9, 9, 9, 0)).convert(mode), "PNG")
    else:
        transparent = (0, 0, 0) if mode == "RGB" else 0
        data = saved(Image.new(mode, (1, 1), transparent), "PNG", transparency=transparent)
    assert pixels(data) == [[[255, 255, 255]]]


def test_half_transparent_red_lies_on_white() -> None:
    assert pixels(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG")) == [[[255, 127, 127]]]


@pytest.mark.parametrize(
    ("orientation", "corner"),
    list(enumerate([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)], start=1)),
)
def test_cameras_that_turned_the_sensor_are_turned_back(orientation: int, corner: tuple[int, int]) -> None:
    """`corner`: where the file's first pixel belongs (row, column), for each orientation of the EXIF standard."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = np.zeros((20, 40), dtype=np.uint8)
    grey[:8, :8] = 255
    upright = np.asarray(decode(saved(Image.fromarray(grey), "PNG", exif=exif)))[:, :, 0]
    assert upright.shape == ((20, 40) if orientation <= 4 else (40, 20))
    row, column = corner[0] * (upright.shape[0] - 1), corner[1] * (upright.shape[1] - 1)
    assert upright[row, column] == 255
    assert upright.sum() == 255 * 64


def test_a_moving_picture_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("blue", "red", "red")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert check(data) == ImageFacts(3, 2, "gif")
    assert pixels(data)[0] == [[0, 0, 255]] * 3


@settings(max_examples=300)
@given(data=st.binary(min_size=1, max_size=400))
def test_arbitrary_bytes_raise_nothing_but_bad_image(data: bytes) -> None:
    with pytest.raises(BadImage, match="upload"):
        decode(data, "upload")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(data=st.data(), form=st.sampled_from(sorted(FORMATS)))
def test_images_with_broken_bytes_raise_nothing_but_bad_image(data: st.DataObject, form: str) -> None:
    whole = bytearray(saved(Image.fromarray(CORNERS).resize((16, 16)), form))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(whole))
    except BadImage:
        return
    assert image.mode == "RGB"


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), colour=st.booleans(), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_pixels_survive_our_own_encoder(shape: tuple[int, int], colour: bool, seed: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, 256, (*shape, 3) if colour else shape, dtype=np.uint8)
    back = np.asarray(decode(encode_png(drawn)))
    np.testing.assert_array_equal(back, drawn if colour else np.stack([drawn] * 3, axis=-1))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 2), np.float32), np.zeros((2, 2, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 3), np.uint8)],
    ids=["float", "four channels", "one axis", "no rows"],
)
def test_arrays_that_are_no_pixels_are_refused(wrong: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadImage, match="expected uint8"):
        encode_png(wrong)


def test_shrinking_averages_areas() -> None:
    image = Image.fromarray(np.array([[0, 100, 200, 200], [100, 200, 200, 200]], dtype=np.uint8)).convert("RGB")
    assert to_array(image, 2, 1).tolist() == [[[100] * 3, [200] * 3]]


def test_an_image_of_the_wanted_size_is_not_touched() -> None:
    assert to_array(Image.fromarray(CORNERS), 2, 2).tolist() == CORNERS.tolist()


def test_height_and_width_are_not_mixed_up() -> None:
    assert to_array(Image.new("RGB", (10, 4)), width=5, height=3).shape == (3, 5, 3)

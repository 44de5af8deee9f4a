"""Near-duplicates: copies are found again, different images are not taken for copies, on real images of three kinds."""

import csv
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from hardloop.core import fingerprint as module
from hardloop.core.fingerprint import SIZE, components, fingerprint, first_matches
from tests.core.alike import alike

SHARED = Path(__file__).parents[3] / "shared" / "data"
CLOTHING = SHARED / "clothing10" / "clothing10.zip"
FASHION = SHARED / "fashion-mnist" / "train-images-idx3-ubyte.gz"


def absent(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"needs {path.name} in ../shared/data")


def twins(fingerprints: list[str]) -> list[list[int]]:
    """The rows that are tied to others, tied ones together."""
    tied: dict[int, list[int]] = {}
    for row, first in enumerate(components(fingerprints)):
        tied.setdefault(int(first), []).append(row)
    return [rows for rows in tied.values() if len(rows) > 1]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue()))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def test_the_bits_and_the_thumbnail_can_be_read_off_by_hand():
    """Brightness falls from left to right by 8 levels a cell: every bit is set; the thumbnail is the pairs' means."""
    ramp = Image.fromarray(np.tile(np.arange(17, dtype=np.uint8)[::-1] * 8, (16, 1)))
    found = bytes.fromhex(fingerprint(ramp))
    assert len(found) == SIZE
    assert found[:32] == b"\xff" * 32
    assert list(found[32:40]) == sorted(found[32:40], reverse=True)
    rising = bytes.fromhex(fingerprint(Image.fromarray(np.asarray(ramp)[:, ::-1])))
    assert rising[:32] == b"\x00" * 32


def test_differences_within_the_dead_band_set_no_bit():
    steps = np.tile((np.arange(17) % 2 * module.DEAD_BAND).astype(np.uint8), (16, 1))
    assert fingerprint(Image.fromarray(steps))[:64] == "0" * 64
    assert fingerprint(Image.fromarray(steps // module.DEAD_BAND * (module.DEAD_BAND + 1)))[:64] != "0" * 64


def test_flat_images_of_different_brightness_are_not_duplicates():
    black, grey = (fingerprint(Image.new("L", (20, 20), level)) for level in (0, 128))
    assert black[:64] == grey[:64]
    assert first_matches([black], [grey]) == {}
    assert first_matches([black], [black]) == {0: 0}


@st.composite
def frames(draw: st.DrawFn) -> list[str]:
    """Up to 24 fingerprints: a few pictures, and changes of one another at and about the limits, in chains too."""
    found = draw(st.lists(st.binary(min_size=SIZE, max_size=SIZE), min_size=1, max_size=3))
    for _ in range(draw(st.integers(0, 20))):
        raw = bytearray(draw(st.sampled_from(found)))
        for bit in range(draw(st.sampled_from([0, 1, 10, 19, 20, 21]))):
            raw[bit // 8] ^= 1 << bit % 8
        step = draw(st.sampled_from([-4, -3, -1, 0, 1, 3, 4]))
        raw[32:] = bytes(min(255, max(0, level + step)) for level in raw[32:])
        raw[32] = min(255, raw[32] + draw(st.integers(0, 2)))
        found.append(bytes(raw))
    return [raw.hex() for raw in draw(st.permutations(found))]


@given(frames(), st.integers(0, 24))
def test_the_first_matches_are_those_a_plain_double_loop_finds(both, cut):
    left, right = both[:cut], both[cut:]
    expected = {i: [j for j, b in enumerate(right) if alike(a, b)] for i, a in enumerate(left)}
    found = first_matches(left, right)
    assert found == {i: matches[0] for i, matches in expected.items() if matches}
    assert list(found) == sorted(found)


@given(frames())
def test_the_components_are_those_that_spreading_from_pair_to_pair_finds(rows):
    first = list(range(len(rows)))
    for _ in rows:
        first = [min(first[j] for j, b in enumerate(rows) if alike(a, b)) for a in rows]
    assert components(rows).tolist() == first


def test_hashes_that_differ_in_every_bit_are_not_taken_for_equal():
    """256 flipped bits are 0 in eight bits."""
    assert first_matches(["00" * 32 + "50" * 64], ["ff" * 32 + "50" * 64]) == {}


def test_no_images_have_no_near_duplicates():
    assert first_matches([], ["00" * SIZE]) == first_matches(["00" * SIZE], []) == {}
    assert components([]).tolist() == []


def test_no_two_of_the_digits_are_taken_for_copies():
    pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert twins([fingerprint(Image.fromarray(p)) for p in pixels]) == []
    assert twins([fingerprint(scaled(Image.fromarray(p), 8)) for p in pixels]) == []


@pytest.fixture(scope="module")
def clothing() -> tuple[list[str], list[Image.Image]]:
    with zipfile.ZipFile(CLOTHING) as archive:
        names = [row["file"] for row in csv.DictReader(io.TextIOWrapper(archive.open("labels.csv")))]
        return names, [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


@absent(CLOTHING)
def test_of_all_clothing10_pairs_only_the_known_look_alikes_are_found(clothing):
    names, photos = clothing
    tied = twins([fingerprint(photo) for photo in photos])
    assert [{names[i].split("/")[1][:8] for i in rows} for rows in tied] == [{"6075b4a5", "637a56e4"}]


@absent(CLOTHING)
@pytest.mark.parametrize(
    ("change", "found_again"),
    [
        (lambda photo: jpeg(photo, 50), 0.99),
        (lambda photo: scaled(photo, 2), 0.99),
        (lambda photo: scaled(photo, 0.5), 0.97),
        (lambda photo: jpeg(scaled(photo, 0.75), 70), 0.99),
    ],
)
def test_changed_copies_of_photos_are_found(clothing, change: Callable[[Image.Image], Image.Image], found_again: float):
    photos = clothing[1][:300]
    hits = [bool(first_matches([fingerprint(photo)], [fingerprint(change(photo))])) for photo in photos]
    assert np.mean(hits) >= found_again


@pytest.mark.slow
@absent(FASHION)
def test_false_copies_are_rare_among_look_alike_clothes():
    """Fashion-MNIST is the hard case: 28 x 28 grey, and thousands of nearly equal trousers."""
    with gzip.open(FASHION) as file:
        pixels = np.frombuffer(file.read(16 + 10_000 * 784), np.uint8, offset=16).reshape(-1, 28, 28)
    assert sum(map(len, twins([fingerprint(Image.fromarray(p)) for p in pixels]))) <= 50

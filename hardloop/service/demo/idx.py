"""MNIST-style IDX files: pairs of images and labels, gzipped or not. Format: Y. LeCun's MNIST page, 1998."""

import gzip
import json
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardloop.core.errors import BadData
from hardloop.core.images import MAX_PIXELS, encode_png
from hardloop.service.demo.items import SPLITS, Entry, Listing, few

_IMAGES = re.compile(r"(?P<prefix>.*?)[-_.]?images[-_.]idx3[-_.]ubyte(?P<gz>\.gz)?", re.IGNORECASE)
_SPLIT_WORD = re.compile(rf"(?:(?P<stem>.*)[-_.])?(?P<split>{'|'.join(SPLITS)})", re.IGNORECASE)
_IMAGES_MAGIC, _LABELS_MAGIC = 0x00000803, 0x00000801  # unsigned bytes in three dimensions, and in one
_MAX_BYTES = 2 * 1024**3  # MNIST is 47 MB, EMNIST's largest 630 MB; a lying header may not ask for more
_MAX_MANIFEST = 16 * 1024**2


def image_files(folder: Path) -> list[Path]:
    """The IDX image files directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _IMAGES.fullmatch(path.name))


def is_idx(path: Path) -> bool:
    """Whether a file's name says that it holds IDX images."""
    return _IMAGES.fullmatch(path.name) is not None


def listing(files: list[Path], name: str) -> Listing:
    """The images of one or several pairs; each images file needs its labels file beside it.

    The word before `images`, as in `train-` or `letters-t10k-`, becomes the split, unless there is one pair only: that
    is simply all data. Raises BadData for several data sets, whose label numbers mean different things; and naming the
    file for wrong magic numbers, impossible or unequal counts, truncated and damaged files.
    """
    sets = {_stem_and_split(path)[0]: path.name for path in reversed(files)}
    if len(sets) > 1:
        raise BadData(
            f"{files[0].parent} holds {len(sets)} data sets: {few(sets.values())}; give one images file, or each data "
            "set a folder of its own"
        )
    names = _class_names(files[0].parent)
    entries: list[Entry] = []
    present: set[int] = set()
    for path in files:
        images_N, labels_N = _pair(path)
        split = _stem_and_split(path)[1] if len(files) > 1 else None
        top = int(labels_N.max(initial=0))
        if names is not None and top >= len(names):
            raise BadData(
                f"{_labels_path(path)} holds label {top}, but MANIFEST.json beside it lists {len(names)} classes: "
                "list every class or remove the list"
            )
        present.update(int(label) for label in np.unique(labels_N))
        for row, label in enumerate(labels_N.tolist()):
            text = names[label] if names is not None else str(label)
            entries.append(Entry(f"{path.name}[{row}]", text, split, partial(_png, images_N, row)))
    labels = tuple(names[i] if names is not None else str(i) for i in sorted(present))
    return Listing(name, labels, tuple(entries))


def _png(images_N: NDArray[np.uint8], row: int) -> bytes:
    return encode_png(images_N[row])


def _pair(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    labels_path = _labels_path(path)
    if not labels_path.is_file():
        raise BadData(f"{path} has no labels file: expected {labels_path.name} beside it")
    images_N = _read(path, _IMAGES_MAGIC, 3)
    labels_N = _read(labels_path, _LABELS_MAGIC, 1)
    if len(images_N) != len(labels_N):
        raise BadData(
            f"{path} holds {len(images_N):,} images but {labels_path.name} {len(labels_N):,} labels: "
            "they do not belong together, or one was cut off"
        )
    return images_N, labels_N


def _read(path: Path, magic: int, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file, (N, H, W) or (N,), exactly as long as its header says."""
    header_bytes = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes:
                raise BadData(f"{path} ends inside its {header_bytes}-byte IDX header: it is cut off, fetch it again")
            found, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if found != magic:
                raise BadData(
                    f"{path} starts with 0x{found:08x}, an IDX file of unsigned bytes in {dimensions} dimension(s) "
                    f"with 0x{magic:08x}: it is another kind of file"
                )
            size = _size(path, shape)
            data = file.read(size)
            # Reading past the end also makes gzip compare its checksum.
            trailing = file.read(1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{path} is not a complete gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise BadData(
            f"{path} cannot be read ({error.strerror or error}): check the file and its permissions"
        ) from None
    if len(data) < size or trailing:
        held = f"{len(data):,}" if len(data) < size else f"more than {size:,}"
        raise BadData(f"{path} holds {held} bytes of values, its header promises {size:,}: it is damaged")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _size(path: Path, shape: list[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    if size == 0 or size > _MAX_BYTES or (len(shape) == 3 and shape[1] * shape[2] > MAX_PIXELS):
        dims = " x ".join(f"{extent:,}" for extent in shape)
        raise BadData(f"{path} declares {dims} values: expected at least one and at most {_MAX_BYTES:,} bytes")
    return size


def _labels_path(path: Path) -> Path:
    name = re.sub("images", "labels", path.name, flags=re.IGNORECASE)
    return path.with_name(re.sub("idx3", "idx1", name, flags=re.IGNORECASE))


def _stem_and_split(path: Path) -> tuple[str, str | None]:
    """The data set's own part of a file name, and the split that the word after it names."""
    match = _IMAGES.fullmatch(path.name)
    prefix = match["prefix"] if match else ""
    word = _SPLIT_WORD.fullmatch(prefix)
    return (word["stem"] or "", SPLITS[word["split"].lower()]) if word else (prefix, None)


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """The `classes` of a MANIFEST.json in the folder, None where there is no such list."""
    path = folder / "MANIFEST.json"
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise BadData(f"{path} has more than {_MAX_MANIFEST:,} bytes: expected a short list of classes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path} is not JSON ({error}): correct it, or remove it to name the classes 0, 1, …") from None
    classes = manifest.get("classes") if isinstance(manifest, dict) else None
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(c, str) and c.strip() for c in classes):
        raise BadData(f"{path}: `classes` must be a list of names, in the order of the label numbers")
    names = tuple(c.strip() for c in classes)
    if len(set(names)) != len(names):
        raise BadData(f"{path}: `classes` names a class twice: every label number needs a name of its own")
    return names

"""Folders and zip archives: the same tree of files, read the same way, with the limits a stranger's archive needs.

A tree is either a `labels.csv` with the images it names, or folders that are the classes, with or without the split
folders `train/`, `val/`, `test/` above them.
"""

import csv
import io
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hardloop.core import images
from hardloop.core.errors import BadData
from hardloop.service.demo.items import SPLITS, Entry, Listing, few
from hardloop.service.demo.splits import split_folders

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_MAX_FILES = 1_000_000
_MAX_UNPACKED = 8 * 1024**3  # what an archive may claim to hold in all; images are read one at a time
_MAX_RATIO = 200  # deflate's own limit is 1032; photographs stay under 2, flat synthetic PNGs under 50
_MAX_CSV = 256 * 1024**2

Tree = Mapping[str, Callable[[], bytes]]
"""Relative POSIX path to a function that reads the file. Hidden files are not in it."""


def folder_tree(root: Path) -> Tree:
    """The files under a folder, at any depth. Links to folders are not followed, so that a circle cannot trap us."""
    tree: dict[str, Callable[[], bytes]] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if _hidden(relative.as_posix()) or not path.is_file():
            continue
        tree[relative.as_posix()] = partial(_read_file, path)
        if len(tree) > _MAX_FILES:
            raise BadData(f"{root} holds more than {_MAX_FILES:,} files: point at the data set's own folder")
    return tree


def zip_tree(path: Path) -> Tree:
    """The files of a zip archive, checked before anything is unpacked; nothing is ever written to disk.

    Raises BadData for damaged and encrypted archives, paths that climb out, two files of one name, and archives that
    claim to unpack to far more than they hold.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise BadData(f"{path} is not a zip archive we can open ({error}): fetch or pack it again") from None
    infos = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
    if len(infos) > _MAX_FILES or sum(info.file_size for info in infos) > _MAX_UNPACKED:
        raise BadData(
            f"{path} claims {len(infos):,} files and {sum(i.file_size for i in infos):,} bytes unpacked, more than "
            f"{_MAX_FILES:,} and {_MAX_UNPACKED:,}: unpack it yourself and give the folder"
        )
    tree: dict[str, Callable[[], bytes]] = {}
    for info in infos:
        _check_member(path, info)
        if info.filename in tree:
            raise BadData(f"{path} holds {info.filename!r} twice: pack it again with one file of that name")
        tree[info.filename] = partial(_read_member, archive, info, path)
    return tree


def listing(tree: Tree, name: str) -> Listing:
    """The labelled images of a tree. Raises BadData where it is neither a labels.csv nor folders of classes."""
    tree = _unwrapped(tree)
    if "labels.csv" in tree:
        return _from_csv(tree, name)
    return _from_folders(tree, name)


def holds_images(tree: Tree) -> bool:
    """Whether the tree itself is data: it has a labels.csv or any image."""
    return any(_is_image(path) or path.rsplit("/", 1)[-1] == "labels.csv" for path in tree)


def _from_folders(tree: Tree, name: str) -> Listing:
    splits = split_folders([path for path in tree if _is_image(path)], name)
    depth = 1 if splits else 0
    entries: list[Entry] = []
    stray: list[str] = []
    other: list[str] = []
    for path in sorted(tree):
        parts = path.split("/")
        if not _is_image(path):
            other.append(path)
        elif len(parts) < depth + 2:
            stray.append(path)
        else:
            entries.append(Entry(path, _label(parts[depth], path), splits.get(parts[0]), tree[path]))
    if not entries:
        found = f"images directly in it ({few(stray)})" if stray else "no image"
        raise BadData(
            f"{name} holds {found}: expected one subfolder of images per class, a labels.csv, or IDX pairs "
            "(docs/demo.md shows each)"
        )
    notes = []
    guessed = [f"{top} as {split}" for top, split in sorted(splits.items()) if top.lower() not in SPLITS]
    if guessed:
        notes.append(f"Read as splits: {', '.join(guessed)}.")
    if stray:
        notes.append(f"{len(stray)} image(s) outside any class folder were left out: {few(stray)}.")
    if other:
        notes.append(f"{len(other)} file(s) that are not images were left out: {few(other)}.")
    return Listing(name, tuple(sorted({e.label for e in entries})), tuple(entries), tuple(notes))


def _from_csv(tree: Tree, name: str) -> Listing:
    where = f"labels.csv of {name}"
    try:
        text = tree["labels.csv"]().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    if len(text) > _MAX_CSV:
        raise BadData(f"{where} is longer than {_MAX_CSV:,} characters: split the data set")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    columns = [(column or "").strip().lower() for column in rows.fieldnames or ()]
    lacking = [column for column in ("file", "label") if columns.count(column) != 1]
    if lacking:
        raise BadData(
            f"{where} has the columns {', '.join(columns) or '(none)'}: expected `file` and `label` once each, and "
            f"optionally `split`; look at {' and '.join(lacking)}"
        )
    rows.fieldnames = columns
    spelled = {_composed(path): path for path in tree}
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    try:
        for row in rows:
            entry = _csv_entry(tree, spelled, row, f"{where}, line {rows.line_num}")
            if entry.name in seen:
                raise BadData(
                    f"{where} names {entry.name!r} on lines {seen[entry.name]} and {rows.line_num}: keep one of them"
                )
            seen[entry.name] = rows.line_num
            entries.append(entry)
    except csv.Error as error:
        raise BadData(f"{where}, line {rows.line_num}, is not CSV ({error}): correct it") from None
    if not entries:
        raise BadData(f"{where} has a header but no rows: nothing to load")
    unnamed = [path for path in tree if path not in seen and _is_image(path)]
    notes = (f"{len(unnamed)} image(s) that labels.csv does not name were left out: {few(unnamed)}.",)
    labels = tuple(sorted({e.label for e in entries}))
    return Listing(name, labels, tuple(entries), notes if unnamed else ())


def _csv_entry(tree: Tree, spelled: Mapping[str, str], row: dict[str, str | None], where: str) -> Entry:
    file = (row.get("file") or "").strip().replace("\\", "/").removeprefix("./")
    if file not in tree:
        file = spelled.get(_composed(file), file)
    if file not in tree:
        raise BadData(f"{where} names {file!r}, which is not there: correct the path or add the file")
    split_text = (row.get("split") or "").strip().lower()
    if split_text and split_text not in SPLITS:
        raise BadData(f"{where} has the split {split_text!r}: expected train, val, test or nothing")
    return Entry(file, _label(row.get("label") or "", where), SPLITS[split_text] if split_text else None, tree[file])


def _label(text: str, where: str) -> str:
    label = _composed(text.strip())
    if not label:
        raise BadData(f"{where} has an empty label: name the class or remove the row")
    if len(label) > 100 or not label.isprintable():
        raise BadData(f"{where} has the label {label[:40]!r}: expected at most 100 printable characters")
    return label


def _composed(text: str) -> str:
    """Text in Unicode's composed form: macOS and its archives write é as e and an accent, others as one character."""
    return unicodedata.normalize("NFC", text)


def _unwrapped(tree: Tree) -> Tree:
    """The tree below folders that only wrap it, as most archives of a folder have one."""
    while True:
        tops = {path.split("/", 1)[0] for path in tree if "/" in path}
        flat = [path for path in tree if "/" not in path and (_is_image(path) or path == "labels.csv")]
        if len(tops) != 1 or flat:
            return tree
        top = next(iter(tops)) + "/"
        below = {path.removeprefix(top): read for path, read in tree.items() if path.startswith(top)}
        # A lone folder with images directly in it is a class, not a wrapper; so is what lies in a split folder.
        meant = top[:-1].lower() in SPLITS or any("/" not in path and _is_image(path) for path in below)
        if meant and "labels.csv" not in below:
            return tree
        tree = below


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or ":" in name.split("/")[0]:
        raise BadData(f"{path} holds the path {name!r}, which climbs out of the archive: do not trust it")
    if info.flag_bits & 0x1:
        raise BadData(f"{path} is encrypted ({name!r}): unpack it yourself and give the folder")
    limit = _MAX_CSV if name.rsplit("/", 1)[-1] == "labels.csv" else images.MAX_BYTES
    if _is_image(name) and info.file_size > limit:
        raise BadData(
            f"{path} holds {name!r} with {info.file_size:,} bytes, more than the {limit:,} accepted: shrink it"
        )
    if info.file_size > 1_000_000 and info.file_size > _MAX_RATIO * max(1, info.compress_size):
        raise BadData(
            f"{path} holds {name!r}, {info.compress_size:,} bytes that claim to unpack to {info.file_size:,}: "
            "it looks like a zip bomb; unpack it yourself and give the folder"
        )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    try:
        with archive.open(info) as file:
            # zipfile stops at the declared size, which was checked; one byte more makes it compare the checksum.
            return file.read(info.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise BadData(f"{path} is damaged at {info.filename!r} ({error}): fetch or pack it again") from None


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > max(images.MAX_BYTES, _MAX_CSV if path.name == "labels.csv" else 0):
            raise BadData(f"{path} has more than the {images.MAX_BYTES:,} bytes accepted: shrink it")
        return path.read_bytes()
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror or error}): check it and its permissions") from None


def _hidden(path: str) -> bool:
    """Dot files, and what macOS and Windows leave in every folder and archive."""
    parts = path.split("/")
    if parts[-1].lower() in ("thumbs.db", "desktop.ini") or "__MACOSX" in parts:
        return True
    return any(part.startswith(".") and part not in (".", "..") for part in parts)


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in _IMAGE_SUFFIXES


def repeated(labels: tuple[str, ...]) -> list[str]:
    """Labels that differ in letter case alone: most likely one class written in two ways."""
    counts = Counter(label.casefold() for label in labels)
    return [label for label in labels if counts[label.casefold()] > 1]

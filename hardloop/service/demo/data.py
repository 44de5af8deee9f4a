"""The demo's data: images a user has, in any of the usual forms, checked and ready for the loop.

`load` reads, `partition` cuts. Everything a caller needs is importable from here.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hardloop.core import ids
from hardloop.core.errors import BadData, BadImage, BadSettings
from hardloop.core.fingerprint import fingerprint
from hardloop.core.images import decode, encode_png
from hardloop.core.ports import Progress
from hardloop.service.demo import idx, trees
from hardloop.service.demo.items import TEST, VAL, DemoData, DemoItem, Entry, Listing, Parts
from hardloop.service.demo.parts import apportion, partition

__all__ = ["DemoData", "DemoItem", "Parts", "load", "partition"]

_MAX_KEPT = 4 * 1024**3  # bytes of encoded images held in memory; beyond it a cut is asked for
_REPORT_EVERY = 200
_DIGIT_SCALE = 4  # 8 x 8 pixels are too few for a person to read; repeating each pixel adds and loses nothing


def load(path: Path | None, progress: Progress, limit: int | None = None, seed: int = 0) -> DemoData:
    """A labelled data set, every image decoded once and each content kept once.

    path: None for scikit-learn's bundled digits; or a folder of class folders (also under train/, val/, test/), a
        folder or zip with a labels.csv, a zip of class folders, a folder that holds one such zip, a folder of IDX
        pairs, or one IDX images file.
    limit: at most this many images, drawn by `seed`, with the data's own proportions of splits and classes, before
        any image is read.
    Raises BadData naming the file and what to do; BadSettings for an impossible limit.
    """
    if limit is not None and limit < 2:
        raise BadSettings(f"asked for a cut of {limit} images: at least 2 are needed")
    listing = _digits() if path is None else _find(path)
    alike = trees.repeated(listing.labels)
    notes = list(listing.notes)
    if alike:
        notes.append(f"The classes {', '.join(alike)} differ in letter case alone; they are kept apart.")
    entries = listing.entries
    if limit is not None and limit < len(entries):
        entries = _cut(entries, limit, seed)
        notes.append(f"A cut of {len(entries):,} of {len(listing.entries):,} images, in the proportions of the whole.")
    items, dropped = _once_each(_read(entries, listing.name, progress))
    present = {item.label for item in items}
    labels = tuple(label for label in listing.labels if label in present)
    gone = [label for label in listing.labels if label not in present]
    if gone:
        notes.append(f"No image is left of the class(es) {', '.join(gone)}.")
    if len(labels) < 2:
        raise BadData(
            f"all {len(items):,} images of {listing.name} have one label ({', '.join(labels) or 'none'}): "
            "a classifier needs at least two classes; add images of another"
        )
    return DemoData(listing.name, labels, items, (*notes, *dropped))


def _digits() -> Listing:
    from sklearn.datasets import load_digits  # 1.6 s: only who asks for the digits waits for it

    digits = load_digits()
    # (N, 8, 8), values 0 to 16
    pixels_N = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    pixels_N = pixels_N.repeat(_DIGIT_SCALE, axis=1).repeat(_DIGIT_SCALE, axis=2)
    entries = tuple(
        Entry(f"digit[{row}]", str(target), None, partial(encode_png, pixels_N[row]))
        for row, target in enumerate(digits.target.tolist())
    )
    return Listing("digits", tuple(str(i) for i in range(10)), entries)


def _find(path: Path) -> Listing:
    """Which of the known forms lies at a path."""
    name = path.resolve().name or str(path)
    if path.is_dir():
        return _find_in_folder(path, name)
    if not path.exists():
        raise BadData(f"{path} does not exist: give a folder, a zip or an IDX file")
    if idx.is_idx(path):
        return idx.listing([path], name)
    if path.suffix.lower() == ".zip":
        return trees.listing(trees.zip_tree(path), path.stem)
    raise BadData(f"{path} is none of: a folder, a .zip, an IDX file named like train-images-idx3-ubyte.gz")


def _find_in_folder(path: Path, name: str) -> Listing:
    pairs = idx.image_files(path)
    if pairs:
        return idx.listing(pairs, name)
    tree = trees.folder_tree(path)
    archives = sorted(p for p in path.iterdir() if p.suffix.lower() == ".zip" and p.is_file())
    if archives and not trees.holds_images(tree):
        if len(archives) > 1:
            raise BadData(f"{path} holds {len(archives)} zip archives: give one of them, e.g. {archives[0]}")
        return trees.listing(trees.zip_tree(archives[0]), archives[0].stem)
    return trees.listing(tree, name)


def _cut(entries: tuple[Entry, ...], limit: int, seed: int) -> tuple[Entry, ...]:
    """A stratified draw by (split, class), in the order of the source."""
    strata: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, entry in enumerate(entries):
        strata[entry.split or "", entry.label].append(row)
    keys = sorted(strata)
    kept: list[int] = []
    for key, count in zip(keys, apportion([len(strata[k]) for k in keys], limit), strict=True):
        kept += sorted(strata[key], key=lambda row: ids.uniform("demo-cut", str(seed), entries[row].name))[:count]
    return tuple(entries[row] for row in sorted(kept))


def _read(entries: Sequence[Entry], name: str, progress: Progress) -> list[DemoItem]:
    items: list[DemoItem] = []
    refused: list[str] = []
    kept = 0
    for row, entry in enumerate(entries):
        if row % _REPORT_EVERY == 0:
            progress("reading images", row, len(entries))
        data = entry.read()
        try:
            image = decode(data, f"{name}: {entry.name}")
        except BadImage as error:
            refused.append(str(error))
            continue
        kept += len(data)
        if kept > _MAX_KEPT:
            raise BadData(f"{name} is larger than {_MAX_KEPT:,} bytes after {row:,} images: ask for a smaller cut")
        items.append(DemoItem(entry.name, data, entry.label, entry.split, fingerprint(image)))
    progress("reading images", len(entries), len(entries))
    if refused:
        more = f" (and {len(refused) - 3} more such files)" if len(refused) > 3 else ""
        raise BadData(f"{'; '.join(refused[:3])}{more}. Remove or replace what cannot be read.")
    return items


def _once_each(items: list[DemoItem]) -> tuple[tuple[DemoItem, ...], list[str]]:
    """Each content once, and a sentence per kind of repetition that was removed.

    Of copies that agree on the label one stays, from the test split if one lies there, else from val, else the first:
    a published test set stays whole. Copies that disagree all go, for nobody can say which label is true.
    """
    copies: dict[str, list[DemoItem]] = defaultdict(list)
    for item in items:
        copies[item.sample_id].append(item)
    if len(copies) == len(items):
        return tuple(items), []
    rank = {TEST: 0, VAL: 1}
    kept: list[DemoItem] = []
    repeats = 0
    contradictions: list[str] = []
    for same in copies.values():
        if len({item.label for item in same}) > 1:
            contradictions.append(" and ".join(f"{item.name} ({item.label})" for item in same[:3]))
            continue
        kept.append(min(same, key=lambda item: rank.get(item.split or "", 2)))
        repeats += len(same) - 1
    notes = []
    if repeats:
        notes.append(f"{repeats} exact cop{'y' if repeats == 1 else 'ies'} of other images were left out.")
    for pair in contradictions[:5]:
        notes.append(f"The same image has different labels, so none of its copies is used: {pair}.")
    if len(contradictions) > 5:
        notes.append(f"{len(contradictions) - 5} more images were left out for contradicting labels.")
    return tuple(kept), notes

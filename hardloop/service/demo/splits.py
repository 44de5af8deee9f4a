"""Which top folders are splits and which are classes. To guess wrong is to train another task without a word."""

import re
from collections.abc import Collection, Mapping

from hardloop.core.errors import BadData
from hardloop.service.demo.items import SPLITS, few

# `train_set`, `test1`, `Training-2024`, `valid images`; not `trainers` or `valley`, which are fine names for classes.
_LIKE_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing)([\W_].*|(set|data|split|images?|imgs?|val)?\d*)",
    re.IGNORECASE,
)


def split_folders(paths: Collection[str], name: str) -> Mapping[str, str]:
    """The split that each top folder is; empty where the top folders are the classes.

    paths: of all images, relative to the data set `name`. Folders with the known names of splits are splits where there
    are no others. Names that look like one are taken for splits only where they can be nothing else: each holds the
    same classes. Raises BadData where splits seem to lie beside something else.
    """
    tops = {path.split("/", 1)[0] for path in paths if "/" in path}
    known = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    if known and known.keys() == tops:
        return known
    classes: dict[str, set[str]] = {top: set() for top in tops}  # folders below a top folder
    for path in paths:
        if path.count("/") >= 2:
            top, below, _ = path.split("/", 2)
            classes[top].add(below)
    alike = {top: found for top in tops if classes[top] and (found := _split_like(top))}
    if alike and alike.keys() == tops and len(set.intersection(*classes.values())) > 1:
        return alike
    if alike or len(known) > 1:
        meant = alike.keys() | (known if len(known) > 1 else ())
        others = f" beside {few(tops - meant)}" if tops - meant else ""
        raise BadData(
            f"{name} has the split folder{'s' if len(meant) > 1 else ''} {few(meant)}{others}: name the splits train, "
            "val and test, put every class folder inside one of them, or none, and move everything else out"
        )
    return {}


def _split_like(top: str) -> str | None:
    match = _LIKE_SPLIT.fullmatch(top)
    return SPLITS[match[1].lower()] if match else None

"""The records of the demo's data: what a source lists, what is loaded, and the parts it is cut into."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hardloop.core import ids

TRAIN, VAL, TEST = "train", "val", "test"

# What people call the three splits, as folder names, in a `split` column and in front of IDX files.
SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
    "t10k": TEST,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One labelled image a source holds but has not read yet. `read` returns its encoded bytes."""

    name: str
    label: str
    split: str | None
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything a source holds. `labels` are in the order a person expects: sorted, or as the data numbers them."""

    name: str
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoItem:
    """One labelled image.

    name: where it came from, for messages. image: encoded bytes that `core.images.decode` accepts. split: "train",
    "val", "test", or None where the data has no splits. fingerprint: see `core.fingerprint`. sample_id: the id the
    sample has everywhere in the loop, the hash of `image`.
    """

    name: str
    image: bytes
    label: str
    split: str | None
    fingerprint: str
    sample_id: str = field(init=False)

    def __post_init__(self) -> None:
        # Once, for every draw sorts by it; the class is frozen, hence the detour.
        object.__setattr__(self, "sample_id", ids.sample_id(self.image))


@dataclass(frozen=True, slots=True)
class DemoData:
    """A labelled data set, each image once. `notes` are sentences about what was left out and why."""

    name: str
    labels: tuple[str, ...]
    items: tuple[DemoItem, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parts:
    """The data cut into disjoint parts (see `parts.partition`); every part is in a seeded random order.

    seed: labelled from the start, the first model is trained on it. stream: production traffic, in order of arrival.
    legacy: the gate's own evaluation set. test: the frozen test set that only the report looks at.
    """

    seed: tuple[DemoItem, ...]
    legacy: tuple[DemoItem, ...]
    stream: tuple[DemoItem, ...]
    test: tuple[DemoItem, ...]
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """The number of images per part."""
        return {
            "seed": len(self.seed),
            "legacy": len(self.legacy),
            "stream": len(self.stream),
            "test": len(self.test),
        }


def few(names: Collection[str]) -> str:
    """Up to three names, sorted, and how many more there are."""
    first = sorted(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")

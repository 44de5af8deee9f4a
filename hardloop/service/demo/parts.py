"""Cutting a data set into what the loop may see and what it may not.

Every draw sorts by a hash of (purpose, seed, sample id): uniform, the same in every process, and blind to the order
in which files happened to lie.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from hardloop.core import ids
from hardloop.core.errors import BadData, BadSettings
from hardloop.core.fingerprint import first_matches
from hardloop.service.demo.items import TEST, VAL, DemoData, DemoItem, Parts

TEST_SHARE = 0.25
MAX_TEST = 2_000  # the half width of a 95 % interval at 90 % accuracy is then 1.3 points; more only costs time
LEGACY_SHARE = 0.10
MIN_LEGACY, MAX_LEGACY = 40, 500
_FEW_TEST = 100


def partition(data: DemoData, seed: int, first_labels: int, budget: int, rounds: int) -> Parts:
    """Disjoint parts of a data set; see `Parts`. Same data and seed, same parts, whatever the order of the items.

    test: the data's own test split where it has one, else a stratified quarter; at most MAX_TEST.
    legacy: the data's own val split where it has one, else a stratified tenth of the rest; at most MAX_LEGACY.
    seed: `first_labels` samples drawn uniformly from what remains; the last one is drawn again from another class
        should they all be of one. stream: everything else.
    Near-duplicates of test and legacy images are taken out of the seed and the stream, those of test images also out
    of legacy, and counted in `notes`.
    budget: labels bought per round. Raises BadSettings for impossible numbers and BadData where the data is too small.
    """
    if first_labels < 2 or budget < 1 or rounds < 1:
        raise BadSettings(
            f"asked for {first_labels} first labels, {budget} per round and {rounds} round(s): "
            "at least 2, 1 and 1 are needed"
        )
    notes: list[str] = []
    test, rest = _test(data, seed, notes)
    legacy, rest = _legacy(rest, seed, notes)
    legacy = _without_copies(legacy, test, "the gate's set", "test images", notes)
    rest = _without_copies(rest, (*test, *legacy), "the seed and the traffic", "test or gate images", notes)
    _check_enough(data, len(rest), first_labels, budget, rounds, test, legacy)
    shuffled = _shuffled(rest, "traffic", seed)
    first, stream = _first(shuffled, first_labels, notes)
    _note_thin_classes(data, (*first, *stream), test, notes)
    return Parts(first, legacy, stream, test, tuple(notes))


def apportion(sizes: Sequence[int], total: int) -> list[int]:
    """How many of `total` each stratum gives: in proportion to its size, never more than it has, largest remainders
    first (Hamilton's method); every stratum gives one while `total` allows it.
    """
    everything = sum(sizes)
    total = min(total, everything)
    filled = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (-sizes[i], i))
    counts = [0] * len(sizes)
    if total <= len(filled):
        for i in filled[:total]:
            counts[i] = 1
        return counts
    exact = [size * total / everything for size in sizes]
    for i in filled:
        counts[i] = max(1, int(exact[i]))
    order = sorted(filled, key=lambda i: (counts[i] - exact[i], i))
    while (missing := total - sum(counts)) != 0:
        # Too few: one more where most was cut off. Too many, for the small strata were lifted to one: the reverse.
        able = [i for i in order if counts[i] < sizes[i]] if missing > 0 else [i for i in order[::-1] if counts[i] > 1]
        for i in able[: abs(missing)]:
            counts[i] += 1 if missing > 0 else -1
    return counts


def _test(data: DemoData, seed: int, notes: list[str]) -> tuple[tuple[DemoItem, ...], tuple[DemoItem, ...]]:
    own = tuple(item for item in data.items if item.split == TEST)
    if not own:
        share = min(MAX_TEST, round(TEST_SHARE * len(data.items)))
        return _stratified(data.items, share, "test", seed)
    rest = tuple(item for item in data.items if item.split != TEST)
    kept, left = _stratified(own, MAX_TEST, "test", seed) if len(own) > MAX_TEST else (_shuffled(own, "test", seed), ())
    if left:
        notes.append(f"{len(left):,} images of the test split are not used: {len(kept):,} measure well enough.")
    if len(kept) < _FEW_TEST:
        notes.append(f"The test split has {len(kept)} images: expect wide intervals.")
    return kept, rest


def _legacy(
    rest: tuple[DemoItem, ...], seed: int, notes: list[str]
) -> tuple[tuple[DemoItem, ...], tuple[DemoItem, ...]]:
    own = tuple(item for item in rest if item.split == VAL)
    if not own:
        count = min(MAX_LEGACY, max(MIN_LEGACY, round(LEGACY_SHARE * len(rest))))
        return _stratified(rest, count, "legacy", seed)
    others = tuple(item for item in rest if item.split != VAL)
    if len(own) <= MAX_LEGACY:
        return _shuffled(own, "legacy", seed), others
    kept, left = _stratified(own, MAX_LEGACY, "legacy", seed)
    notes.append(f"{len(left):,} images of the val split are not used: {len(kept):,} are enough for the gate.")
    return kept, others


def _stratified(
    items: Sequence[DemoItem], count: int, purpose: str, seed: int
) -> tuple[tuple[DemoItem, ...], tuple[DemoItem, ...]]:
    """(drawn, left): `count` items with the classes in proportion. A class of one sample is left, never drawn."""
    strata: dict[str, list[DemoItem]] = defaultdict(list)
    for item in _shuffled(items, purpose, seed):
        strata[item.label].append(item)
    labels = sorted(strata)
    drawn: set[str] = set()
    sizes = [len(strata[label]) - 1 for label in labels]
    for label, number in zip(labels, apportion(sizes, max(0, count)), strict=True):
        drawn.update(item.sample_id for item in strata[label][:number])
    order = _shuffled(items, purpose, seed)
    return (
        tuple(item for item in order if item.sample_id in drawn),
        tuple(item for item in order if item.sample_id not in drawn),
    )


def _shuffled(items: Sequence[DemoItem], purpose: str, seed: int) -> tuple[DemoItem, ...]:
    return tuple(sorted(items, key=lambda item: ids.uniform("demo", purpose, str(seed), item.sample_id)))


def _without_copies(
    items: tuple[DemoItem, ...], kept: Sequence[DemoItem], where: str, of: str, notes: list[str]
) -> tuple[DemoItem, ...]:
    copies = first_matches([item.fingerprint for item in items], [item.fingerprint for item in kept])
    if copies:
        notes.append(f"{len(copies)} near-duplicate(s) of {of} were taken out of {where}.")
    return tuple(item for i, item in enumerate(items) if i not in copies)


def _check_enough(
    data: DemoData,
    available: int,
    first_labels: int,
    budget: int,
    rounds: int,
    test: Sequence[DemoItem],
    legacy: Sequence[DemoItem],
) -> None:
    needed = first_labels + budget * rounds
    if available >= needed:
        return
    spare = available - first_labels
    advice = (
        f"a budget of {spare // rounds} per round fits {rounds} round(s)"
        if spare >= rounds
        else "lower the first labels, the rounds and the budget"
    )
    raise BadData(
        f"{data.name} has {len(data.items):,} images, of which {len(test):,} test and {len(legacy):,} gate; "
        f"{available:,} are left for {first_labels} first labels and {rounds} round(s) of {budget}, which need "
        f"{needed:,}: add images, or lower the budget ({advice})"
    )


def _first(
    shuffled: tuple[DemoItem, ...], count: int, notes: list[str]
) -> tuple[tuple[DemoItem, ...], tuple[DemoItem, ...]]:
    """The first `count` of the shuffled samples, with the last one exchanged where all of them are of one class."""
    first = list(shuffled[:count])
    if len({item.label for item in first}) < 2:
        other = next((item for item in shuffled[count:] if item.label != first[0].label), None)
        if other is None:
            raise BadData(
                f"all images left for training have the label {first[0].label!r}: add images of other classes outside "
                "the test and val splits"
            )
        first[-1] = other
        notes.append("The uniform draw of first labels met one class only, so its last sample was drawn again.")
    taken = {item.sample_id for item in first}
    return tuple(first), tuple(item for item in shuffled if item.sample_id not in taken)


def _note_thin_classes(
    data: DemoData, learnable: Sequence[DemoItem], test: Sequence[DemoItem], notes: list[str]
) -> None:
    seen, tested = Counter(item.label for item in learnable), Counter(item.label for item in test)
    unseen = [label for label in data.labels if not seen[label]]
    untested = [label for label in data.labels if not tested[label]]
    if unseen:
        notes.append(f"No image of {', '.join(unseen)} is left to learn from: those test images cannot be right.")
    if untested:
        notes.append(f"No image of {', '.join(untested)} is in the test set: accuracy says nothing about them.")

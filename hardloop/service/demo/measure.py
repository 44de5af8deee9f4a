"""What the demo measures from outside: accuracy on the frozen test set, and random picking beside ours."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedback.predictor import Predictor
from hardloop.core import ids, images
from hardloop.core.errors import Missing
from hardloop.core.ports import Progress
from hardloop.core.records import Interval, ModelVersion, Verdict
from hardloop.service.connections import Connections
from hardloop.service.demo import estimates, report
from hardloop.service.demo.annotator import StandInAnnotator
from hardloop.service.demo.items import DemoData, DemoItem, Parts
from hardloop.service.settings import load
from hardloop.service.wiring import build_registry
from registry.mlflow_registry import MlflowRegistry

RANDOM_SEEDS = 5
FEWEST_SEEDS = 2  # one says nothing of how much draws differ
_RANDOM_S = 60.0  # a slow recipe's baselines, forty trainings, would take longer than the loop they stand beside
_BEYOND = (1.5, 2.0, 3.0, 4.0)  # how far past our last round the random curve is followed, to count labels saved


@dataclass(frozen=True, slots=True)
class Compared:
    """The rounds with random picking beside them. seeds: how many random baselines there were."""

    rounds: tuple[report.Round, ...]
    curve: tuple[report.CurvePoint, ...]
    gain: Interval | None
    seeds: int


def affordable_seeds(
    most: int = RANDOM_SEEDS, limit_s: float = _RANDOM_S, clock: Callable[[], float] = time.monotonic
) -> Iterator[int]:
    """The seeds of as many baselines as time allows: none is begun after `limit_s`, but FEWEST_SEEDS always are."""
    began = clock()
    for seed in range(most):
        if seed >= FEWEST_SEEDS and clock() - began > limit_s:
            return
        yield seed


class Arena:
    """The frozen test set and the models that meet on it, never through the served endpoint: capture would see it."""

    def __init__(
        self, connections: Connections, loop: str, data: DemoData, parts: Parts, recipe: str, seed: int,
        annotator: StandInAnnotator, folder: Path,
    ) -> None:  # fmt: skip
        settings = next(found for found in load(connections.config).loops if found.name == loop)
        registry = build_registry(settings, connections)
        assert isinstance(registry, MlflowRegistry)
        self._registry = registry
        self._data, self._parts = data, parts
        self._recipe, self._seed = recipe, seed
        self._annotator = annotator
        self._folder = folder
        self._truth_N = np.array([data.labels.index(item.label) for item in parts.test])
        self._hits: dict[str, NDArray[np.bool_]] = {}

    def accuracy(self, version: str) -> report.Interval:
        """A model version's accuracy on the frozen test set, with its Wilson interval."""
        hits_N = self._hits_of(version)
        return report.wilson(int(hits_N.sum()), len(hits_N))

    def verdict(self, version: str) -> Verdict | None:
        """What the registry itself holds of the gate's verdict on a version."""
        return self._registry.verdict(self._version(version))

    def compare(self, rounds: Sequence[report.Round], progress: Progress) -> Compared:
        """Random picking at the same numbers of labels: same seed labels, recipe and annotator.

        Each draw is uniform over all traffic that production had seen by then. There are `RANDOM_SEEDS` of them, fewer
        where a training takes long.
        """
        start, at = len(self._parts.seed), [r.labels_used for r in rounds]
        seen = map(int, np.cumsum([r.streamed for r in rounds]))
        available = start + len(self._parts.stream)
        everywhere = dict.fromkeys(
            (min(available, round(at[-1] * factor)) for factor in _BEYOND), len(self._parts.stream)
        )
        # The curve begins where both begin, at the first labels: labels saved may be fewer than none.
        points = sorted((everywhere | {start: 0} | dict(zip(at, seen, strict=True))).items())
        where = [[labels for labels, _ in points].index(labels) for labels in at]
        hits_SPN = self._random_hits(points, progress)
        accuracy_SP = hits_SPN.mean(axis=2)
        curve = tuple(
            report.CurvePoint(labels=labels, accuracy=report.mean(list(accuracy_SP[:, p])))
            for p, (labels, _) in enumerate(points)
        )
        means = [(point.labels, point.accuracy.value) for point in curve]
        ours_RN = np.stack([self._hits_of(r.model_version) for r in rounds])
        gain = estimates.paired_gain(ours_RN, hits_SPN[:, where], self._seed)
        beside = tuple(
            r.model_copy(
                update={
                    "random_accuracy": curve[where[i]].accuracy,
                    "labels_saved": report.labels_saved(r.accuracy.value, r.labels_used, means),
                }
            )
            for i, r in enumerate(rounds)
        )
        return Compared(beside, curve, gain, len(hits_SPN))

    def _hits_of(self, version: str) -> NDArray[np.bool_]:
        if version not in self._hits:
            folder = self._registry.fetch(self._version(version), self._folder / version)
            predictor = Predictor(folder, threads=2)
            probs_NC = predictor.score([item.image for item in self._parts.test]).probs_NC
            self._hits[version] = probs_NC.argmax(axis=1) == self._truth_N
        return self._hits[version]

    def _version(self, version: str) -> ModelVersion:
        found = next((v for v in self._registry.versions() if v.version == version), None)
        if found is None:
            raise Missing(f"model version {version} is not in the registry")
        return found

    def _random_hits(self, points: Sequence[tuple[int, int]], progress: Progress) -> NDArray[np.bool_]:
        """(seeds, points, test images): which images the random baselines get right."""
        from training import recipes  # torch takes seconds to import: not before the loop has run
        from training.leakage import fold_of
        from training.recipe import Examples

        recipe = recipes.named(self._recipe)
        start, stream = list(self._parts.seed), list(self._parts.stream)
        size = recipe.size or recipes.choose_size([_shorter_side(item) for item in start])
        progress("random picking: preparing images", 0, 1)
        inputs = recipes.prepare(recipe, [item.image for item in (*start, *stream)], size)
        tests = recipes.prepare(recipe, [item.image for item in self._parts.test], size)
        labels_N, folds_N = self._answers(start, stream, fold_of)
        hits_SPN: list[NDArray[np.bool_]] = []
        for s in affordable_seeds():
            hits_PN = np.zeros((len(points), len(self._truth_N)), dtype=np.bool_)
            for p, (labels, seen) in enumerate(points):
                drawn = _drawn(stream[:seen], labels - len(start), f"{self._seed}/{s}")
                rows = np.array([*range(len(start)), *(len(start) + i for i in drawn)])
                examples = Examples(inputs[rows], labels_N[rows], folds_N[rows], len(self._data.labels))
                probs_NC = recipes.fit_and_score(recipe, examples, tests, size, self._seed + s)
                hits_PN[p] = probs_NC.argmax(axis=1) == self._truth_N
                progress("random picking: training", s * len(points) + p + 1, RANDOM_SEEDS * len(points))
            hits_SPN.append(hits_PN)
        if len(hits_SPN) < RANDOM_SEEDS:
            progress(f"random picking: {len(hits_SPN)} baselines instead of {RANDOM_SEEDS}, for time", 1, 1)
        return np.stack(hits_SPN)

    def _answers(
        self, start: Sequence[DemoItem], stream: Sequence[DemoItem], fold_of: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The labels that the same annotator would have given, mistakes included, and the rows' folds."""
        named = [item.label for item in start]
        names = [ids.sample_id(item.image) for item in (*start, *stream)]
        for name, item in zip(names[len(start) :], stream, strict=True):
            named.append(self._annotator.decide(name).label or item.label)
        labels_N = np.array([self._data.labels.index(label) for label in named], dtype=np.int64)
        return labels_N, np.array([fold_of(name) for name in names], dtype=np.int64)


def _shorter_side(item: DemoItem) -> int:
    facts = images.check(item.image, item.name)
    return min(facts.width, facts.height)


def _drawn(items: Sequence[DemoItem], count: int, seed: str) -> list[int]:
    """The positions of `count` items drawn uniformly; a longer draw begins with the shorter one where `items` agree."""
    order = sorted(range(len(items)), key=lambda i: ids.uniform("random arm", seed, ids.sample_id(items[i].image)))
    return order[:count]

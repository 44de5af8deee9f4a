"""The recipes by name, and the one code path that trains with them: the trainer and the demo's baseline both use it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from hardloop.core import images
from hardloop.core.errors import BadData, BadSettings
from hardloop.core.records import Floats
from hardloop.core.temperature import softmax
from training.checkpoints import Checkpoint
from training.linear_probe import LinearProbe, LinearProbeConfig
from training.recipe import Examples, Inputs, Recipe, apply_front, logits, own_stream
from training.small_cnn import SmallCnn, SmallCnnConfig


@dataclass(frozen=True, slots=True)
class _Entry:
    config: type[BaseModel]
    make: Callable[[Any], Recipe]


_RECIPES = {
    "linear-probe": _Entry(LinearProbeConfig, LinearProbe),
    "small-cnn": _Entry(SmallCnnConfig, SmallCnn),
}
NAMES = tuple(_RECIPES)


def named(name: str, settings: Mapping[str, object] | None = None) -> Recipe:
    """A recipe with its settings. Raises BadSettings naming the recipe or the setting that does not exist or fit."""
    if name not in _RECIPES:
        raise BadSettings(f"recipe {name!r} does not exist: choose one of {', '.join(NAMES)}")
    entry = _RECIPES[name]
    try:
        return entry.make(entry.config.model_validate(dict(settings or {})))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(entry.config.model_fields)
        raise BadSettings(f"recipe {name}, setting {where!r}: {first['msg']}; its settings are {known}") from None


def choose_size(sides: Sequence[int]) -> int:
    """The input size for images whose shorter sides are given: 32 where their median is at most 40 pixels, else 48.

    More does not pay: on clothing10, whose images are 128 pixels wide, the descriptor was no better at 64 or 96.
    """
    return 32 if not sides or float(np.median(sides)) <= 40 else 48


def prepare(recipe: Recipe, encoded: Sequence[bytes], size: int) -> Inputs:
    """The recipe's inputs of N >= 1 encoded images. Raises BadImage naming the position of an unreadable one."""
    pixels = [images.to_array(images.decode(data, f"image {i}"), size, size) for i, data in enumerate(encoded)]
    return apply_front(recipe.front(size), np.stack(pixels))


def check_trainable(examples: Examples, labels: Sequence[str]) -> None:
    """Raises BadData where no classifier can be trained: no rows, or rows of a single class."""
    present = np.unique(examples.labels_N)
    if len(present) == 0:
        raise BadData("the training split is empty: label some samples first")
    if len(present) == 1:
        raise BadData(
            f"all {len(examples.labels_N)} training samples are labelled {labels[int(present[0])]!r}: "
            "samples of at least two classes are needed"
        )


def fit_and_score(recipe: Recipe, examples: Examples, test_inputs: Inputs, size: int, seed: int) -> Floats:
    """Train on examples and answer (N, C) probabilities of test inputs, as the first member of a real training would.

    Inputs are prepared once, by `prepare`, and reused: a `linear-probe` then takes a fraction of a second. The model's
    temperature is not fitted; it moves no prediction to another class. Raises BadData as `check_trainable` does.
    """
    check_trainable(examples, [str(i) for i in range(examples.n_classes)])
    with own_stream():
        weights = recipe.fit(examples, recipe.tune(examples, seed), seed, 0, Checkpoint(None, ""))
        body = recipe.body(examples.n_classes, size)
        return softmax(logits(body, weights, test_inputs, examples.n_classes))

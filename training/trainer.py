"""From a dataset version in the store to a model folder: checked for leaks, resumable, evaluated, exported."""

import fcntl
import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hardloop.core import evaluations, ids
from hardloop.core.errors import BadModel, Busy, Conflict
from hardloop.core.model_files import CARD, read_card
from hardloop.core.ports import BlobStore, Progress
from hardloop.core.records import DatasetRow, Evaluation, Floats, Split, TrainedModel
from hardloop.core.temperature import fit_temperature, softmax
from training import datasets, evaluation, recipes
from training.checkpoints import Checkpoint
from training.datasets import Dataset
from training.export import write_model
from training.inputs import InputReader
from training.leakage import check_leakage
from training.recipe import Examples, Recipe, Weights, logits, own_stream

SUMMARY = "training.json"
_WORK = ".training"
_LOCK = ".training.lock"
_CHECKED = 32  # images the exported networks are checked on
_SLICES = {Split.HOLDOUT: "audit", Split.LEGACY: "legacy"}


def train(
    blobs: BlobStore,
    dataset_key: str,
    recipe: str,
    seed: int,
    folder: Path,
    progress: Progress,
    settings: Mapping[str, object] | None = None,
    cache: Path | None = None,
) -> TrainedModel:
    """Train into `folder` what `ports.Trainer` promises; a folder that holds this very model already is left as it is.

    settings: the recipe's own, see docs/recipes.md. cache: a folder where prepared images are kept from one training to
    the next; without it they are kept until this training ends. An interrupted call continues where it stopped, to
    the same weights. Raises Leakage, BadData, BadImage, ExportMismatch as the port says; Busy while another training
    works in the folder, Conflict where another model lies there. A damaged model is trained again.
    """
    chosen = recipes.named(recipe, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), own_stream():
        dataset = datasets.load(blobs, dataset_key)
        finished = _finished(folder, dataset, chosen, seed)
        work = folder / _WORK
        if finished is not None:
            shutil.rmtree(work, ignore_errors=True)  # a kill after the card was written left it behind
            return finished
        check_leakage(dataset.rows)
        job = _job(dataset, chosen, seed, torch.__version__)
        run = _Run(blobs, dataset, chosen, seed, job, folder, cache or work / "inputs", progress)
        result = run.result()
        shutil.rmtree(work, ignore_errors=True)
        return result


@dataclass(slots=True)
class _Run:
    """One training; every fit it finishes is kept in the work folder, so that none is ever done twice."""

    blobs: BlobStore
    dataset: Dataset
    recipe: Recipe
    seed: int
    job: str
    folder: Path
    cache: Path
    progress: Progress

    def result(self) -> TrainedModel:
        """Everything from images to model folder."""
        dataset = self.dataset
        train_rows = [row for row in dataset.rows if row.split is Split.TRAIN]
        truth_N = _truth(dataset, train_rows)
        bare = Examples(np.empty((len(truth_N), 0), dtype=np.uint8), truth_N, _folds(train_rows, self.recipe), 0)
        recipes.check_trainable(bare, dataset.labels)
        reader = InputReader(self.blobs, self.recipe, dataset.rows, self.cache)
        reader.fetch(self.progress)
        inputs = reader.read([row.sample_id for row in train_rows])
        examples = Examples(inputs, truth_N, bare.folds_N, len(dataset.labels))
        tuned = self._tuned(examples)
        fits = 1 + self.recipe.committee + len(np.unique(examples.folds_N))
        members = []
        for k in range(1 + self.recipe.committee):
            self.progress("training", k, fits)
            members.append(self._fitted(f"member-{k}", examples, tuned, k))
        folded, mined_NC = self._out_of_fold(examples, tuned, reader.size, fits)
        self.progress("training", fits, fits)
        held_rows = [row for row in dataset.rows if row.split is not Split.TRAIN]
        held_NC = self._predictions(reader, members[0], held_rows)
        rows = [row for row, scored in zip(train_rows, folded, strict=True) if scored] + held_rows
        logits_NC = np.concatenate([mined_NC[folded], held_NC])
        return self._exported(reader, members, rows, logits_NC, tuned)

    def _tuned(self, examples: Examples) -> dict[str, float]:
        kept = Checkpoint(self.folder / _WORK / "tuned.safetensors", self.job)
        saved = kept.load()
        if saved is not None:
            return {name: float(str(value)) for name, value in saved.state.items()}
        tuned = dict(self.recipe.tune(examples, self.seed))
        kept.save({}, dict(tuned))
        return tuned

    def _fitted(self, name: str, examples: Examples, tuned: Mapping[str, float], member: int) -> Weights:
        """The weights of one fit, from the work folder where it has been finished before."""
        done = Checkpoint(self.folder / _WORK / f"{name}.safetensors", f"{self.job}/{name}")
        saved = done.load()
        if saved is not None:
            return saved.tensors
        begun = Checkpoint(self.folder / _WORK / f"{name}.begun.safetensors", f"{self.job}/{name}")
        weights = self.recipe.fit(examples, tuned, self.seed, member, begun)
        done.save(weights, {})
        return weights

    def _out_of_fold(
        self, examples: Examples, tuned: Mapping[str, float], size: int, fits: int
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Which training rows have been scored by a model that did not see their fold, and its logits (N, C).

        None are where all rows fall into one fold: then nothing is left to train on.
        """
        scored_N = np.zeros(len(examples.labels_N), dtype=np.bool_)
        logits_NC = np.zeros((len(scored_N), examples.n_classes))
        present = np.unique(examples.folds_N)
        for i, fold in enumerate(present if len(present) > 1 else ()):
            self.progress("training", fits - len(present) + i, fits)
            out_N = examples.folds_N == fold
            weights = self._fitted(f"fold-{fold}", examples.where(~out_N), tuned, 0)
            body = self.recipe.body(examples.n_classes, size)
            logits_NC[out_N] = logits(body, weights, examples.inputs[out_N], examples.n_classes)
            scored_N |= out_N
        return scored_N, logits_NC

    def _predictions(self, reader: InputReader, weights: Weights, rows: list[DatasetRow]) -> Floats:
        """(N, C) logits of held-out rows by the model itself."""
        n_classes = len(self.dataset.labels)
        body = self.recipe.body(n_classes, reader.size)
        parts: list[Floats] = [np.empty((0, n_classes))]
        parts += [logits(body, weights, part, n_classes) for part in reader.chunks([row.sample_id for row in rows])]
        return np.concatenate(parts)

    def _exported(
        self,
        reader: InputReader,
        members: list[Weights],
        rows: list[DatasetRow],
        logits_NC: Floats,
        tuned: Mapping[str, float],
    ) -> TrainedModel:
        self.progress("exporting", 0, 1)
        dataset = self.dataset
        truth_N = _truth(dataset, rows)
        slices = tuple(_SLICES.get(row.split, "mined") for row in rows)
        temperature, source = _temperature(logits_NC, truth_N, np.asarray(slices))
        scored = Evaluation(tuple(row.sample_id for row in rows), truth_N, softmax(logits_NC, temperature), slices)
        metrics = {**evaluation.metrics(scored, dataset.labels), "temperature": temperature}
        metrics.update({f"train/{name}": value for name, value in _class_counts(dataset).items()})
        params = self._params(reader.size, tuned, source)
        summary = {"job": self.job, "metrics": metrics, "params": params}
        write_model(
            self.folder,
            self.recipe,
            dataset.labels,
            reader.size,
            members,
            temperature,
            reader.pixels([row.sample_id for row in dataset.rows[:_CHECKED]]),
            {
                evaluations.FILE: evaluations.write(scored),
                SUMMARY: json.dumps(summary, indent=2, sort_keys=True).encode() + b"\n",
            },
        )
        self.progress("exporting", 1, 1)
        return TrainedModel(str(self.folder), dataset.labels, metrics, params)

    def _params(self, size: int, tuned: Mapping[str, float], temperature_from: str) -> dict[str, str]:
        """What the run is told apart by: settings, seed, data and the versions that compute."""
        config = self.recipe.config.model_dump(mode="json")
        return {
            "recipe": self.recipe.name,
            **{f"recipe.{name}": json.dumps(value) for name, value in config.items() if name != "size"},
            "recipe.size": str(size),
            **{f"tuned.{name}": f"{value:g}" for name, value in tuned.items()},
            "seed": str(self.seed),
            "dataset": self.dataset.key,
            "temperature_from": temperature_from,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def _temperature(logits_NC: Floats, truth_N: NDArray[np.int64], slices_N: NDArray[np.str_]) -> tuple[float, str]:
    """The temperature, and the slices it was fitted on.

    The out-of-fold predictions are many, but of samples that were mined, not drawn, and by weaker models: what they say
    is where the audit holdout, a uniform slice of production, begins. Without either the temperature stays 1.
    """
    temperature, used = 1.0, []
    for name in ("mined", "audit"):
        rows = slices_N == name
        if rows.any():
            temperature = fit_temperature(logits_NC[rows], truth_N[rows], temperature)
            used.append(name)
    return temperature, ", ".join(used) or "none"


def _truth(dataset: Dataset, rows: list[DatasetRow]) -> NDArray[np.int64]:
    index = {label: i for i, label in enumerate(dataset.labels)}
    return np.array([index[row.label] for row in rows], dtype=np.int64)


def _folds(rows: list[DatasetRow], recipe: Recipe) -> NDArray[np.int64]:
    """The rows' folds, merged where the recipe cross-fits with fewer; a group stays in one."""
    return np.array([row.fold % recipe.folds for row in rows], dtype=np.int64)


def _class_counts(dataset: Dataset) -> dict[str, float]:
    counts = {f"support/{label}": 0.0 for label in dataset.labels}
    for row in dataset.rows:
        if row.split is Split.TRAIN:
            counts[f"support/{row.label}"] += 1
    return {"n": sum(counts.values()), **counts}


def _job(dataset: Dataset, recipe: Recipe, seed: int, torch_version: str) -> str:
    """What makes two trainings the same: equal jobs give equal weights on one machine."""
    settings = recipe.config.model_dump(mode="json")
    return ids.digest([dataset.digest, recipe.name, settings, seed, torch_version])


def _finished(folder: Path, dataset: Dataset, recipe: Recipe, seed: int) -> TrainedModel | None:
    """The model that lies complete in the folder, whichever torch trained it. Raises Conflict when it is another one.

    A damaged one is none: its card is put aside under a name with a dot, and nothing of its training is used again.
    """
    if not (folder / CARD).exists():
        return None
    try:
        card = read_card(folder)
    except BadModel:
        shutil.rmtree(folder / _WORK, ignore_errors=True)
        (folder / CARD).replace(folder / f".{CARD}.damaged")
        return None
    try:
        summary = json.loads((folder / SUMMARY).read_bytes()) if SUMMARY in card.files else {}
        ours = summary["job"] == _job(dataset, recipe, seed, summary["params"]["torch"])
    except (ValueError, LookupError, TypeError):
        ours = False  # whole, but of another writer
    if not ours:
        raise Conflict(f"{folder} holds a model of another training: empty it, or train into another folder")
    return TrainedModel(str(folder), dataset.labels, summary["metrics"], summary["params"])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one training. The lock goes with the process, however it ends; its file stays."""
    with (folder / _LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another training works in {folder} now: wait for it, or use another folder") from None
        yield
